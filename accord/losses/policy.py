"""What every policy objective takes and returns, and the metrics of the ratio that all of them share.

Leaves out the objectives themselves: one file each.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional import compute_k3, masked_mean


class PolicyLoss(NamedTuple):
    """A scalar to minimise and its metrics, each a scalar without gradient; `combine_metrics` says how parts join."""

    loss: Tensor
    metrics: dict[str, Tensor]


class PolicyObjective(Protocol):
    """A function from log-probabilities and advantages to a `PolicyLoss`; the values of `POLICY_OBJECTIVES`.

    logprobs (B, C): log pi_theta of the sampled tokens, with gradient. old_logprobs (B, C): the same under the policy
    that sampled them. advantages (B, C): constants. mask (B, C): True where a token counts. clip_range: epsilon > 0.
    denominator: the tokens under the mask in the whole optimiser step, all micro-batches and ranks together.
    """

    def __call__(
        self,
        logprobs: Float[Tensor, "B C"],
        old_logprobs: Float[Tensor, "B C"],
        advantages: Float[Tensor, "B C"],
        mask: Bool[Tensor, "B C"],
        *,
        clip_range: float | int,
        denominator: float | int,
    ) -> PolicyLoss:
        """The loss of one micro-batch."""
        ...


def compute_log_ratio(
    logprobs: Float[Tensor, "B C"], old_logprobs: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """log(pi_theta / pi_old) of each token, 0 (and no gradient) where masked. (B, C) -> (B, C), nats."""
    return torch.where(mask, logprobs - old_logprobs, 0.0)


@torch.no_grad()
def compute_ratio_metrics(
    log_ratio: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], denominator: float | int
) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled: metrics that every policy objective reports.

    With r = exp(log_ratio), under the mask, divided by `denominator`:
    approx_kl_nats: mean of k3 = r - 1 - log r, estimates KL(pi_old || pi_theta) per token, in nats.
    ratio_mean: mean of r, about 1. ratio_max: the largest r (0 where nothing is unmasked).
    """
    ratio = log_ratio.exp()
    return {
        "approx_kl_nats": masked_mean(compute_k3(torch.zeros_like(log_ratio), log_ratio), mask, denominator),
        "ratio_mean": masked_mean(ratio, mask, denominator),
        "ratio_max": torch.where(mask, ratio, 0.0).max(),
    }
