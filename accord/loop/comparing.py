"""What a round's votes say of policies and of annotators, read from finished artifacts for the report.

Implements finding the votes that compare the standing policy with an earlier one, and those on anchor pairs. Leaves out
the statistics (`evaluation.voting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accord.evaluation.voting import compute_drift, compute_people_win_rate
from accord.loop.repeating import name_pair
from accord.loop.sampling import list_rivals
from accord.types import Completion, Prompt
from accord.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage


def gather_win_rate(artifacts: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """How often a round's voters preferred the standing policy to an earlier one; None where nobody compared them."""
    samples, votes = artifacts.get("samples"), artifacts.get("votes")
    if samples is None or votes is None or "policy" not in samples.manifest["parents"]:
        return None
    standing = samples.manifest["parents"]["policy"]
    rivals = {name_pair(pair): pair[1].id for pair in list_rivals(samples.read_jsonl("samples.jsonl"), standing)}
    wins, prompts = [], []
    for prompt, first, outcome in read_outcomes(votes.read_jsonl("votes.jsonl")):
        ours = rivals.get((prompt, frozenset(first)))
        if ours is not None:
            wins.append(outcome if first[0] == ours else 1 - outcome)
            prompts.append(prompt)
    found = compute_people_win_rate(wins, prompts)
    return found.to_dict() if found else None


def gather_drift(workspace: Workspace, stages: list[Stage], number: int, seed: int) -> dict[str, Any] | None:
    """Whether the annotators of round `number` judge the anchor pairs as in round 1; None without anchor pairs."""
    cast = {stage.round: workspace.find("votes", stage.key) for stage in stages if stage.kind == "votes"}
    before, now = cast.get(1), cast.get(number)
    if before is None or now is None or number == 1 or "first_votes" not in now.manifest["parents"]:
        return None
    sides = (before.read_jsonl("votes.jsonl"), now.read_jsonl("anchor_votes.jsonl"))
    return compute_drift(*(group_outcomes(rows) for rows in sides), seed=seed)


def read_outcomes(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, str], float]]:
    """(prompt id, ids of both completions as shown, 1 where the first won) of each comparison that prefers anything."""
    for row in rows:
        outcome = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(row.get("choice") or "")
        if row["kind"] == "comparison" and outcome is not None:
            a, b = (Completion.from_dict(c).id for c in row["completions"])
            yield Prompt.from_dict(row["prompt"]).id, (a, b), outcome


def group_outcomes(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Pair -> an outcome a vote, the completion with the smaller id first."""
    found: dict[str, list[float]] = {}
    for prompt, (a, b), outcome in read_outcomes(rows):
        name = ":".join((prompt, *sorted((a, b))))
        found.setdefault(name, []).append(outcome if a < b else 1 - outcome)
    return found
