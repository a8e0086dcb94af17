"""The value loss against worked cases and torch's MSE; the SFT loss against torch's cross-entropy."""

import math

import pytest
import torch

from accord.errors import DataError
from accord.functional import compute_logprobs
from accord.losses import combine_metrics, compute_sft_loss, compute_value_loss

MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
TOKENS = 6


def draw():
    generator = torch.Generator().manual_seed(0)
    old, noise, returns = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    return (old + noise).requires_grad_(), old, returns


@pytest.mark.parametrize(
    "value, old, target, loss, gradient, clipped",
    [
        (3.0, 3.0, 1.0, 2.0, 2.0, 0),  # unmoved: 1/2 (V - R)^2
        (1.1, 1.0, 2.0, 0.405, -0.9, 0),  # within the range
        (2.0, 1.0, 2.0, 0.32, 0.0, 1),  # jumped onto the target, too far at once: the clipped value 1.2 is judged
        (0.0, 1.0, 2.0, 2.0, -2.0, 0),  # moved away: the plain error is the larger, and pulls back
        (4.0, 1.0, 2.0, 2.0, 2.0, 0),  # far beyond the target: the plain error is the larger
    ],
)
def test_one_token(value, old, target, loss, gradient, clipped):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    out = compute_value_loss(values, old * one, target * one, one.bool(), clip_range=0.2, denominator=1)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(loss)
    assert values.grad.item() == pytest.approx(gradient)
    assert out.metrics["value_clip_fraction"].item() == clipped


def test_unclipped_it_is_half_the_mean_squared_error():
    values, old, returns = draw()
    out = compute_value_loss(values, old, returns, MASK, clip_range=math.inf, denominator=TOKENS)
    expected = 0.5 * torch.nn.functional.mse_loss(values[MASK], returns[MASK])
    torch.testing.assert_close(out.loss, expected)
    assert not out.metrics["value_clip_fraction"]
    torch.testing.assert_close(torch.autograd.grad(out.loss, values), torch.autograd.grad(expected, values))


@pytest.mark.parametrize("clip_range", [0.2, math.inf])
def test_values_equal_to_returns_cost_nothing_where_they_did_not_jump(clip_range):
    values, old, _ = draw()
    returns = values.detach()
    unmoved = compute_value_loss(values, returns, returns, MASK, clip_range=clip_range, denominator=TOKENS)
    assert unmoved.loss.item() == 0
    assert compute_value_loss(values, old, returns, MASK, clip_range=math.inf, denominator=TOKENS).loss.item() == 0


def test_masked_values_have_exactly_no_gradient_whatever_they_hold():
    values, old, returns = (torch.where(MASK, x.detach(), math.nan) for x in draw())
    out = compute_value_loss(values.requires_grad_(), old, returns, MASK, clip_range=0.2, denominator=TOKENS)
    out.loss.backward()
    assert not values.grad[~MASK].any()
    assert values.grad.isfinite().all()
    assert values.grad[MASK].any()
    assert out.loss.item() == compute_value_loss(*draw(), MASK, clip_range=0.2, denominator=TOKENS).loss.item()


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1]])
def test_splitting_the_batch_changes_nothing(sizes):
    values, old, returns = draw()
    whole = compute_value_loss(values, old, returns, MASK, clip_range=0.2, denominator=TOKENS)
    (expected,) = torch.autograd.grad(whole.loss, values)
    parts = [
        compute_value_loss(values[rows], old[rows], returns[rows], MASK[rows], clip_range=0.2, denominator=TOKENS)
        for rows in torch.arange(3).split(sizes)
    ]
    sum(part.loss for part in parts).backward()
    torch.testing.assert_close(values.grad, expected, rtol=1e-12, atol=1e-15)
    assert combine_metrics(part.metrics for part in parts) == pytest.approx(combine_metrics([whole.metrics]))
    assert whole.metrics["value_clip_fraction"] > 0


def test_sft_is_torchs_cross_entropy_with_ignored_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(8, (3, 3), generator=generator)
    labels = torch.where(MASK, ids, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    out = compute_sft_loss(compute_logprobs(logits, ids).logprobs, MASK, denominator=TOKENS)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.metrics["nll_nats"], expected.detach())
    assert not out.metrics["nll_nats"].requires_grad
    torch.testing.assert_close(torch.autograd.grad(out.loss, logits), torch.autograd.grad(expected, logits))


def test_a_step_without_one_token_is_refused():
    with pytest.raises(DataError):
        compute_sft_loss(torch.zeros(1, 1), torch.zeros(1, 1).bool(), denominator=0)
    with pytest.raises(DataError):
        compute_value_loss(*draw(), MASK, clip_range=0.2, denominator=0)
