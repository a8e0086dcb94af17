"""What the loop has written, for the dashboard to show: rounds, stages, live metrics.

Implements reading alone: whole lines of files that the loop appends to, and finished artifacts, which never change. It
takes no lock and imports nothing that computes, so it neither waits for the loop nor slows it down. Leaves out samples
(`samples`), drawing (`curves`) and pages (`dashboard`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accord.workspace import Workspace, read_lines

STEPS = ("update", "epoch")
LIVE_SECONDS = 120.0
"""A round whose files changed within so many seconds is at work."""

# What a person looks at first, in this order; docs/report.md says what each means.
IMPORTANT = (
    "score", "heldout_score", "kl_nats", "reward", "entropy", "clip_fraction", "policy_loss", "value_loss", "loss",
    "validation_loss", "accuracy", "validation_accuracy", "length_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class StageDone:
    """One line of the ledger."""

    stage: str
    key: str
    finished_at: str
    seconds: float


@dataclass(frozen=True)
class Curve:
    """One metric of one stage over its steps: `points` are (step, value), steps rising."""

    stage: str
    metric: str
    step: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RoundView:
    """One time round the loop as its folder shows it."""

    number: int
    folder: Path
    stages: tuple[StageDone, ...]
    changed_at: datetime
    seconds_since_change: float
    warnings: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether something was written a moment ago, and no report yet ends the round."""
        return self.seconds_since_change < LIVE_SECONDS and not self.has_report

    @property
    def has_report(self) -> bool:
        """Whether report.html is there."""
        return (self.folder / "report.html").is_file()


def list_rounds(workspace: Workspace) -> list[RoundView]:
    """Every round that has begun, newest first. Makes no folder."""
    folders = sorted((workspace.root / "rounds").glob("[0-9]*"), reverse=True)
    return [read_round(folder) for folder in folders if folder.is_dir()]


def read_round(folder: Path, now: float | None = None) -> RoundView:
    """The round in `folder`."""
    done = tuple(
        StageDone(row["stage"], row["key"], row["finished_at"], float(row["seconds"]))
        for row in read_lines(folder / "ledger.jsonl")
    )
    files = [path for path in (folder / "ledger.jsonl", folder / "metrics.jsonl") if path.exists()]
    changed = max((path.stat().st_mtime for path in files), default=0.0)
    warnings = tuple(str(row["warning"]) for row in read_lines(folder / "metrics.jsonl")[-200:] if row.get("warning"))
    moment = datetime.fromtimestamp(changed, UTC)
    return RoundView(int(folder.name), folder, done, moment, (now or time.time()) - changed, warnings[-3:])


def read_curves(folder: Path) -> list[Curve]:
    """Every metric of every stage of the round, the important ones first; a stage begun again replaces its steps."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_lines(folder / "metrics.jsonl"):
        step = next((name for name in STEPS if name in row), None)
        if step is None:
            continue
        kept = [old for old in stages.get(row["stage"], []) if old.get(step, -1) < row[step]]
        stages[row["stage"]] = [*kept, row]
    curves = [curve for stage, rows in reversed(stages.items()) for curve in _split_metrics(stage, rows)]
    return sorted(curves, key=lambda curve: _place(curve.metric))  # stable: stages stay newest first


def _split_metrics(stage: str, rows: list[Mapping[str, Any]]) -> Iterator[Curve]:
    step = next(name for name in STEPS if name in rows[0])
    for metric in dict.fromkeys(name for row in rows for name in row if name not in (*STEPS, "stage", "warning")):
        points = tuple(
            (float(row[step]), float(row[metric]))
            for row in rows
            if step in row and isinstance(row.get(metric), int | float)
        )
        if points:
            yield Curve(stage, metric, step, points)


def _place(metric: str) -> int:
    return IMPORTANT.index(metric) if metric in IMPORTANT else len(IMPORTANT)
