"""Ratings made comparable: each annotator's own mean and scale, with shrinkage, before two ratings become a preference.

Implements calibration and the step from two calibrated ratings to P(a is better). Leaves out personal rewards: what
one annotator means by 0.7 is set against the others', not modelled for its own sake.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

PRIOR_RATINGS = 5.0


def calibrate_ratings(ratings: NDArray[np.float64], annotators: NDArray[np.intp]) -> NDArray[np.float64]:
    """z = (rating - m_j) / s_j, with annotator j's mean and variance shrunk to everybody's.

    m_j = (n_j mean_j + k m) / (n_j + k); s_j^2 = (n_j var_j + k s^2) / (n_j + k), where var_j is taken around m_j,
    k = 5 pseudo-ratings, and m, s^2 are the pooled mean and within-annotator variance.
    ratings (N,) in [0, 1]; annotators (N,) in 0..J-1; returns (N,) in standard deviations. Where nobody's ratings vary,
    all z are 0. Source: z-scoring with empirical-Bayes shrinkage (Efron and Morris 1975) of both moments.
    """
    if ratings.size == 0:
        return np.zeros(0)
    count = np.bincount(annotators).astype(np.float64)
    own_mean = np.bincount(annotators, ratings) / np.maximum(count, 1.0)
    pooled_mean = ratings.mean()
    pooled_variance = np.mean((ratings - own_mean[annotators]) ** 2)
    if pooled_variance <= 1e-12:  # one rating each: only the spread between annotators is left
        pooled_variance = ratings.var()
    mean = (count * own_mean + PRIOR_RATINGS * pooled_mean) / (count + PRIOR_RATINGS)
    squares = np.bincount(annotators, (ratings - mean[annotators]) ** 2)
    variance = (squares + PRIOR_RATINGS * pooled_variance) / (count + PRIOR_RATINGS)
    if pooled_variance <= 1e-12:
        return np.zeros_like(ratings)
    calibrated: NDArray[np.float64] = (ratings - mean[annotators]) / np.sqrt(variance[annotators])
    return calibrated


def compute_rating_preference(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(a is better) = Phi((z_a - z_b) / sqrt(2)): each calibrated rating is a quality with noise of unit variance.

    Source: Thurstone (1927), case V.
    """
    probability: NDArray[np.float64] = ndtr(difference / np.sqrt(2.0))
    return probability


def select_rating_pairs(completions: list[int], annotators: list[int]) -> list[tuple[int, int, int]]:
    """Which ratings of one prompt are set against each other: (index, index, annotator), -1 for two annotators.

    Two completions are compared by those who rated both; where nobody did, every rating of the one stands against
    every rating of the other.
    """
    by_completion: dict[int, list[int]] = {}
    for index, completion in enumerate(completions):
        by_completion.setdefault(completion, []).append(index)
    pairs = []
    for first, second in combinations(by_completion.values(), 2):
        crossings = [(i, j) for i in first for j in second]
        own = [(i, j, annotators[i]) for i, j in crossings if annotators[i] == annotators[j]]
        pairs += own or [(i, j, -1) for i, j in crossings]
    return pairs
