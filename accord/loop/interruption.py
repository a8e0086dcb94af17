"""Progress of a task that may be interrupted by another, and then goes on where it was.

Implements `types.Progress` around another one. Leaves out how progress looks (`cli.progress`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from accord.types import Progress


class Interruptible:
    """Forwards progress, and knows the task at hand."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.task: tuple[str, int, str] | None = None
        self.done = 0

    def stage(self, name: str, state: Literal["started", "finished", "already done"], seconds: float = 0.0) -> None:
        """As `Progress.stage`."""
        self.inner.stage(name, state, seconds)

    def begin(self, task: str, total: int, unit: str) -> None:
        """As `Progress.begin`."""
        self.task, self.done = (task, total, unit), 0
        self.inner.begin(task, total, unit)

    def advance(self, amount: int = 1) -> None:
        """As `Progress.advance`."""
        self.done += amount
        self.inner.advance(amount)

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """As `Progress.log`."""
        self.inner.log(metrics)

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Whoever shares the inner progress may begin a task meanwhile; afterwards the one of before is shown again."""
        yield
        if self.task:
            self.inner.begin(*self.task)
            self.inner.advance(self.done)
