"""Advantages against worked examples, discounted sums by scipy's filter, and the definition summed term by term."""

import math

import numpy
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accord.errors import DataError
from accord.functional import compute_explained_variance, compute_gae


@pytest.mark.parametrize(
    "values, rewards, mask, gamma, gae_lambda, advantages",
    [
        ([0, 1, 2, 3], [0, 0, 1, 0], [1, 1, 1, 1], 0.5, 0, [0.5, 0, 0.5, -3]),
        ([1, 2, 3], [0, 0, 5], [1, 1, 1], 1, 0, [1, 1, 2]),
        ([0, 0, 100], [0, 1, 0], [1, 1, 0], 1, 0.95, [0.95, 1, 0]),  # bootstrapping the masked 100 would give 5.7 6
    ],
)
def test_worked_examples(values, rewards, mask, gamma, gae_lambda, advantages):
    values, rewards, advantages = (torch.tensor([row], dtype=torch.float32) for row in (values, rewards, advantages))
    mask = torch.tensor([mask]).bool()
    out = compute_gae(rewards, values, mask, gamma, gae_lambda)
    torch.testing.assert_close(out.advantages, advantages)
    torch.testing.assert_close(out.returns, (advantages + values) * mask)


@st.composite
def rollouts(draw):
    """Rewards, values (B, C) and a right-padded mask, with some rows perhaps empty."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 7)))
    numbers = arrays.arrays(numpy.float64, shape, elements=st.floats(-10, 10))
    lengths = draw(st.lists(st.integers(0, shape[1]), min_size=shape[0], max_size=shape[0]))
    return draw(numbers), draw(numbers), lengths


def run(rewards, values, lengths, gamma, gae_lambda, spoil=math.nan):
    mask = torch.arange(rewards.shape[1]) < torch.tensor(lengths)[:, None]
    spoiled = [torch.where(mask, torch.from_numpy(x), spoil) for x in (rewards, values)]
    return (*compute_gae(*spoiled, mask, gamma, gae_lambda), mask)


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.floats(0.1, 1))
def test_lambda_1_is_discounted_return_minus_value(rollout, gamma):
    rewards, values, lengths = rollout
    advantages, returns, mask = run(rewards, values, lengths, gamma, 1)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()
    for row, length in enumerate(lengths):
        backwards = rewards[row, :length][::-1]
        discounted = scipy.signal.lfilter([1], [1, -gamma], backwards)[::-1] if length else backwards
        numpy.testing.assert_allclose(returns[row, :length], discounted, atol=1e-9)
        numpy.testing.assert_allclose(advantages[row, :length], discounted - values[row, :length], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.floats(0.1, 1), st.floats(0, 1))
def test_equals_the_definition_summed_term_by_term(rollout, gamma, gae_lambda):
    rewards, values, lengths = rollout
    advantages, returns, _ = run(rewards, values, lengths, gamma, gae_lambda)
    for row, length in enumerate(lengths):
        following = [*values[row, 1:length], 0.0]  # V after the last real token is 0
        deltas = [rewards[row, t] + gamma * following[t] - values[row, t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** (s - t) * deltas[s] for s in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(expected + values[row, t], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(rollouts())
def test_padding_and_neighbours_change_nothing(rollout):
    rewards, values, lengths = rollout
    whole = run(rewards, values, lengths, 0.9, 0.8)[0]
    for row, length in enumerate(lengths):
        if length:
            alone = run(rewards[row : row + 1, :length], values[row : row + 1, :length], [length], 0.9, 0.8)[0]
            assert torch.equal(alone[0], whole[row, :length])


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 1, 1]])
def test_a_mask_with_a_hole_is_refused_by_row(mask):
    with pytest.raises(DataError, match=r"row 1.*pad completions on the right"):
        compute_gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[1, 1, 1], mask]).bool(), 1, 1)


def test_no_gradient_flows_through():
    values = torch.zeros(1, 2, requires_grad=True)
    out = compute_gae(torch.ones(1, 2), values, torch.ones(1, 2, dtype=torch.bool), 1, 0.95)
    assert not out.advantages.requires_grad
    assert not out.returns.requires_grad


def test_explained_variance_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = numpy.random.default_rng(0)
    returns, noise = generator.normal(size=(2, 4, 5))
    mask = generator.random((4, 5)) < 0.7
    for values in (returns, returns + 3, returns + noise, noise, -returns, numpy.zeros_like(returns)):
        expected = metrics.explained_variance_score(returns[mask], values[mask])
        spoiled = torch.from_numpy(numpy.where(mask, values, math.nan))
        actual = compute_explained_variance(spoiled, torch.from_numpy(returns), torch.from_numpy(mask))
        assert actual == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("values, expected", [([1.0, 1.0], 1.0), ([1.0, 2.0], 0.0)])
def test_explained_variance_of_constant_returns_is_a_number(values, expected):
    mask = torch.ones(2, dtype=torch.bool)
    assert compute_explained_variance(torch.tensor(values), torch.full((2,), 5.0), mask) == expected
