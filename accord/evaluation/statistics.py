"""Numbers with their uncertainty: means, paired differences, proportions and win rates, each with a 95 % interval.

Implements the percentile bootstrap (scipy's), Student's t for few values, and Wilson's score interval. Leaves out
tests of significance and corrections for many comparisons: an interval says as much and is harder to misread.

Several completions of one prompt are not independent. `average_by_group` makes one value of each prompt first, so
that an interval counts prompts, never completions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from accord.errors import DataError
from accord.types import derive_seed

CONFIDENCE = 0.95
RESAMPLES = 2000
SMALLEST_BOOTSTRAP = 20  # below, the percentile bootstrap is too narrow (it ignores the n / (n - 1) of the variance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval.

    n: independent observations. low, high: None where n is too small for an interval. interval: how it was computed,
    one of bootstrap, t, wilson, none.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    interval: str

    def to_dict(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n", "interval"}`, as report.json carries it."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "interval": self.interval}


def compute_mean(values: ArrayLike, *, seed: int) -> Estimate:
    """Mean of independent `values` (n,) with a 95 % interval.

    From 20 values on: percentile bootstrap (Efron 1979) with 2000 resamples drawn from `seed`. Below: Student's t,
    mean +- t(0.975, n - 1) s / sqrt(n). A single value has no interval.

    Raises: DataError where there is no value, or one is not finite.
    """
    numbers = _read_numbers(values)
    n, mean = len(numbers), float(numbers.mean())
    if n == 1:
        return Estimate(mean, None, None, 1, "none")
    if np.ptp(numbers) == 0.0:  # all alike: both methods give the point itself
        return Estimate(mean, mean, mean, n, "t" if n < SMALLEST_BOOTSTRAP else "bootstrap")
    if n < SMALLEST_BOOTSTRAP:
        low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(numbers))
        return Estimate(mean, float(low), float(high), n, "t")
    interval = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // n),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(derive_seed(seed, "bootstrap")),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n, "bootstrap")


def compute_paired_difference(after: ArrayLike, before: ArrayLike, *, seed: int) -> Estimate:
    """Mean of `after` - `before`, both (n,), pair by pair: pairs are resampled, never the sides apart.

    Raises: DataError where the lengths differ, or as `compute_mean`.
    """
    left, right = _read_numbers(after), _read_numbers(before)
    if len(left) != len(right):
        raise DataError(
            f"{len(left)} values after and {len(right)} before are no pairs", mend="give one of each a prompt"
        )
    return compute_mean(left - right, seed=seed)


def compute_proportion(share: float, n: int) -> Estimate:
    """A proportion in [0, 1] seen over `n` independent observations, with Wilson's 95 % interval (Wilson 1927).

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z / (1 + z^2 / n) sqrt(p (1 - p) / n + z^2 / 4n^2), z = 1.96.
    `share` may come from halves (ties) or from averages within a prompt: a quantity in [0, 1] with mean p has at most
    the variance p (1 - p), so the interval then errs on the wide side. (scipy's takes whole counts only.)

    Raises: DataError where n < 1 or `share` is outside [0, 1].
    """
    if n < 1 or not 0.0 <= share <= 1.0:
        raise DataError(f"no proportion: {share} of {n}", mend="give a share in [0, 1] of at least one observation")
    z2 = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n, "wilson")


def compute_win_rate(scores: ArrayLike, other: ArrayLike, groups: Sequence[Hashable] | None = None) -> Estimate:
    """How often `scores` beats `other`, both (n,), pair by pair; a tie is half a win. Wilson's interval over `groups`.

    groups: what each pair belongs to (its prompt), (n,); wins are averaged within a group first. None: pairs stand
    alone.

    Raises: DataError where the lengths differ, there is no pair, or a score is not finite.
    """
    left, right = _read_numbers(scores), _read_numbers(other)
    if len(left) != len(right):
        raise DataError(f"{len(left)} scores against {len(right)} are no pairs", mend="give one of each a prompt")
    wins = (np.sign(left - right) + 1.0) / 2.0
    return compute_share(wins, groups)


def compute_share(hits: ArrayLike, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `hits` in [0, 1], (n,), with Wilson's interval; averaged within `groups` first where given.

    Raises: DataError where there is no value, or one is outside [0, 1].
    """
    numbers = _read_numbers(hits)
    if groups is not None:
        numbers = average_by_group(numbers, groups)
    return compute_proportion(float(np.clip(numbers.mean(), 0.0, 1.0)), len(numbers))


def average_by_group(values: ArrayLike, groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """One mean for each distinct group, in order of first appearance: (n,) and (n,) -> (number of groups,).

    Raises: DataError where the lengths differ, there is no value, or one is not finite.
    """
    numbers = _read_numbers(values)
    if len(numbers) != len(groups):
        raise DataError(f"{len(numbers)} values for {len(groups)} group labels", mend="give one label a value")
    index = {group: position for position, group in enumerate(dict.fromkeys(groups))}
    where = np.array([index[group] for group in groups])
    return np.bincount(where, weights=numbers) / np.bincount(where)


def _read_numbers(values: ArrayLike) -> NDArray[np.float64]:
    """`values` as float64 (n,), n >= 1, all finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise DataError(f"nothing to average: an array of shape {numbers.shape}", mend="give at least one value")
    if not np.isfinite(numbers).all():
        raise DataError("a value is not a finite number", mend="look for NaN or infinity in the scores")
    return numbers
