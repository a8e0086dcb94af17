"""The two laws of reward over-optimisation, fitted to measured points.

Implements Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model Overoptimization", section 3.1: with d the
square root of KL(policy || reference) in nats and R the gold reward gained since the reference,

    best of n:               R(d) = d (alpha - beta d)
    reinforcement learning:  R(d) = d (alpha - beta log d)

both linear in (alpha, beta), so least squares has a closed form. Also the gold reward of best-of-n for all n from one
set of candidates. Leaves out the runs that make the points (`laboratory`) and drawing them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

from accord.errors import DataError
from accord.evaluation.statistics import CONFIDENCE, Estimate
from accord.types import derive_seed

Law = Literal["best_of_n", "rl"]
RESAMPLES = 1000
LEAST_GROUPS = 5
"""From so many independent runs on, intervals resample runs; below, they are those of ordinary least squares."""


@dataclass(frozen=True)
class LawFit:
    """alpha and beta with their 95 % intervals. peak: d where the law's R is largest, None where it rises on.

    points: how many (d, R) it rests on.
    """

    law: Law
    alpha: Estimate
    beta: Estimate
    r_squared: float
    peak: float | None
    points: int

    def predict(self, distance: ArrayLike) -> NDArray[np.float64]:
        """R(d) of the fitted law, in units of the gold reward."""
        return compute_law(self.law, np.asarray(distance, dtype=np.float64), self.alpha.value, self.beta.value)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; docs/lab.md explains the keys."""
        estimates = {"alpha": self.alpha.to_dict(), "beta": self.beta.to_dict()}
        return {"law": self.law, **estimates, "r_squared": self.r_squared, "peak": self.peak, "points": self.points}


def compute_law(law: Law, distance: NDArray[np.float64], alpha: float, beta: float) -> NDArray[np.float64]:
    """d (alpha - beta d), or d (alpha - beta log d); 0 at d = 0."""
    terms = _build_terms(law, distance)
    return terms @ np.array([alpha, beta])


def fit_law(
    law: Law, distance: ArrayLike, gained: ArrayLike, *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> LawFit:
    """Least squares of `gained` (n,) on `distance` (n,), d = sqrt(KL in nats) >= 0.

    groups: the run that each point comes from; points of one run are not independent. With at least `LEAST_GROUPS` runs
    the intervals are percentiles over 1000 resamples of whole runs; otherwise Student's t of ordinary least squares,
    which takes the points for independent and is then too narrow.

    Raises:
        DataError: fewer than three different points, a number is not finite, or a distance is below 0.
    """
    d, r = np.asarray(distance, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    if d.shape != r.shape or len(np.unique(d)) < 3 or not np.isfinite(np.concatenate([d, r])).all() or (d < 0).any():
        raise DataError(
            f"no law can be fitted to {len(d)} distances and {len(r)} rewards",
            where="fit_law",
            mend="give at least three different finite distances of 0 or more, and a reward for each",
        )
    terms = _build_terms(law, d)
    found = _solve(terms, r)
    names = list(dict.fromkeys(groups)) if groups is not None else []
    if groups is not None and len(names) >= LEAST_GROUPS:
        limits = _resample_runs(terms, r, groups, names, seed)
        method, independent = "bootstrap", len(names)
    else:
        limits = _solve_interval(terms, r, found)
        method, independent = "t", len(d)
    left = float(((r - terms @ found) ** 2).sum())
    spread = float(((r - r.mean()) ** 2).sum())
    alpha, beta = (
        Estimate(float(found[i]), float(limits[0, i]), float(limits[1, i]), independent, method) for i in range(2)
    )
    r_squared = 1.0 - left / spread if spread else 1.0
    return LawFit(law, alpha, beta, r_squared, _find_peak(law, alpha.value, beta.value), len(d))


def compute_best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """E[gold of the candidate with the highest proxy among n drawn from these N], without drawing: (N,) each, n <= N.

    Sorted by proxy, the i-th (from 1) is the best of n with probability C(i - 1, n - 1) / C(N, n); ties keep their
    order. Source: Nakano et al. 2021 (WebGPT), appendix I.

    Raises:
        DataError: n is below 1 or above N, or the sizes differ.
    """
    scores, truth = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    total = len(scores)
    if scores.shape != truth.shape or not 1 <= n <= total:
        raise DataError(f"best of {n} among {total} candidates", where="compute_best_of_n", mend="draw more candidates")
    ranks = np.arange(n, total + 1)
    chances = np.exp(_log_choose(ranks - 1, n - 1) - _log_choose(np.array(total), n))
    return float(chances @ truth[np.argsort(scores, kind="stable")][n - 1 :])


def _log_choose(total: NDArray[Any], chosen: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)
    return result


def _build_terms(law: Law, d: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2): R is these times (alpha, beta)."""
    bend = d if law == "best_of_n" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * bend], axis=-1)


def _solve(terms: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[Any] = np.linalg.lstsq(terms, r, rcond=None)[0]
    return found


def _solve_interval(
    terms: NDArray[np.float64], r: NDArray[np.float64], found: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, 2), low and high of both: estimate +- t(0.975, n - 2) sqrt(s^2 (X^T X)^-1_ii)."""
    freedom = max(1, len(r) - 2)
    variance = float(((r - terms @ found) ** 2).sum()) / freedom
    error = np.sqrt(variance * np.diag(np.linalg.pinv(terms.T @ terms)))
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error
    return np.stack([found - reach, found + reach])


def _resample_runs(
    terms: NDArray[np.float64], r: NDArray[np.float64], groups: Sequence[Hashable], names: list[Hashable], seed: int
) -> NDArray[np.float64]:
    """(2, 2), low and high of both: percentiles over resamples of whole runs."""
    labels = np.array([names.index(group) for group in groups])
    rows = [np.flatnonzero(labels == i) for i in range(len(names))]
    source = np.random.default_rng(derive_seed(seed, "runs"))
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rows[i] for i in source.integers(len(names), size=len(names))])
        drawn.append(_solve(terms[chosen], r[chosen]))
    tail = 50 * (1 - CONFIDENCE)
    limits: NDArray[np.float64] = np.percentile(np.array(drawn), [tail, 100 - tail], axis=0)
    return limits


def _find_peak(law: Law, alpha: float, beta: float) -> float | None:
    """Where dR/dd = 0: alpha / (2 beta), or exp(alpha / beta - 1); None where R does not turn down."""
    if beta <= 0:
        return None
    exponent = alpha / beta - 1.0
    peak = alpha / (2.0 * beta) if law == "best_of_n" else math.exp(min(exponent, 50.0))
    return peak if peak > 0 else None
