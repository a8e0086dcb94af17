"""The Bradley-Terry likelihood of a preference, with soft labels, weights and strength margins.

Implements the reward model's loss. Leaves out how votes become probabilities (`feedback`) and any regularisation of the
scores, whose zero the likelihood does not fix.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from accord.losses.preference import PreferenceLoss, compute_margin_metrics, weighted_mean


def compute_bradley_terry_loss(
    score_a: Float[Tensor, " B"],
    score_b: Float[Tensor, " B"],
    *,
    probability: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    denominator: float | int,
) -> PreferenceLoss:
    """L = 1/N sum_i w_i [-p_i log sigmoid(d_i - m_i) - (1 - p_i) log sigmoid(-d_i - m_i)], with d = score_a - score_b.

    Arguments as in `PreferenceObjective`: tensors (B,); p = probability, w = weight, m = margin, N = denominator. In
    nats. With m = 0 the minimum lies at d = logit(p), and it is the entropy of p. A margin asks the better side,
    whichever it is, to win by more. Swapping a and b (and p with 1 - p) leaves the loss as it is.
    Metrics: those of `compute_margin_metrics`.
    Source: Bradley and Terry 1952; Ouyang et al. 2022, equation 1; margin: Touvron et al. 2023 (Llama 2), equation 2.

    Raises:
        DataError: `denominator` is not above 0.
    """
    difference = score_a - score_b
    nll = -probability * logsigmoid(difference - margin) - (1.0 - probability) * logsigmoid(-difference - margin)
    metrics = compute_margin_metrics(difference.detach(), probability, weight, denominator)
    return PreferenceLoss(weighted_mean(nll, weight, denominator), metrics)
