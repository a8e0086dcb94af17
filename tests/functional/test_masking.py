"""Statistics under a mask against numpy's own on the unmasked entries."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accord.errors import DataError
from accord.functional import compute_last_index, masked_mean, masked_sum, masked_variance, masked_whiten

NAN, INF = float("nan"), float("inf")


@st.composite
def masked_arrays(draw):
    """A float64 array and a mask with at least two True."""
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, max_side=6))
    x = draw(arrays.arrays(numpy.float64, shape, elements=st.floats(-100, 100)))
    mask = draw(arrays.arrays(bool, shape))
    return torch.from_numpy(x), torch.from_numpy(mask)


@settings(max_examples=60, deadline=None)
@given(masked_arrays())
def test_statistics_are_numpys_on_the_unmasked(case):
    x, mask = case
    kept = x.numpy()[mask.numpy()]
    spoiled = torch.where(mask, x, NAN)
    assert float(masked_sum(spoiled, mask)) == pytest.approx(kept.sum(), abs=1e-9)
    if kept.size == 0:
        for function in (masked_mean, masked_variance, masked_whiten):
            with pytest.raises(DataError):
                function(x, mask)
        return
    assert float(masked_mean(spoiled, mask)) == pytest.approx(kept.mean(), abs=1e-9)
    assert float(masked_variance(spoiled, mask)) == pytest.approx(kept.var(), abs=1e-9)
    white = masked_whiten(spoiled, mask).numpy()
    assert not white[~mask.numpy()].any()
    assert white[mask.numpy()].mean() == pytest.approx(0.0, abs=1e-9)
    if kept.var() > 1e-8:
        assert white[mask.numpy()].var() == pytest.approx(1.0, abs=1e-9)
        numpy.testing.assert_allclose(white[mask.numpy()], (kept - kept.mean()) / kept.std(), atol=1e-9)


def test_whitening_takes_a_large_mean_away():
    """The mean is not added back: a constant offset of the advantages vanishes."""
    x = torch.tensor([[101.0, 103.0, -7.0], [105.0, NAN, INF]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    edge = 1.5**0.5  # (1, 3, 5) has mean 3 and variance 8/3
    torch.testing.assert_close(masked_whiten(x, mask), torch.tensor([[-edge, 0, 0], [edge, 0, 0]]))


def test_whitening_a_constant_stays_small():
    white = masked_whiten(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool))
    assert white.abs().max() < 1e-3


def test_a_given_denominator_makes_parts_add_up():
    x = torch.arange(12, dtype=torch.float64).view(4, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
    parts = [masked_mean(x[rows], mask[rows], 6) for rows in (slice(0, 1), slice(1, 3), slice(3, 4))]
    assert sum(parts).item() == pytest.approx((0 + 1 + 3 + 6 + 7 + 8) / 6)


def test_a_denominator_of_nothing_is_refused():
    with pytest.raises(DataError, match="mend"):
        masked_mean(torch.ones(2), torch.ones(2, dtype=torch.bool), 0)


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_variance])
def test_masked_entries_have_no_gradient_whatever_they_hold(function):
    x = torch.tensor([1.0, 4.0, NAN, INF], requires_grad=True)
    function(x, torch.tensor([True, True, False, False])).backward()
    assert x.grad[2:].tolist() == [0.0, 0.0]
    assert x.grad[:2].isfinite().all()


def test_last_index_with_padding_on_either_side():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    assert compute_last_index(mask).tolist() == [2, 3, 0, 2]


def test_last_index_of_an_empty_sequence_is_refused_by_row():
    with pytest.raises(DataError, match="row 1"):
        compute_last_index(torch.tensor([[True], [False]]))
