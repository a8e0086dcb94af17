"""The reward model's report card: how well it predicts held-back preferences, and what it might lean on instead.

Implements accuracy beside the annotators' own agreement and a length-only baseline, calibration, log loss, Brier
score, and accuracy by margin and by difference in length. Leaves out scoring itself: margins come in, a dictionary
for report.json goes out.

Which pairs count. Pairs of weight 0 never do. Accuracy is over decided pairs (probability other than 1/2).
Calibration, log loss and Brier score use the soft label, undecided pairs included. Intervals count prompts, since
pairs of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, xlogy

from accord.errors import DataError
from accord.evaluation.statistics import average_by_group, compute_mean, compute_share
from accord.types import Preference

Floats = NDArray[np.float64]

CALIBRATION_EDGES = tuple(round(0.5 + 0.05 * k, 2) for k in range(11))  # ten equal bins of confidence, 0.5 to 1
MARGIN_EDGES_NATS = (0.0, 0.25, 0.5, 1.0, 2.0, float("inf"))
LENGTH_EDGES_TOKENS = (
    -float("inf"),
    -31.5,
    -7.5,
    7.5,
    31.5,
    float("inf"),
)  # preferred minus other; whole numbers never sit on an edge


def compute_reward_card(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    preferences: Sequence[Preference],
    *,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    annotator_agreement: float | None,
    score_std: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Report card over N preferences that the model was not fitted on.

    scores_a, scores_b (N,): the model's scores of both sides. score_std: what normalisation divided scores by, so
    that margin = (score_a - score_b) * score_std is in logits (nats) again and sigmoid(margin) is a probability;
    accuracy does not depend on it, calibration does. lengths_a, lengths_b (N,): completion tokens.
    annotator_agreement: how often two annotators agree on a decided pair, the ceiling to read accuracy against; None
    where pairs have one vote each.

    The length-only baseline always calls the *longer* answer better (equal lengths: half right). It may not look at the
    labels to choose between longer and shorter: below 1/2 means that people preferred short answers.

    Expected calibration error (Naeini et al. 2015) = sum over bins of n_k / N |p_k - c_k|: confidence c =
    sigmoid(|margin|) in ten equal bins from 0.5 to 1, p = how probable the label finds the side that the model
    favours.

    Raises: DataError where the sizes differ, a score is not finite, or no pair counts.
    """
    columns = [np.asarray(c, dtype=np.float64) for c in (scores_a, scores_b, lengths_a, lengths_b)]
    if any(c.shape != (len(preferences),) for c in columns):
        shapes = ", ".join(str(c.shape) for c in columns)
        raise DataError(f"{len(preferences)} preferences beside columns {shapes}", mend="give one number a pair")
    kept = np.array([p.weight > 0 for p in preferences], dtype=bool)
    if not kept.any():
        raise DataError(
            "no pair of the test split counts", mend="import more votes, or raise reward_model.test_fraction"
        )
    first, second, length_a, length_b = (c[kept] for c in columns)
    if not np.isfinite(first - second).all():
        raise DataError("a score is not a finite number", mend="lower reward_model.learning_rate")
    rows = [p for p, keep in zip(preferences, kept, strict=True) if keep]
    margin = (first - second) * score_std
    label = np.array([p.probability for p in rows])
    prompts = [p.prompt.id for p in rows]
    card: dict[str, Any] = {
        "pairs": len(rows),
        "prompts": len(set(prompts)),
        "annotator_agreement": annotator_agreement,
    }
    card |= _describe_accuracy(margin, label, length_a - length_b, prompts, seed)
    card |= _describe_calibration(margin, label)
    return card


def _describe_accuracy(
    margin: Floats, label: Floats, length_gap: Floats, prompts: list[str], seed: int
) -> dict[str, Any]:
    """Accuracy on decided pairs: as a whole, beside the longer answer, and in bins of margin and of length."""
    decided = label != 0.5
    result: dict[str, Any] = {"decided_pairs": int(decided.sum())}
    if not decided.any():
        names = ("accuracy", "length_accuracy", "accuracy_minus_length", "margin_length_correlation")
        return result | dict.fromkeys(names) | {"accuracy_by_margin": [], "accuracy_by_length": []}
    margin, length_gap = margin[decided], length_gap[decided]
    side = np.sign(label[decided] - 0.5)  # +1: a is better
    groups = [p for p, keep in zip(prompts, decided, strict=True) if keep]
    right = (np.sign(margin) * side + 1.0) / 2.0
    longer = (np.sign(length_gap) * side + 1.0) / 2.0
    lift = compute_mean(average_by_group(right - longer, groups), seed=seed)
    return result | {
        "accuracy": compute_share(right, groups).to_dict(),
        "length_accuracy": compute_share(longer, groups).to_dict(),
        "accuracy_minus_length": lift.to_dict(),
        "margin_length_correlation": _correlate(margin, length_gap),
        "accuracy_by_margin": _bin_accuracy(np.abs(margin), right, groups, MARGIN_EDGES_NATS),
        "accuracy_by_length": _bin_accuracy(length_gap * side, right, groups, LENGTH_EDGES_TOKENS),
    }


def _describe_calibration(margin: Floats, label: Floats) -> dict[str, Any]:
    """Log loss, its floor, Brier score and reliability over all pairs that count, with soft labels."""
    predicted = expit(margin)
    confidence = expit(np.abs(margin))
    favoured = np.where(margin >= 0, label, 1.0 - label)
    bins, error = [], 0.0
    for low, high, inside in _split(confidence, CALIBRATION_EDGES):
        n = int(inside.sum())
        if n:
            said, was = float(confidence[inside].mean()), float(favoured[inside].mean())
            error += n / len(margin) * abs(was - said)
            bins.append({"low": low, "high": high, "n": n, "confidence": said, "frequency": was})
    floor = -(xlogy(label, label) + xlogy(1.0 - label, 1.0 - label))
    return {
        "log_loss_nats": float(-(label * log_expit(margin) + (1.0 - label) * log_expit(-margin)).mean()),
        "label_entropy_nats": float(floor.mean()),
        "brier": float(((predicted - label) ** 2).mean()),
        "calibration_error": error,
        "reliability": bins,
    }


def _bin_accuracy(by: Floats, right: Floats, groups: list[str], edges: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracy where `by` falls between two edges, empty bins left out. An infinite edge is written as None."""
    bins = []
    for low, high, inside in _split(by, edges):
        if inside.any():
            share = compute_share(right[inside], [g for g, keep in zip(groups, inside, strict=True) if keep])
            n = int(inside.sum())
            bins.append({"low": _finite(low), "high": _finite(high), "n": n, "accuracy": share.to_dict()})
    return bins


def _split(values: Floats, edges: Sequence[float]) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """(low, high, membership) for each bin [low, high); the last bin holds its upper edge too."""
    place = np.clip(np.digitize(values, edges[1:-1]), 0, len(edges) - 2)
    return [(edges[k], edges[k + 1], place == k) for k in range(len(edges) - 1)]


def _correlate(x: Floats, y: Floats) -> float | None:
    """Pearson's correlation; None where either side is constant."""
    if len(x) < 2 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _finite(edge: float) -> float | None:
    return edge if np.isfinite(edge) else None
