"""What each round cost and gained, and when there is no point in another one.

Implements the stop rules of `[rounds]` and the table of rounds, both read from finished artifacts and the ledger.
Leaves out how the table looks (`evaluation.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accord.config import Config
from accord.workspace import Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage


def find_end(workspace: Workspace, config: Config, stages: Sequence[Stage], number: int) -> str | None:
    """Why round `number` should not begin, or None: votes are spent, or the last rounds brought nothing."""
    rounds = config.rounds
    before = [tabulate_round(workspace, stages, i) for i in range(1, number)]
    votes = sum(row["votes"] for row in before)
    if rounds.max_votes and votes >= rounds.max_votes:
        return f"{votes} votes are spent; rounds.max_votes is {rounds.max_votes}"
    patience = rounds.stop_without_promotion
    if patience and len(before) >= patience and not any(row["promoted"] for row in before[-patience:]):
        return f"no policy was promoted in {patience} rounds; rounds.stop_without_promotion says to end"
    return None


def tabulate_round(workspace: Workspace, stages: Sequence[Stage], number: int) -> dict[str, Any]:
    """One line of the report's table of rounds: what the round cost, and what it gained.

    votes, seconds, sampled_tokens: of this round alone. promoted, result, gain, gold_gain: the gate's. alarms: kinds
    that rang. None stands for what is not there.
    """
    own = [stage for stage in stages if stage.round == number]
    found = {stage.kind: workspace.find(stage.kind, stage.key) for stage in own}
    ledger = [row for row in workspace.read_ledger(number) if row["key"] in {stage.key for stage in own}]
    gate, policy = found.get("gate"), found.get("policy")
    cast = [artifact for kind in ("votes", "policy", "tournament") if (artifact := found.get(kind))]
    decision = gate.read_json("gate.json") if gate else {}
    return {
        "round": number,
        "votes": sum(artifact.summary.get("votes", 0) for artifact in cast),
        "seconds": round(sum(row["seconds"] for row in ledger), 3),
        "sampled_tokens": sum(row.get("sampled_tokens", 0) for row in ledger),
        "promoted": decision.get("promoted"),
        "result": decision.get("result"),
        "gain": decision.get("gain"),
        "gold_gain": decision.get("gold_gain"),
        "alarms": list(policy.summary["alarms"]) if policy else [],
    }
