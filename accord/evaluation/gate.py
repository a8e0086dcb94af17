"""The gate: whether a new policy takes the place of the one before.

Implements the decision alone, on numbers: the gain by the held-out judge with its interval, each guarded measure
against its margin, and how large a gain the evaluation could have seen. Leaves out sampling, scoring and what is done
with the decision (`loop.gating`). What was not measured never counts as passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from accord.errors import DataError
from accord.evaluation.statistics import CONFIDENCE, Estimate, average_by_group, compute_paired_difference
from accord.types import derive_seed

Row = Mapping[str, Any]
Gain = Literal["better", "worse", "unclear", "unmeasured"]
Kept = Literal["kept", "broken", "unclear", "unmeasured"]

POWER = 0.8
"""Share of repetitions in which a gain of the smallest visible size would have been seen."""

RISES_ARE_WORSE = frozenset({"toxicity", "refusal", "length_tokens"})
"""Measures of which less is better; of every other text reward more is."""


@dataclass(frozen=True)
class GuardedMeasure:
    """A measure that must not get worse by more than `margin`, in the measure's own unit.

    change: candidate less champion. result: kept (the whole interval is within the margin), broken (the whole interval
    is beyond it), unclear (neither), unmeasured.
    """

    name: str
    margin: float
    change: Estimate | None
    result: Kept

    def to_dict(self) -> dict[str, Any]:
        """`{"name", "margin", "change", "result"}`."""
        change = None if self.change is None else self.change.to_dict()
        return {"name": self.name, "margin": self.margin, "change": change, "result": self.result}


@dataclass(frozen=True)
class Power:
    """How large a gain the evaluation could have seen. smallest_gain: seen with `probability` at 95 % confidence.

    prompts: how many it had. prompts_needed: how many would show the gain that was found, with that probability; None
    where it is 0 or less.
    """

    smallest_gain: float
    prompts: int
    prompts_needed: int | None
    probability: float = POWER


@dataclass(frozen=True)
class GateDecision:
    """promoted: gain is "better" and every guard "kept". gain: candidate less champion by the held-out judge."""

    promoted: bool
    result: Gain
    gain: Estimate | None
    guards: tuple[GuardedMeasure, ...]
    power: Power | None

    def to_dict(self) -> dict[str, Any]:
        """What gate.json and report.json carry."""
        return {
            "promoted": self.promoted,
            "result": self.result,
            "gain": None if self.gain is None else self.gain.to_dict(),
            "guards": [guard.to_dict() for guard in self.guards],
            "power": None if self.power is None else asdict(self.power),
        }


def decide(
    candidate: Sequence[Row],
    champion: Sequence[Row],
    prompts: Sequence[str],
    *,
    margins: Mapping[str, float],
    seed: int,
    judge: str = "heldout",
) -> GateDecision:
    """Promote the candidate if the judge's paired gain has its 95 % interval above 0 and every guard is kept.

    candidate, champion: one row of numbers a completion, on the same prompts and seeds; prompts: the prompt's id of
    each row. margins: measure to the largest worsening that is borne. A measure that all rows lack, or have as None, is
    unmeasured; so is one that a row of one policy lacks and that of the other has. A guard is a test of
    non-inferiority: "kept" says that a worsening beyond the margin is outside the 95 % interval, not that none was
    seen.

    Raises: DataError where the rows are no pairs.
    """
    if not len(candidate) == len(champion) == len(prompts):
        raise DataError(
            f"{len(candidate)} rows of the candidate, {len(champion)} of the champion, {len(prompts)} prompts",
            mend="give one row of each a completion",
        )
    gain = compare_rows(candidate, champion, prompts, judge, derive_seed(seed, "gate", judge))
    result = judge_gain(gain)
    guards = tuple(
        judge_guard(name, margin, compare_rows(candidate, champion, prompts, name, derive_seed(seed, "gate", name)))
        for name, margin in margins.items()
    )
    promoted = result == "better" and all(guard.result == "kept" for guard in guards)
    power = None if gain is None else compute_power(collect_differences(candidate, champion, prompts, judge))
    return GateDecision(promoted, result, gain, guards, power)


def judge_gain(gain: Estimate | None) -> Gain:
    """Which side of 0 the whole interval lies on."""
    if gain is None or gain.low is None or gain.high is None:
        return "unmeasured"
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "unclear"


def judge_guard(name: str, margin: float, change: Estimate | None) -> GuardedMeasure:
    """Where the interval of the worsening lies: within the margin, beyond it, or on both sides."""
    if change is None or change.low is None or change.high is None:
        return GuardedMeasure(name, margin, change, "unmeasured")
    least, most = (change.low, change.high) if name in RISES_ARE_WORSE else (-change.high, -change.low)
    result: Kept = "kept" if most <= margin else "broken" if least > margin else "unclear"
    return GuardedMeasure(name, margin, change, result)


def compare_rows(
    after: Sequence[Row], before: Sequence[Row], prompts: Sequence[str], name: str, seed: int
) -> Estimate | None:
    """Mean of after - before of one measure over prompts, with its interval.

    Prompts of which the measure says nothing, for either policy, are left out; None where it speaks of none, or of one
    policy's answer and not of the other's.
    """
    spoken = [i for i, pair in enumerate(zip(after, before, strict=True)) if any(r.get(name) is not None for r in pair)]
    if not spoken or any(rows[i].get(name) is None for i in spoken for rows in (after, before)):
        return None
    groups = [prompts[i] for i in spoken]
    sides = (average_by_group([rows[i][name] for i in spoken], groups) for rows in (after, before))
    return compute_paired_difference(*sides, seed=seed)


def collect_differences(after: Sequence[Row], before: Sequence[Row], prompts: Sequence[str], name: str) -> list[float]:
    """after - before of one measure, one number a prompt."""
    left, right = (average_by_group([row[name] for row in rows], prompts) for rows in (after, before))
    return [float(value) for value in left - right]


def compute_power(differences: ArrayLike) -> Power | None:
    """The smallest gain that n paired differences show with probability 0.8 at 95 %: (t_c + t_p) s / sqrt(n).

    t_c = t(0.975, n - 1), t_p = t(0.8, n - 1), s the standard deviation of the differences. This is the usual
    approximation of the noncentral t distribution (Cohen 1988, section 2.4), within a few per cent from n = 10 on.
    None for fewer than 2 differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        return None
    factor = sum(float(stats.t.ppf(q, n - 1)) for q in (0.5 + CONFIDENCE / 2, POWER))
    deviation, mean = float(values.std(ddof=1)), float(values.mean())
    needed = math.ceil((factor * deviation / mean) ** 2) if mean > 0 else None
    return Power(factor * deviation / math.sqrt(n), n, needed)
