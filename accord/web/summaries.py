"""A line for each round: what its votes agree on, what the gate decided, which alarms rang, and what it took.

Implements reading of finished artifacts, by the keys of the ledger. Nothing is computed and no lock is taken. Leaves
out curves (`rounds`) and what the verdicts mean (docs/gate.md, docs/alarm.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accord.web.rounds import RoundView, list_rounds
from accord.workspace import Workspace


@dataclass(frozen=True)
class RoundSummary:
    """One time round the loop. None and empty mappings stand for what is not there yet.

    votes: of this round, those on looks and of its tournament among them; agreement, annotators: as the consensus has
    them; gate: gate.json; alarms: those that rang in the fit of the policy, as alarm.json has them. seconds: of all
    stages that are done.
    """

    view: RoundView
    votes: int | None
    votes_key: str
    agreement: Mapping[str, Any]
    annotators: Mapping[str, Mapping[str, float]]
    gate: Mapping[str, Any]
    alarms: tuple[Mapping[str, Any], ...]
    seconds: float

    @property
    def state(self) -> str:
        """`finished`, `at work` or `resting`."""
        return "finished" if self.view.has_report else "at work" if self.view.live else "resting"


def list_summaries(workspace: Workspace) -> list[RoundSummary]:
    """Every round that has begun, newest first."""
    return [summarise(workspace, view) for view in list_rounds(workspace)]


def summarise(workspace: Workspace, view: RoundView) -> RoundSummary:
    """The summary of a round, of the newest artifact of each stage."""
    newest = {done.stage: done.key for done in view.stages}

    def read(stage: str, file: str) -> Mapping[str, Any]:
        path = workspace.root / "artifacts" / stage / newest.get(stage, "") / file
        return _read_json(path) if stage in newest and path.is_file() else {}

    consensus = read("preferences", "consensus.json")
    cast = [read(stage, "manifest.json").get("summary", {}).get("votes") for stage in ("votes", "policy", "tournament")]
    votes = [count for count in cast if count is not None]
    return RoundSummary(
        view=view,
        votes=sum(votes) if votes else None,
        votes_key=newest.get("votes", ""),
        agreement=consensus.get("agreement") or {"pairwise": None, "alpha": None},
        annotators=(consensus.get("annotators") or {}).get("annotators") or {},
        gate=read("gate", "gate.json"),
        alarms=tuple(read("policy", "alarm.json").get("alarms", ())),
        seconds=sum(done.seconds for done in view.stages if newest[done.stage] == done.key),
    )


@lru_cache(maxsize=256)
def _read_json(path: Path) -> Mapping[str, Any]:
    """A file of a finished artifact; it never changes, so it is read once."""
    read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
