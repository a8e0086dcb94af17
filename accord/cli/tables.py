"""The plan, the state of a project and the doctor's findings as tables that also fit a terminal of 60 columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accord.cli.words import say_bytes, say_count, say_seconds


class Planned(Protocol):
    """What a row shows; `loop.PlannedStage` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def done(self) -> bool: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def expected_seconds(self) -> float: ...  # noqa: D102
    @property
    def expected_bytes(self) -> int: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102


class Check(Protocol):
    """What a row of the doctor shows; `models.CheckResult` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def passed(self) -> bool: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102


def print_summary(console: Console, report: Path) -> None:
    """The report's headline, key numbers and warnings: what a person wants to read first when a run has ended."""
    from accord.evaluation import summarise_report

    console.print()
    for line in summarise_report(json.loads(report.read_text(encoding="utf-8"))):
        console.print(escape(line), soft_wrap=True)
    console.print()


def build_plan_table(stages: Sequence[Planned]) -> Table:
    """One row a stage: tokens, expected time and memory, done or to do; and the sum of what is to do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, show_footer=True)
    todo = [stage for stage in stages if not stage.done]
    seconds = sum(stage.expected_seconds for stage in todo)
    peak = max((stage.expected_bytes for stage in todo), default=0)
    table.add_column("stage", footer=f"{len(todo)} to do", overflow="fold")
    table.add_column("tokens", justify="right", no_wrap=True, footer=say_count(sum(stage.tokens for stage in todo)))
    table.add_column("time", justify="right", no_wrap=True, footer=say_seconds(seconds) if todo else "")
    table.add_column("memory", justify="right", no_wrap=True, footer=say_bytes(peak) if todo else "")
    table.add_column("", no_wrap=True)
    for stage in stages:
        if stage.done:
            table.add_row(f"[dim]{stage.name}[/]", "", "", "", "[green]done[/]")
        else:
            cost = say_seconds(stage.expected_seconds), say_bytes(stage.expected_bytes)
            table.add_row(stage.name, say_count(stage.tokens) if stage.tokens else "", *cost, "to do")
    return table


def list_notes(stages: Sequence[Planned]) -> list[str]:
    """What is to be said of stages that are still to do, a line each."""
    return [f"{stage.name}: {stage.note}" for stage in stages if stage.note and not stage.done]


def build_checks_table(checks: Sequence[Check]) -> Table:
    """One row a check of the doctor: passed or not, its name, what it means, what was measured."""
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        table.add_row(mark, check.name, f"[dim]{escape(check.detail)}[/]")
    return table


def print_plan(console: Console, stages: Sequence[Planned], available_bytes: int) -> None:
    """The table, and a warning where memory will not do."""
    console.print(build_plan_table(stages))
    for note in list_notes(stages):
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    peak = max((stage.expected_bytes for stage in stages if not stage.done), default=0)
    if peak > available_bytes:
        needs = f"needs about {say_bytes(peak)} of memory, {say_bytes(available_bytes)} are free"
        console.print(f"[yellow]This run {needs}: lower sample.batch_size or the micro_batch_sizes.[/]")
