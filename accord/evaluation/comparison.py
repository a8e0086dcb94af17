"""From the rows of an evaluation to the numbers of report.json: means, paired differences and win rates with intervals.

Implements the arithmetic alone, on plain rows (`policy.PolicyEvaluation`), so that a report can be recomputed without a
model. Leaves out sampling and scoring. Every interval counts prompts: samples of one prompt are averaged first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accord.errors import DataError
from accord.evaluation.diversity import compute_diversity
from accord.evaluation.statistics import (
    average_by_group,
    compute_mean,
    compute_paired_difference,
    compute_share,
    compute_win_rate,
)
from accord.functional import compute_best_of_n_kl
from accord.types import Completion, derive_seed

SIDES = ("reference", "best_of_n", "policy")
JUDGES = ("proxy", "heldout", "gold")
MEASURES = (*JUDGES, "toxicity", "length_tokens")

Row = Mapping[str, Any]


def summarise_rows(rows: Sequence[Row], *, best_of: int, seed: int) -> dict[str, Any]:
    """Every number of `evaluation` that rows alone decide; an estimate is the dictionary of `statistics.Estimate`.

    None stands for what was not measured (held-out or gold score, entropy of best-of-n), never for zero.

    Raises: DataError where there is no row or a number is not finite.
    """
    if not rows:
        raise DataError("an evaluation without rows", mend="give at least one evaluation prompt")
    summary: dict[str, Any] = {"prompts": len({row["prompt_id"] for row in rows}), "completions": len(rows)}
    for side in SIDES:
        summary[side] = _describe_side(rows, side, derive_seed(seed, side))
    for other in ("reference", "best_of_n"):
        summary[f"policy_minus_{other}"] = {
            name: _compare(rows, name, other, derive_seed(seed, "difference", other, name)) for name in MEASURES
        }
        summary[f"win_rate_against_{other}"] = {name: _win(rows, name, other) for name in JUDGES}
    summary["kl_nats"] = _average(rows, "policy", "kl_nats", derive_seed(seed, "kl"))
    summary["sampler_gap"] = float(np.mean([row["policy"]["sampler_gap"] for row in rows]))
    summary["best_of"] = best_of
    summary["best_of_n_kl_bound_nats"] = compute_best_of_n_kl(best_of)
    return summary


def _describe_side(rows: Sequence[Row], side: str, seed: int) -> dict[str, Any]:
    """Scores, length, toxicity, entropy and diversity of one model's completions."""
    finished = [float(row[side]["finished"]) for row in rows]
    spread = np.std([row[side]["toxicity"] for row in rows], ddof=1) if len(rows) > 1 else None
    estimates = {name: _average(rows, side, name, derive_seed(seed, name)) for name in (*MEASURES, "entropy_nats")}
    return {
        **estimates,
        "toxicity_std": None if spread is None else float(spread),
        "finished_share": compute_share(finished, _groups(rows)).to_dict(),
        "diversity": compute_diversity([Completion.from_dict(row[side]["completion"]).text for row in rows]),
    }


def _average(rows: Sequence[Row], side: str, name: str, seed: int) -> dict[str, Any] | None:
    """Mean of one number over prompts; None where it was not measured."""
    values = [row[side].get(name) for row in rows]
    if any(value is None for value in values):
        return None
    return compute_mean(average_by_group(values, _groups(rows)), seed=seed).to_dict()


def _compare(rows: Sequence[Row], name: str, other: str, seed: int) -> dict[str, Any] | None:
    """Mean of policy - other, prompt by prompt; None where either side was not measured."""
    values = [(row["policy"][name], row[other][name]) for row in rows]
    if any(one is None or two is None for one, two in values):
        return None
    after, before = (average_by_group(side, _groups(rows)) for side in zip(*values, strict=True))
    return compute_paired_difference(after, before, seed=seed).to_dict()


def _win(rows: Sequence[Row], judge: str, other: str) -> dict[str, Any] | None:
    """Share of completions of the policy that `judge` scores above the other's; a tie is half."""
    values = [(row["policy"][judge], row[other][judge]) for row in rows]
    if any(one is None or two is None for one, two in values):
        return None
    after, before = zip(*values, strict=True)
    return compute_win_rate(after, before, _groups(rows)).to_dict()


def _groups(rows: Sequence[Row]) -> list[str]:
    return [row["prompt_id"] for row in rows]
