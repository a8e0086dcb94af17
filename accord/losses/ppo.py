"""The clipped surrogate of PPO.

Implements the policy loss of Schulman et al. 2017. Leaves out the value loss (`value.py`), the entropy bonus and the KL
penalty: the first is its own objective, the second one line of the loop, the third part of the reward.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional import masked_mean
from accord.losses.policy import PolicyLoss, compute_log_ratio, compute_ratio_metrics


def compute_ppo_clip_loss(
    logprobs: Float[Tensor, "B C"],
    old_logprobs: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    *,
    clip_range: float | int,
    denominator: float | int,
) -> PolicyLoss:
    """L = -1/N sum_t min(r_t A_t, clip(r_t, 1 - epsilon, 1 + epsilon) A_t), with r_t = pi_theta(y_t) / pi_old(y_t).

    Arguments as in `PolicyObjective`: tensors (B, C); epsilon = clip_range, N = denominator. At pi_theta = pi_old its
    gradient is that of REINFORCE, and loss = -mean advantage.
    Metrics: clip_fraction, the share of tokens where the clip took hold (the clipped term is the smaller: no gradient),
    and those of `compute_ratio_metrics`.
    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7.

    Raises:
        DataError: `denominator` is not above 0.
    """
    log_ratio = compute_log_ratio(logprobs, old_logprobs, mask)
    ratio = log_ratio.exp()
    gain = ratio * advantages
    clipped_gain = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = -masked_mean(torch.minimum(gain, clipped_gain), mask, denominator)
    metrics = compute_ratio_metrics(log_ratio.detach(), mask, denominator)
    metrics["clip_fraction"] = masked_mean((clipped_gain < gain).to(ratio.dtype), mask, denominator)
    return PolicyLoss(loss, metrics)
