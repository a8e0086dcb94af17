"""Bradley-Terry against its closed-form minimum, torch's cross-entropy, and what a swap must leave alone."""

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.errors import DataError
from accord.losses import PREFERENCE_OBJECTIVES, combine_metrics, compute_bradley_terry_loss

OBJECTIVES = pytest.mark.parametrize("objective", PREFERENCE_OBJECTIVES.values(), ids=PREFERENCE_OBJECTIVES)
SCORES = st.floats(-20, 20)


def one_pair(difference, probability, *, margin=0.0, weight=1.0, denominator=1.0):
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (difference, 0.0, probability, weight, margin)]
    a, b, p, w, m = tensors
    return compute_bradley_terry_loss(a, b, probability=p, weight=w, margin=m, denominator=denominator)


def draw(size=12):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, generator=generator, dtype=torch.float64)
    p, w, m = torch.rand(3, size, generator=generator, dtype=torch.float64)
    w[3] = 0
    return a.requires_grad_(), b, {"probability": p, "weight": w, "margin": m, "denominator": float(w.sum())}


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.5, 0.726, 0.99])
def test_the_minimum_is_the_logit_of_the_label(probability):
    found = scipy.optimize.minimize_scalar(
        lambda d: one_pair(d, probability).loss.item(), bounds=(-10, 10), options={"xatol": 1e-8}
    )
    assert found.x == pytest.approx(math.log(probability / (1 - probability)), abs=1e-4)
    entropy = -probability * math.log(probability) - (1 - probability) * math.log(1 - probability)
    assert found.fun == pytest.approx(entropy, abs=1e-9)


def test_without_margin_it_is_torchs_binary_cross_entropy():
    a, b, given_ = draw()
    given_["margin"] = torch.zeros_like(a)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        a - b, given_["probability"], given_["weight"], reduction="sum"
    )
    torch.testing.assert_close(compute_bradley_terry_loss(a, b, **given_).loss * given_["denominator"], expected)


@pytest.mark.parametrize("probability", [1.0, 0.0])
def test_a_margin_shifts_the_curve_against_the_better_side(probability):
    """A hard label with margin m: the loss of winning by d is that of winning by d - m without one."""
    for difference in (-2.0, 0.0, 3.0):
        winning = difference if probability == 1.0 else -difference
        expected = math.log1p(math.exp(-(winning - 1.5)))
        assert one_pair(difference, probability, margin=1.5).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("probability", [0.9, 0.6])
def test_a_margin_asks_for_a_wider_gap_on_the_same_side(probability):
    minima = [
        scipy.optimize.minimize_scalar(
            lambda d, m=margin: one_pair(d, probability, margin=m).loss.item(),
            bounds=(-20, 20),
            options={"xatol": 1e-8},
        ).x
        for margin in (0.0, 0.5, 1.0)
    ]
    assert 0 < minima[0] < minima[1] < minima[2]


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(0, 64).map(lambda k: k / 64), st.floats(0, 3))
def test_swapping_the_pair_negates_the_margin_and_leaves_the_loss(difference, probability, margin):
    forth = one_pair(difference, probability, margin=margin)
    back = one_pair(-difference, 1 - probability, margin=margin)
    assert forth.loss.item() == pytest.approx(back.loss.item(), abs=1e-9)
    assert combine_metrics([forth.metrics]) == pytest.approx(combine_metrics([back.metrics]), abs=1e-9)
    # With the label left as it is, it is the score difference alone that turns its sign.
    if probability != 0.5:
        turned = one_pair(-difference, probability, margin=margin)
        assert forth.metrics["margin_mean"].item() == pytest.approx(-turned.metrics["margin_mean"].item(), abs=1e-9)


def test_scores_far_apart_stay_finite():
    for difference in (-1e4, 1e4):
        assert one_pair(difference, 0.5).loss.item() == pytest.approx(5e3)


def test_accuracy_counts_by_weight_and_ties_by_half():
    a = torch.tensor([2.0, 0.0, 1.0, 5.0, 1.0])
    b = torch.tensor([1.0, 3.0, 1.0, 4.0, 9.0])
    out = compute_bradley_terry_loss(
        a,
        b,
        probability=torch.tensor([0.9, 0.8, 0.7, 0.5, 1.0]),  # right, wrong, equal scores, equal votes, weightless
        weight=torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]),
        margin=torch.zeros(5),
        denominator=8.0,
    )
    assert out.metrics["accuracy"].item() == pytest.approx((3 + 0 + 1 + 1) / 8)
    assert out.metrics["margin_mean"].item() == pytest.approx((3 * 1 + 1 * -3 + 0 + 0) / 8)


@OBJECTIVES
@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12])
def test_splitting_the_batch_changes_nothing(objective, sizes):
    a, b, given_ = draw()
    denominator = given_.pop("denominator")
    whole = objective(a, b, **given_, denominator=denominator)
    (expected,) = torch.autograd.grad(whole.loss, a)
    parts = []
    for rows in torch.arange(12).split(sizes):
        of_rows = {name: value[rows] for name, value in given_.items()}
        parts.append(objective(a[rows], b[rows], **of_rows, denominator=denominator))
    sum(part.loss for part in parts).backward()
    torch.testing.assert_close(a.grad, expected, rtol=1e-12, atol=1e-15)
    assert combine_metrics(part.metrics for part in parts) == pytest.approx(combine_metrics([whole.metrics]))


@OBJECTIVES
def test_a_pair_without_weight_pulls_nowhere(objective):
    a, b, given_ = draw()
    out = objective(a, b, **given_)
    out.loss.backward()
    assert a.grad[3] == 0
    assert (a.grad != 0).sum() == 11
    assert not any(value.requires_grad for value in out.metrics.values())


@OBJECTIVES
def test_weights_that_sum_to_nothing_are_refused(objective):
    a, b, given_ = draw()
    with pytest.raises(DataError):
        objective(a, b, **{**given_, "denominator": 0.0})
