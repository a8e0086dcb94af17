"""The gate: better, worse, unclear and unmeasured policies; guards as tests of non-inferiority; the power note."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from accord.errors import DataError
from accord.evaluation import Estimate, decide
from accord.evaluation.gate import compute_power, judge_guard

MARGINS = {"toxicity": 0.02, "refusal": 0.05, "length_tokens": 20.0}


def make_rows(count: int, seed: int, **means: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one policy: each measure normal about its mean, widely for the judge and narrowly for the guards."""
    rng = random.Random(seed)
    defaults = {"heldout": 0.0, "toxicity": 0.05, "length_tokens": 40.0, "refusal": 0.0}
    spreads = {"heldout": 0.5, "toxicity": 0.01, "length_tokens": 2.0, "refusal": 0.0, "harmless": 0.01}
    named = defaults | means
    rows = [{name: rng.gauss(mean, spreads[name]) for name, mean in named.items()} for _ in range(count)]
    return rows, [f"prompt {i}" for i in range(count)]


def test_a_better_policy_whose_guards_hold_is_promoted() -> None:
    after, prompts = make_rows(64, 1, heldout=0.5)
    before, _ = make_rows(64, 2)
    decision = decide(after, before, prompts, margins=MARGINS, seed=0)
    assert decision.promoted and decision.result == "better"
    assert {guard.name: guard.result for guard in decision.guards} == dict.fromkeys(MARGINS, "kept")


@pytest.mark.parametrize(
    ("lift", "count", "result"), [(-0.5, 64, "worse"), (0.05, 24, "unclear"), (0.5, 1, "unmeasured")]
)
def test_worse_unclear_and_unmeasured_are_not_promoted(lift: float, count: int, result: str) -> None:
    after, prompts = make_rows(count, 1, heldout=lift)
    before, _ = make_rows(count, 2)
    decision = decide(after, before, prompts, margins=MARGINS, seed=0)
    assert not decision.promoted and decision.result == result


@pytest.mark.parametrize(
    ("measure", "value", "broken"),
    [
        ("toxicity", 0.15, "broken"),
        ("toxicity", 0.01, "kept"),
        ("length_tokens", 90.0, "broken"),
        ("refusal", 1.0, "broken"),
    ],
)
def test_a_guarded_measure_beyond_its_margin_rolls_back(measure: str, value: float, broken: str) -> None:
    after, prompts = make_rows(64, 1, heldout=0.5, **{measure: value})
    before, _ = make_rows(64, 2)
    decision = decide(after, before, prompts, margins=MARGINS, seed=0)
    assert {guard.name: guard.result for guard in decision.guards}[measure] == broken
    assert decision.promoted is (broken == "kept")


def test_a_reward_of_which_more_is_better_is_guarded_against_falling() -> None:
    after, prompts = make_rows(64, 1, heldout=0.5, harmless=0.7)
    before, _ = make_rows(64, 2, harmless=0.9)
    fallen = decide(after, before, prompts, margins={"harmless": 0.05}, seed=0)
    risen = decide(before, after, prompts, margins={"harmless": 0.05}, seed=0)
    assert [guard.result for guard in (*fallen.guards, *risen.guards)] == ["broken", "kept"]


def test_what_was_not_measured_never_passes() -> None:
    after, prompts = make_rows(64, 1, heldout=0.5)
    before, _ = make_rows(64, 2)
    assert decide(after, before, prompts, margins={"harmless": 0.5}, seed=0).guards[0].result == "unmeasured"
    assert not decide(after, before, prompts, margins={"harmless": 0.5}, seed=0).promoted
    for row in after:
        row["heldout"] = None
    unjudged = decide(after, before, prompts, margins={}, seed=0)
    assert (unjudged.promoted, unjudged.result, unjudged.power) == (False, "unmeasured", None)


@pytest.mark.parametrize(
    ("low", "high", "result"), [(-0.1, 0.04, "kept"), (-0.1, 0.06, "unclear"), (0.06, 0.2, "broken")]
)
def test_a_guard_is_kept_only_if_the_whole_interval_lies_within(low: float, high: float, result: str) -> None:
    change = Estimate((low + high) / 2, low, high, 50, "bootstrap")
    assert judge_guard("toxicity", 0.05, change).result == result
    mirrored = Estimate(-(low + high) / 2, -high, -low, 50, "bootstrap")
    assert judge_guard("harmless", 0.05, mirrored).result == result


@pytest.mark.parametrize("n", [10, 24, 60, 200])
def test_the_smallest_gain_is_seen_four_times_in_five(n: int) -> None:
    """Against the exact power of the paired t-test, by the noncentral t distribution."""
    differences = np.random.default_rng(n).normal(0.1, 0.7, n)
    power = compute_power(differences)
    assert power is not None
    shift = power.smallest_gain / (differences.std(ddof=1) / math.sqrt(n))
    exact = 1 - stats.nct.cdf(stats.t.ppf(0.975, n - 1), n - 1, shift)
    assert exact == pytest.approx(0.8, abs=0.02)


def test_samples_of_one_prompt_count_once() -> None:
    after, prompts = make_rows(32, 1, heldout=0.5)
    before, _ = make_rows(32, 2)
    once = decide(after, before, prompts, margins={}, seed=0)
    thrice = decide(after * 3, before * 3, prompts * 3, margins={}, seed=0)
    assert once.gain is not None and thrice.gain is not None and once.power == thrice.power
    assert once.gain.n == thrice.gain.n == 32


def test_rows_that_are_no_pairs_are_refused() -> None:
    rows, prompts = make_rows(4, 1)
    with pytest.raises(DataError, match="4 rows of the candidate, 3"):
        decide(rows, rows[:3], prompts, margins={}, seed=0)
