"""The plain policy gradient, without ratio or clip.

Implements REINFORCE of Williams 1992 on advantages. Leaves out any guard against moving far from the sampling policy:
take one pass over each rollout (`ppo.epochs = 1`, `ppo.minibatches = 1`), where it equals `ppo_clip`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional import masked_mean
from accord.losses.policy import PolicyLoss, compute_log_ratio, compute_ratio_metrics


def compute_reinforce_loss(
    logprobs: Float[Tensor, "B C"],
    old_logprobs: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    *,
    clip_range: float | int,
    denominator: float | int,
) -> PolicyLoss:
    """L = -1/N sum_t A_t log pi_theta(y_t). `clip_range` has no meaning here; `old_logprobs` only serve the metrics.

    Arguments as in `PolicyObjective`: tensors (B, C); N = denominator. Metrics: clip_fraction, always 0, and those of
    `compute_ratio_metrics`.
    Source: Williams 1992, "Simple statistical gradient-following algorithms", with the advantage as reinforcement.

    Raises:
        DataError: `denominator` is not above 0.
    """
    loss = -masked_mean(torch.where(mask, advantages, 0.0) * logprobs, mask, denominator)
    log_ratio = compute_log_ratio(logprobs, old_logprobs, mask).detach()
    metrics = compute_ratio_metrics(log_ratio, mask, denominator)
    metrics["clip_fraction"] = torch.zeros_like(metrics["ratio_mean"])
    return PolicyLoss(loss, metrics)
