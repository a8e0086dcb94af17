"""The plain fraction: the share of votes that prefer a, a tie counting half.

Implements the estimate and its uncertainty. Knows nothing of annotators: a careless vote counts as much as a good one.
"""

from __future__ import annotations

import numpy as np

from accord.feedback.pairs import PairFit, PairTable


def fit_fraction(table: PairTable) -> PairFit:
    """p = w / n, w the sum of outcomes and n their number; 0.5 where n = 0.

    Uncertainty: the standard deviation of Beta(w + 1/2, n - w + 1/2), the posterior under Jeffreys' prior, so that two
    votes that agree are not taken for certainty. The prior touches the uncertainty alone, never p.
    """
    size = len(table.pairs)
    count = np.bincount(table.pair, minlength=size).astype(np.float64)
    wins = np.bincount(table.pair, table.outcome, minlength=size)
    probability = np.divide(wins, count, out=np.full(size, 0.5), where=count > 0)
    alpha, beta = wins + 0.5, count - wins + 0.5
    uncertainty = np.sqrt(alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1.0)))
    return PairFit(probability, uncertainty)
