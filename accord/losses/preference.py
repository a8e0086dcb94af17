"""What every preference objective takes and returns, and the metrics that all of them share.

Leaves out the objectives themselves: one file each.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from accord.functional import masked_mean


class PreferenceLoss(NamedTuple):
    """A scalar to minimise and its metrics, each a scalar without gradient; `combine_metrics` says how parts join."""

    loss: Tensor
    metrics: dict[str, Tensor]


@runtime_checkable
class PreferenceObjective(Protocol):
    """A function from the scores of two completions to a `PreferenceLoss`; the values of `PREFERENCE_OBJECTIVES`.

    score_a, score_b (B,): scores, with gradient. probability (B,): P(a is better), in [0, 1]. weight (B,): how much a
    pair counts, >= 0. margin (B,): by how much the better one should win, >= 0, in the units of the scores.
    denominator: the sum of the weights in the whole optimiser step, all micro-batches and ranks together.
    """

    def __call__(
        self,
        score_a: Float[Tensor, " B"],
        score_b: Float[Tensor, " B"],
        *,
        probability: Float[Tensor, " B"],
        weight: Float[Tensor, " B"],
        margin: Float[Tensor, " B"],
        denominator: float | int,
    ) -> PreferenceLoss:
        """The loss of one micro-batch."""
        ...


def weighted_mean(x: Float[Tensor, " B"], weight: Float[Tensor, " B"], denominator: float | int) -> Float[Tensor, ""]:
    """sum_i w_i x_i / denominator: a pair of weight 0 counts nothing.

    x, weight (B,) -> scalar, in the units of x. Raises DataError where `denominator` is not above 0.
    """
    return masked_mean(weight * x, weight > 0, denominator)


@torch.no_grad()
def compute_margin_metrics(
    difference: Float[Tensor, " B"],
    probability: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    denominator: float | int,
) -> dict[str, Tensor]:
    """How well score differences d = s_a - s_b agree with the labels: metrics that every preference objective reports.

    accuracy: weighted share of pairs where the better one (p > 1/2: a) has the higher score; a tie, of labels or of
    scores, counts one half. margin_mean: weighted mean of d * sign(p - 1/2), by how much the better one wins, in score
    units.
    """
    side = (probability - 0.5).sign()
    correct = 0.5 * (1.0 + (difference * side).sign())
    return {
        "accuracy": weighted_mean(correct, weight, denominator),
        "margin_mean": weighted_mean(difference * side, weight, denominator),
    }
