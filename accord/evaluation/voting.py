"""What a round's votes say beside the preferences: who wins, the new policy or an earlier one; have annotators drifted?

Implements both on plain outcomes. Leaves out finding the votes (`loop`), and consensus (`feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accord.evaluation.statistics import Estimate, compute_mean, compute_paired_difference, compute_share
from accord.types import derive_seed

Outcomes = Mapping[str, Sequence[float]]
"""Pair -> one number a vote, the same side first every time: 1 where that side won, 0 where not, 0.5 for a tie."""


def compute_people_win_rate(wins: Sequence[float], prompts: Sequence[str]) -> Estimate | None:
    """How often voters preferred the standing policy's answer to an earlier one's; votes of one prompt count once."""
    return compute_share(wins, prompts) if wins else None


def compute_drift(first: Outcomes, now: Outcomes, *, seed: int) -> dict[str, Any] | None:
    """Whether the annotators of now judge the anchor pairs as those of round 1 did; None without a pair in both.

    agreement_across: P(a vote of now agrees with a vote of round 1), agreement_within: P(two votes of round 1 agree),
    drift: the first less the second, paired by pair, over pairs with two votes in round 1; None where there is none.
    Without drift it is 0 whatever the policy does, since the pairs are the same. drifted: the whole interval is below.
    """
    both = [pair for pair in first if pair in now and len(first[pair]) and len(now[pair])]
    if not both:
        return None
    across = {pair: _agree(first[pair], now[pair]) for pair in both}
    repeated = [pair for pair in both if len(first[pair]) > 1]
    within = {pair: _agree_inside(first[pair]) for pair in repeated}
    drift = None
    if repeated:
        sides = ([column[pair] for pair in repeated] for column in (across, within))
        drift = compute_paired_difference(*sides, seed=derive_seed(seed, "drift"))
    return {
        "pairs": len(both),
        "agreement_across": compute_mean(list(across.values()), seed=derive_seed(seed, "across")).to_dict(),
        "agreement_within": compute_mean(list(within.values()), seed=seed).to_dict() if within else None,
        "drift": drift.to_dict() if drift else None,
        "drifted": None if drift is None or drift.high is None else drift.high < 0,
    }


def _agree(left: Sequence[float], right: Sequence[float]) -> float:
    """Mean over pairs of votes, one of each side, of x y + (1 - x) (1 - y)."""
    x, y = float(np.mean(left)), float(np.mean(right))
    return x * y + (1 - x) * (1 - y)


def _agree_inside(votes: Sequence[float]) -> float:
    """The same over pairs of different votes of one side: sums of all pairs less each vote with itself."""
    x = np.asarray(votes, dtype=np.float64)
    everything = x.sum() ** 2 + (1 - x).sum() ** 2
    selves = float((x**2).sum() + ((1 - x) ** 2).sum())
    return float((everything - selves) / (len(x) * (len(x) - 1)))
