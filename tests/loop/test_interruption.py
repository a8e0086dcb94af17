"""A task that another one interrupts is shown again afterwards, where it was."""

from __future__ import annotations

import io

from accord.cli.progress import PlainProgress
from accord.loop.interruption import Interruptible


def test_a_task_goes_on_where_it_was() -> None:
    stream = io.StringIO()
    inner = PlainProgress(stream, clock=iter(range(0, 10_000, 10)).__next__)
    task = Interruptible(inner)
    task.begin("ppo", 16, "updates")
    task.advance(3)
    with task.interrupted():
        inner.begin("people vote", 40, "votes")
        inner.advance(40)
    task.advance()
    lines = [line.split(",")[0].strip() for line in stream.getvalue().splitlines()]
    assert lines[:2] == ["ppo: 3 of 16 updates", "people vote: 40 of 40 votes"]
    assert lines[-1] == "ppo: 4 of 16 updates"


def test_without_a_task_an_interruption_leaves_none() -> None:
    stream = io.StringIO()
    inner = PlainProgress(stream)
    with Interruptible(inner).interrupted():
        inner.begin("people vote", 40, "votes")
    assert inner.meter is not None and inner.meter.task == "people vote"
