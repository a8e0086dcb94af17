"""Tastes: the few directions of the features in which people differ, learnt from everybody's votes together.

Implements a logistic model of low rank, P(j prefers a) = sigmoid(m + z_j . V d), fitted by turns: the directions V for
given places z_j of the people on them, and the places for given directions. Each step is a concave problem. One person
has far too few votes to find a direction among hundreds; all of them together have enough. Leaves out how many
directions there are and how sure each person's place is (`personal`).

Source: Bose et al. 2025, "LoRe: Personalizing LLMs via Low-Rank Reward Modeling"; the start is the singular vectors of
what the common model leaves unexplained, person by person.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
OwnVotes = tuple[Floats, Floats, Floats]
"""One person's margins (n,) in logits, feature differences (n, P), and choices (n,)."""
AXES = 256
"""P: the largest principal axes of the feature differences, which are all that is looked at."""
ROUNDS, STEPS = 10, 3
"""Turns of the fit, and Newton steps of each."""
SLOPE_STEPS = 20


def find_axes(features: Floats, weights: Floats | float = 1.0, count: int = AXES) -> Floats:
    """(F, P): the at most `count` largest principal axes of feature differences (n, F), each in deviations
    times its weight.

    One number scales them all so that the mean squared length of a difference is 1: the ridge of `find_tastes` then
    means the same for every model.
    """
    deviations = np.sqrt((features**2).mean(axis=0))
    units = np.divide(weights, deviations, out=np.zeros_like(deviations), where=deviations > 1e-9 * deviations.max())
    _, singular, rows = np.linalg.svd(features * units, full_matrices=False)
    kept = min(count, int((singular > 1e-9 * singular[0]).sum()))
    axes: Floats = units[:, None] * rows[:kept].T / (np.sqrt((singular**2).sum() / len(features)) or 1.0)
    return axes


def fit_slope(margins: Floats, chosen: Floats, known: Floats | float = 0.0, *, towards: float = 0.0) -> float:
    """beta of P(a) = sigmoid(known + beta m), by Newton's method, with the weak prior N(towards, 1)."""
    beta = towards
    for _ in range(SLOPE_STEPS):
        share = expit(known + beta * margins)
        gradient = float(margins @ (chosen - share)) - (beta - towards)
        beta += gradient / float(margins**2 @ (share * (1 - share)) + 1.0)
    return beta


def find_tastes(votes: Sequence[OwnVotes], count: int) -> Floats:
    """V (K, P), K = `count` or one fewer than there are people: by turns, V given z and z given V.

    Penalties: |V|^2 / 2 and |z_j|^2 / 2. After each turn the places z have mean 0 and variance 1 over people: what all
    people share is no taste, and the scale is V's alone.
    """
    margins, features, chosen = (np.concatenate(parts) for parts in zip(*votes, strict=True))
    owner = np.repeat(np.arange(len(votes)), [len(own) for own, _, _ in votes])
    count = min(count, len(votes) - 1, features.shape[1])
    if count < 1:
        return np.zeros((0, features.shape[1]))
    places = _start(votes, count)
    tastes: Floats = np.zeros((count, features.shape[1]))
    for turn in range(ROUNDS):
        design = (places[owner][:, :, None] * features[:, None, :]).reshape(len(features), -1)
        tastes = _climb(design, margins, chosen, tastes.ravel()).reshape(tastes.shape)
        if turn == ROUNDS - 1:
            break
        places = np.stack([
            _climb(x @ tastes.T, m, y, place) for (m, x, y), place in zip(votes, places, strict=True)
        ])  # fmt: skip
        places = _standardise(places)
    return tastes


def _start(votes: Sequence[OwnVotes], count: int) -> Floats:
    """(J, K): the left singular vectors of each person's mean residual, sum_i (y_i - s_i) d_i / n, less the mean."""
    residuals = np.stack([(y - expit(m)) @ x / max(len(m), 1) for m, x, y in votes])
    left, _, _ = np.linalg.svd(residuals - residuals.mean(axis=0), full_matrices=False)
    return _standardise(left[:, :count])


def _standardise(places: Floats) -> Floats:
    """Mean 0 and variance 1 over people; a direction on which all stand alike stays 0."""
    centred = places - places.mean(axis=0)
    spread = centred.std(axis=0)
    return np.asarray(centred / np.where(spread > 1e-9, spread, 1.0))


def _climb(design: Floats, margins: Floats, chosen: Floats, start: Floats) -> Floats:
    """A few Newton steps from `start` on sum_i log p(y_i | m_i + x_i . w) - |w|^2 / 2."""
    weights = start
    for _ in range(STEPS):
        share = expit(margins + design @ weights)
        hessian = (design * (share * (1 - share))[:, None]).T @ design + np.eye(len(weights))
        weights = weights + np.linalg.solve(hessian, design.T @ (chosen - share) - weights)
    return weights
