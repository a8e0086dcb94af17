"""Intervals against scipy, closed forms and coverage over repeated draws."""

import numpy as np
import pytest
from scipy import stats

from accord.errors import DataError
from accord.evaluation.statistics import (
    average_by_group,
    compute_mean,
    compute_paired_difference,
    compute_proportion,
    compute_share,
    compute_win_rate,
)


@pytest.mark.parametrize("wins, n", [(0, 10), (3, 10), (71, 100), (100, 100), (1, 1)])
def test_wilson_is_scipys(wins: int, n: int) -> None:
    ours = compute_proportion(wins / n, n)
    theirs = stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_few_values_get_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 7.0]  # s = 2.6458, t(0.975, 3) = 3.1824
    found = compute_mean(values, seed=0)
    assert (found.value, found.interval, found.n) == (3.5, "t", 4)
    assert found.high == pytest.approx(3.5 + 3.18245 * np.sqrt(7.0) / 2.0, abs=1e-4)
    assert found.low is not None
    assert found.low + found.high == pytest.approx(7.0)


def test_one_value_has_no_interval() -> None:
    assert compute_mean([3.0], seed=0).to_dict() == {
        "value": 3.0,
        "low": None,
        "high": None,
        "n": 1,
        "interval": "none",
    }


def test_the_bootstrap_approaches_the_normal_interval() -> None:
    values = np.random.default_rng(5).normal(2.0, 3.0, size=4000)
    found = compute_mean(values, seed=1)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(4000)
    assert found.interval == "bootstrap"
    assert found.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08 * half)


@pytest.mark.parametrize("n", [8, 25])
def test_intervals_cover_the_truth_about_95_times_in_100(n: int) -> None:
    rng = np.random.default_rng(0)
    found = [compute_mean(rng.normal(1.0, 2.0, size=n), seed=seed) for seed in range(300)]
    share = np.mean([e.low is not None and e.high is not None and e.low <= 1.0 <= e.high for e in found])
    assert 0.90 <= share <= 0.985


def test_pairs_are_resampled_together() -> None:
    before = np.random.default_rng(2).normal(0.0, 100.0, size=200)
    found = compute_paired_difference(before + 1.0, before, seed=0)  # apart, the interval would be about 40 wide
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(1.0)
    assert found.value == pytest.approx(1.0)


def test_a_tie_is_half_a_win() -> None:
    assert compute_win_rate([1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 3.0, 5.0]).value == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    swapped = compute_win_rate([1.0, 1.0, 3.0, 5.0], [1.0, 2.0, 3.0, 0.0])
    assert swapped.value == pytest.approx(0.5)


def test_an_interval_counts_prompts_not_samples() -> None:
    alone = compute_share([1.0, 0.0])
    tenfold = compute_share([1.0] * 10 + [0.0] * 10, ["p"] * 10 + ["q"] * 10)
    assert tenfold == alone
    assert average_by_group([1.0, 2.0, 5.0], ["b", "a", "b"]).tolist() == [3.0, 2.0]


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(3).exponential(size=50)
    assert compute_mean(values, seed=1) == compute_mean(values, seed=1)
    assert compute_mean(values, seed=1) != compute_mean(values, seed=2)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_mean_of_nothing_or_of_what_is_no_number(values: list[float]) -> None:
    with pytest.raises(DataError):
        compute_mean(values, seed=0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        compute_paired_difference([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(DataError):
        compute_win_rate([1.0, 2.0], [1.0])
    with pytest.raises(DataError):
        compute_proportion(0.5, 0)
