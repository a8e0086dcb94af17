"""Supervised fine-tuning: the mean negative log-likelihood of completions.

Leaves out the prompt's tokens: they are not part of the (B, C) layout.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional import masked_mean


class SftLoss(NamedTuple):
    """A scalar to minimise and its metrics, each a scalar without gradient."""

    loss: Tensor
    metrics: dict[str, Tensor]


def compute_sft_loss(logprobs: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], *, denominator: float | int) -> SftLoss:
    """L = -1/N sum_t log pi_theta(y_t) under the mask, in nats per token.

    logprobs, mask (B, C); N = denominator: tokens under the mask in the whole optimiser step. Metrics: nll_nats, the
    same.

    Raises:
        DataError: `denominator` is not above 0.
    """
    loss = -masked_mean(logprobs, mask, denominator)
    return SftLoss(loss, {"nll_nats": loss.detach()})
