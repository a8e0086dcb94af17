"""How the scores of an ensemble's members become one: mean, worst case, variance-penalised mean.

Implements `COMBINATIONS`, a literal dictionary, and disagreement. Leaves out the weight average, which is a model of
its own (`models.ensemble.add_weight_average`) and not a function of the members' scores.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

VARIANCE_COEF = 0.5
"""lambda of the variance-penalised mean: scores are normalised, so it is in units of 1 / reference deviation."""


def compute_mean_score(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """mean_k s_k."""
    return scores.mean(dim=0)


def compute_worst_score(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """min_k s_k: no completion is better than its harshest judge says. Source: Coste et al. 2023, equation 3."""
    return scores.amin(dim=0)


def compute_penalised_score(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """mean_k s_k - lambda mean_k (s_k - mean)^2, lambda = `VARIANCE_COEF`. Source: Coste et al. 2023, equation 4."""
    return scores.mean(dim=0) - VARIANCE_COEF * scores.var(dim=0, correction=0)


COMBINATIONS: dict[str, Callable[[Float[Tensor, "K B"]], Float[Tensor, " B"]]] = {
    "mean": compute_mean_score,
    "worst": compute_worst_score,
    "variance_penalised": compute_penalised_score,
}
"""What `reward_model.combine` may name, beside `weight_average`."""

WEIGHT_AVERAGE = "weight_average"


def compute_disagreement(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """Standard deviation over the K members, divided by K: 0 where they agree, or where there is one member."""
    return scores.std(dim=0, correction=0)
