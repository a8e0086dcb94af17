"""Dawid-Skene: each pair has a true class (a, b or tie), each annotator a confusion matrix; EM finds both.

Implements maximum a posteriori EM on the sides as shown, so that a habit of choosing the first answer shows in the
confusion matrix. Leaves out the uncertainty of the matrices themselves: a probability's standard error is the spread
of the class alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from accord.feedback.pairs import TIE, PairFit, PairTable

A, B, TIED = 0, 1, 2
FLIPPED = np.array([B, A, TIED])
CLASS_VALUE = np.array([1.0, 0.0, TIE])
PRIOR_CONFUSION = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
PRIOR_VOTES = 1.0
MAX_STEPS = 500
TOLERANCE = 1e-6


def fit_dawid_skene(table: PairTable, *, prior_votes: float = PRIOR_VOTES) -> PairFit:
    """P(class_i = k | votes) is proportional to prior_k prod_v pi_{j(v)}[k, label_v], by EM from the soft majority.

    Labels and classes are in the frame as shown: a vote on (b, a) sees the classes a and b exchanged. The prior of a
    equals that of b (which of the two is called a is an accident); that of a tie is estimated. Each row of a confusion
    matrix has a Dirichlet prior worth `prior_votes` votes with 0.8 on the diagonal. A fractional outcome y (two
    ratings) is a label a of weight y and a label b of weight 1 - y. What was shown on no side counts half either way.

    Returned: probability = P(a) + P(tie) / 2, its standard error the posterior standard deviation of the class's
    value (1, 0, 0.5). With P(choose a | true a) = sigmoid(s + c) and P(choose a | true b) = sigmoid(-s + c), both
    given no tie, skill is s and side bias c, in logits.

    Source: Dawid and Skene (1979), equations 2.3 to 2.5.
    """
    size, voters = len(table.pairs), len(table.annotators)
    table, weight = _show_both_ways(table)
    label = _build_labels(table) * weight[:, None]
    flipped = table.side < 0
    prior_votes_of_class = PRIOR_CONFUSION * prior_votes
    posterior = _start(table, label, flipped, size)
    confusion = np.tile(PRIOR_CONFUSION, (voters, 1, 1))
    for _ in range(MAX_STEPS):
        # M step: confusion matrices and the prior of the classes, from the posterior of each pair in each vote's frame.
        shown = _turn(posterior[table.pair], flipped)
        counts = np.zeros((voters, 3, 3))
        for k in range(3):
            for seen in range(3):
                counts[:, k, seen] = np.bincount(table.annotator, shown[:, k] * label[:, seen], minlength=voters)
        counts += prior_votes_of_class
        mass = counts.sum(axis=2, keepdims=True)
        confusion = np.divide(counts, mass, out=np.tile(PRIOR_CONFUSION, (voters, 1, 1)), where=mass > 0)
        tie_share = posterior[:, TIED].mean() if size else 0.0
        prior = np.array([(1.0 - tie_share) / 2.0, (1.0 - tie_share) / 2.0, tie_share])
        # E step.
        updated = _compute_posterior(table, label, flipped, confusion, prior, size)
        moved = float(np.abs(updated - posterior).max(initial=0.0))
        posterior = updated
        if moved < TOLERANCE:
            break
    probability = posterior @ CLASS_VALUE
    variance = posterior @ CLASS_VALUE**2 - probability**2
    skill, side_bias = _compute_skill(confusion)
    return PairFit(probability, np.sqrt(np.maximum(variance, 0.0)), skill, side_bias)


def _show_both_ways(table: PairTable) -> tuple[PairTable, NDArray[np.float64]]:
    """Rows without a side (rankings, ratings) twice, half as (a, b) and half as (b, a); and the weight of each row.

    Otherwise an annotator would be given a habit of choosing the completion with the smaller id.
    """
    sideless = np.flatnonzero(table.side == 0)
    rows = np.concatenate([np.arange(table.side.size), sideless])
    weight = np.where(table.side == 0, 0.5, 1.0)[rows]
    side = np.concatenate([np.where(table.side == 0, 1.0, table.side), np.full(sideless.size, -1.0)])
    both = replace(
        table,
        pair=table.pair[rows],
        annotator=table.annotator[rows],
        outcome=table.outcome[rows],
        side=side,
        strength=table.strength[rows],
    )
    return both, weight


def _build_labels(table: PairTable) -> NDArray[np.float64]:
    """(R, 3): each row's label in its own frame, as weights that sum to 1."""
    own = np.where(table.side < 0, 1.0 - table.outcome, table.outcome)
    voted_tie = table.outcome == TIE
    return np.stack([np.where(voted_tie, 0.0, own), np.where(voted_tie, 0.0, 1.0 - own), voted_tie.astype(float)], 1)


def _turn(rows: NDArray[np.float64], flipped: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Exchanges a and b in the rows where they were shown the other way round."""
    return np.where(flipped[:, None], rows[:, FLIPPED], rows)


def _start(table: PairTable, label: NDArray[np.float64], flipped: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    """(P, 3): the share of each label among a pair's votes; all on a and b alike where nobody voted."""
    own = _turn(label, flipped)
    share = np.stack([np.bincount(table.pair, own[:, k], minlength=size) for k in range(3)], axis=1)
    total = share.sum(axis=1, keepdims=True)
    return np.divide(share, total, out=np.tile([0.5, 0.5, 0.0], (size, 1)), where=total > 0)


def _compute_posterior(
    table: PairTable,
    label: NDArray[np.float64],
    flipped: NDArray[np.bool_],
    confusion: NDArray[np.float64],
    prior: NDArray[np.float64],
    size: int,
) -> NDArray[np.float64]:
    """(P, 3): the classes of each pair, given the confusion matrices."""
    log_confusion = np.log(np.maximum(confusion, 1e-300))
    evidence = np.einsum("rkl,rl->rk", log_confusion[table.annotator], label)
    evidence = _turn(evidence, flipped)
    logits = np.stack([np.bincount(table.pair, evidence[:, k], minlength=size) for k in range(3)], axis=1)
    logits = logits + np.log(np.maximum(prior, 1e-300))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _compute_skill(confusion: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Skill and side bias (J,), in logits, from the part of each confusion matrix that is no tie."""
    safe = np.log(np.maximum(confusion, 1e-12))
    when_a = safe[:, A, A] - safe[:, A, B]
    when_b = safe[:, B, A] - safe[:, B, B]
    return (when_a - when_b) / 2.0, (when_a + when_b) / 2.0
