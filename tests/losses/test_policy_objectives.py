"""Policy objectives against closed forms, and against what no objective may break: masks, splits, the first pass."""

import math

import pytest
import torch

from accord.errors import DataError
from accord.losses import POLICY_OBJECTIVES, combine_metrics, compute_ppo_clip_loss, compute_reinforce_loss

E = math.e
OBJECTIVES = pytest.mark.parametrize("objective", POLICY_OBJECTIVES.values(), ids=POLICY_OBJECTIVES)
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
TOKENS = 10


def draw(seed=0):
    """logprobs (with gradient), old_logprobs, advantages (4, 4) in float64; ratios spread well over the clip range."""
    generator = torch.Generator().manual_seed(seed)
    old, noise, advantages = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    return (old + 0.5 * noise).requires_grad_(), old, advantages


@pytest.mark.parametrize(
    "advantage, ratio, loss, clipped",
    [
        (1, E, -1.2, 1),
        (1, 1 / E, -0.3679, 0),
        (1, E**0.1, -1.1052, 0),
        (-1, E, 2.7183, 0),
        (-1, 1 / E, 0.8, 1),
    ],
)
def test_clipped_loss_of_one_token(advantage, ratio, loss, clipped):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1)
    out = compute_ppo_clip_loss(logprobs, 0 * one, advantage * one, one.bool(), clip_range=0.2, denominator=1)
    assert out.loss.item() == pytest.approx(loss, abs=5e-5)
    assert out.metrics["clip_fraction"].item() == clipped
    assert out.metrics["ratio_mean"].item() == out.metrics["ratio_max"].item() == pytest.approx(ratio)
    assert out.metrics["approx_kl_nats"].item() == pytest.approx(ratio - 1 - math.log(ratio))
    out.loss.backward()
    assert (logprobs.grad.item() == 0) == bool(clipped)  # where the clip took hold, nothing pulls


@OBJECTIVES
def test_first_pass_over_a_fresh_rollout(objective):
    """Ratio 1, KL 0, clip fraction 0, and the gradient of REINFORCE: -A / N for each real token."""
    logprobs, _, advantages = draw()
    out = objective(logprobs, logprobs.detach(), advantages, MASK, clip_range=0.2, denominator=TOKENS)
    metrics = combine_metrics([out.metrics])
    assert metrics["ratio_mean"] == pytest.approx(1, rel=1e-12)
    assert metrics["ratio_max"] == 1
    assert metrics["approx_kl_nats"] == metrics["clip_fraction"] == 0
    (gradient,) = torch.autograd.grad(out.loss, logprobs)
    torch.testing.assert_close(gradient, torch.where(MASK, -advantages / TOKENS, 0.0), rtol=1e-12, atol=1e-15)


@OBJECTIVES
def test_the_first_gradient_is_the_exact_policy_gradient(objective):
    """Through the parameters of a softmax policy small enough to enumerate, against autograd on the expectation itself.

    One state, 4 tokens, each weighed by its probability: the sum of -A(y) pi(y) grad log pi(y) is -grad E[A].
    """
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    utility = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    weighed = (logits.softmax(0) * utility).detach()[None]  # E over the sampler, as 4 weighted tokens
    mask = torch.ones(1, 4, dtype=torch.bool)
    (exact,) = torch.autograd.grad(-(logits.softmax(0) * utility).sum(), logits)
    logprobs = logits.log_softmax(0)[None]
    out = objective(logprobs, logprobs.detach(), weighed, mask, clip_range=0.2, denominator=1)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    torch.testing.assert_close(gradient, exact)


def test_reinforce_and_the_clipped_loss_part_after_the_first_pass():
    logprobs, old, advantages = draw()
    gradients = [
        torch.autograd.grad(objective(logprobs, old, advantages, MASK, clip_range=0.2, denominator=1).loss, logprobs)[0]
        for objective in (compute_ppo_clip_loss, compute_reinforce_loss)
    ]
    torch.testing.assert_close(gradients[1], torch.where(MASK, -advantages, 0.0))  # blind to how far it has moved
    assert (gradients[0] - gradients[1]).abs().max() > 0.1


@OBJECTIVES
def test_masked_positions_have_exactly_no_gradient_whatever_they_hold(objective):
    inputs = []
    for x, spoil in zip(draw(), (math.nan, math.inf, math.nan), strict=True):
        inputs.append(torch.where(MASK, x.detach(), spoil))
    logprobs, old, advantages = inputs
    out = objective(logprobs.requires_grad_(), old, advantages, MASK, clip_range=0.2, denominator=TOKENS)
    out.loss.backward()
    assert not logprobs.grad[~MASK].any()
    assert logprobs.grad.isfinite().all()
    clean = objective(*draw(), MASK, clip_range=0.2, denominator=TOKENS)
    assert out.loss.item() == clean.loss.item()
    assert combine_metrics([out.metrics]) == combine_metrics([clean.metrics])


@OBJECTIVES
@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [3, 1], [1, 2, 1]])
def test_splitting_the_batch_changes_nothing(objective, sizes):
    """Micro-batches under the global denominator: loss, gradient and metrics add up to the unsplit ones (float64)."""
    logprobs, old, advantages = draw()
    whole = objective(logprobs, old, advantages, MASK, clip_range=0.2, denominator=TOKENS)
    (expected,) = torch.autograd.grad(whole.loss, logprobs)
    parts = []
    for rows in torch.arange(4).split(sizes):
        part = objective(logprobs[rows], old[rows], advantages[rows], MASK[rows], clip_range=0.2, denominator=TOKENS)
        part.loss.backward()
        parts.append(part)
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=1e-15)
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    assert combine_metrics(part.metrics for part in parts) == pytest.approx(combine_metrics([whole.metrics]), rel=1e-12)


@OBJECTIVES
def test_metrics_carry_no_gradient(objective):
    out = objective(*draw(), MASK, clip_range=0.2, denominator=TOKENS)
    assert out.loss.requires_grad
    assert not any(value.requires_grad or value.dim() for value in out.metrics.values())


@OBJECTIVES
def test_a_step_without_one_token_is_refused(objective):
    with pytest.raises(DataError):
        objective(*draw(), torch.zeros_like(MASK), clip_range=0.2, denominator=0)


def test_combining_adds_sums_and_takes_the_largest_of_maxima():
    parts = [
        {"share": torch.tensor(0.25), "ratio_max": torch.tensor(1.5)},
        {"share": torch.tensor(0.5), "ratio_max": torch.tensor(1.25), "rare": torch.tensor(1.0)},
    ]
    assert combine_metrics(parts) == {"share": 0.75, "ratio_max": 1.5, "rare": 1.0}
    assert combine_metrics([]) == {}
