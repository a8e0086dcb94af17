"""How long work shows itself: bars on a terminal, plain lines elsewhere, one JSON event a line for machines.

Implements `types.Progress` three times, with rate and time left. Leaves out what is measured; the events are listed in
docs/cli.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from accord.cli.words import say_count, say_metrics, say_seconds
from accord.types import Progress

State = Literal["started", "finished", "already done"]
LINE_EVERY_SECONDS = 5.0
EVENT_EVERY_SECONDS = 1.0


class Meter:
    """How far one task is: done, rate since its beginning, seconds left (None before anything is done)."""

    def __init__(self, task: str, total: int, unit: str, clock: Callable[[], float]) -> None:
        self.task, self.total, self.unit = task, total, unit
        self.done = 0
        self.clock = clock
        self.began = clock()

    @property
    def seconds(self) -> float:
        """Since the task began."""
        return self.clock() - self.began

    @property
    def rate(self) -> float:
        """Units a second; 0 at the very beginning."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far."""
        return max(0, self.total - self.done) / self.rate if self.rate else None


class _Quiet:
    """What the two line-based displays share: a meter, and how long ago it was shown."""

    def __init__(self, stream: TextIO, every_seconds: float, clock: Callable[[], float]) -> None:
        self.stream, self.every_seconds, self.clock = stream, every_seconds, clock
        self.meter: Meter | None = None
        self.shown = -float("inf")

    def begin(self, task: str, total: int, unit: str) -> None:
        """Start a meter; it is shown when something is done."""
        self.meter = Meter(task, total, unit, self.clock)
        self.shown = self.clock()

    def due(self) -> bool:
        """Whether it is time to show the meter again: every few seconds, and at the end of the task."""
        meter, now = self.meter, self.clock()
        if meter is None or (now - self.shown < self.every_seconds and meter.done < meter.total):
            return False
        self.shown = now
        return True

    def write(self, line: str) -> None:
        """One line, at once."""
        self.stream.write(line + "\n")
        self.stream.flush()


class PlainProgress(_Quiet):
    """Plain lines: one for each stage, and for the task at most one each few seconds. For logs and pipes."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream or sys.stdout, LINE_EVERY_SECONDS, clock)
        self.metrics_shown = -float("inf")

    def stage(self, name: str, state: State, seconds: float = 0.0) -> None:
        """`001/policy: started`."""
        self.write(f"{name}: {state}" + (f" after {say_seconds(seconds)}" if state == "finished" else ""))

    def advance(self, amount: int = 1) -> None:
        """`  sampling: 120 of 400 tokens, 35 a second, 8 s left`."""
        if self.meter is None:
            return
        self.meter.done += amount
        if self.due():
            meter, left = self.meter, self.meter.seconds_left
            done = f"{say_count(meter.done)} of {say_count(meter.total)} {meter.unit}"
            rest = f", {say_seconds(left)} left" if left else ""
            self.write(f"  {meter.task}: {done}, {say_count(meter.rate)} a second{rest}")

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """The row's first metrics, at most one row each few seconds; all of them are in metrics.jsonl."""
        if self.clock() - self.metrics_shown >= self.every_seconds:
            self.metrics_shown = self.clock()
            self.write("  " + say_metrics(metrics, 110))


class JsonProgress(_Quiet):
    """One JSON object a line: `stage`, `progress`, `metrics`, and whatever `emit` is given."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream or sys.stdout, EVENT_EVERY_SECONDS, clock)

    def emit(self, event: str, **fields: Any) -> None:
        """One event."""
        self.write(json.dumps({"event": event, **fields}, ensure_ascii=False))

    def stage(self, name: str, state: State, seconds: float = 0.0) -> None:
        """A `stage` event."""
        self.emit("stage", stage=name, state=state, seconds=round(seconds, 3))

    def advance(self, amount: int = 1) -> None:
        """A `progress` event, at most one a second and one at the end."""
        if self.meter is None:
            return
        self.meter.done += amount
        if self.due():
            meter, left = self.meter, self.meter.seconds_left
            self.emit(
                "progress", task=meter.task, done=meter.done, total=meter.total, unit=meter.unit,
                seconds=round(meter.seconds, 3), units_per_second=round(meter.rate, 3),
                seconds_left=None if left is None else round(left, 3),
            )  # fmt: skip

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """A `metrics` event."""
        self.emit("metrics", metrics=dict(metrics))


class _Rate(ProgressColumn):
    """`35 tokens/s, 8 s left`."""

    def render(self, task: Task) -> Text:
        """The rate of the last half minute, and what it makes of the rest."""
        if not task.speed:
            return Text("")
        left = f", {say_seconds(task.time_remaining)} left" if task.time_remaining else ""
        return Text(f"{say_count(task.speed)} {task.fields['unit']}/s{left}", style="cyan", overflow="ellipsis")


class BarProgress:
    """One bar for the task at work, the stages above it as they finish, and the latest metrics. For terminals."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.display = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            _Rate(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
            refresh_per_second=4,
        )
        self.task: TaskID | None = None

    def stage(self, name: str, state: State, seconds: float = 0.0) -> None:
        """A line for a stage that is done; a restless bar for one that has not said yet how much it has to do."""
        self._clear()
        if state == "started":
            self.task = self.display.add_task(name, total=None, unit="")
        else:
            took = f" in {say_seconds(seconds)}" if state == "finished" else ""
            self.console.print(f"[green]✓[/] {name} [dim]{state}{took}[/]", highlight=False)

    def begin(self, task: str, total: int, unit: str) -> None:
        """A new bar in the place of the old one."""
        self._clear()
        self.task = self.display.add_task(task, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        """Moves the bar."""
        if self.task is not None:
            self.display.advance(self.task, amount)

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """The row's first metrics, as many as the terminal is wide."""
        self.console.print(f"  [dim]{say_metrics(metrics, self.console.width - 4)}[/]", highlight=False)

    def _clear(self) -> None:
        if self.task is not None:
            self.display.remove_task(self.task)
            self.task = None


@contextmanager
def show_progress(console: Console, *, as_json: bool, plain: bool, silent: bool = False) -> Iterator[Progress]:
    """The display that suits: JSON events where asked, bars on a terminal, plain lines otherwise; or none."""
    if silent:
        with open(os.devnull, "w") as nowhere:
            yield PlainProgress(nowhere)
    elif as_json:
        yield JsonProgress()
    elif plain or not console.is_terminal:
        yield PlainProgress()
    else:
        bars = BarProgress(console)
        with bars.display:
            yield bars
