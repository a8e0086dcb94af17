"""The critic's regression on returns, clipped around the values that the rollout was made with.

Leaves out the coefficient with which it enters the total (`ppo.vf_coef`), and explained variance, which does not add up
over micro-batches (`functional.compute_explained_variance`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional import masked_mean


class ValueLoss(NamedTuple):
    """A scalar to minimise and its metrics, each a scalar without gradient."""

    loss: Tensor
    metrics: dict[str, Tensor]


def compute_value_loss(
    values: Float[Tensor, "B C"],
    old_values: Float[Tensor, "B C"],
    returns: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    *,
    clip_range: float | int,
    denominator: float | int,
) -> ValueLoss:
    """L = 1/(2N) sum_t max((V_t - R_t)^2, (V'_t - R_t)^2), with V' = V_old + clip(V - V_old, -epsilon, epsilon).

    values (B, C): V_theta, with gradient. old_values, returns (B, C): constants of the rollout. mask (B, C). epsilon =
    clip_range, in the units of the rewards; infinity: unclipped, half the mean squared error. N = denominator: tokens
    in the whole optimiser step. Loss in the units of the rewards squared.
    Metrics: value_clip_fraction, the share of tokens where the clipped error is the larger: no gradient.
    Source: OpenAI baselines' ppo2 (Schulman et al. 2017 leave it unclipped, equation 9).

    Raises:
        DataError: `denominator` is not above 0.
    """
    step = torch.where(mask, values - old_values, 0.0)
    target = torch.where(mask, returns - old_values, 0.0)
    error = (step - target).square()
    clipped_error = (step.clamp(-clip_range, clip_range) - target).square()
    took_hold = (clipped_error > error).to(values.dtype)
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask, denominator)
    return ValueLoss(loss, {"value_clip_fraction": masked_mean(took_hold, mask, denominator)})
