"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be; inside a finalizer, or in a call that C code
makes and whose errors it drops (as when torch asks an object whether it has an attribute), the exception ends there and
the run would go on. So that Ctrl-C was pressed is also noted, and the display of progress, which all long work calls,
asks again. Leaves out what is said at the end (`app`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from accord.cli.progress import State
from accord.types import Progress


@contextmanager
def hear_interrupts() -> Iterator[Callable[[], None]]:
    """Within it Ctrl-C raises KeyboardInterrupt as ever; what it yields raises it again where it was pressed before.

    Where the process was started with Ctrl-C ignored (nohup), or another handler stands, that stays.
    """
    pressed = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def stop_if_pressed() -> None:
        if pressed:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop_if_pressed
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield stop_if_pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class InterruptibleProgress:
    """A display that looks for a Ctrl-C at every call. `stop_if_pressed` raises KeyboardInterrupt."""

    def __init__(self, display: Progress, stop_if_pressed: Callable[[], None]) -> None:
        self.display, self.stop_if_pressed = display, stop_if_pressed

    def stage(self, name: str, state: State, seconds: float = 0.0) -> None:
        """Shown first: the stage has finished, whatever was pressed."""
        self.display.stage(name, state, seconds)
        self.stop_if_pressed()

    def begin(self, task: str, total: int, unit: str) -> None:
        """As the display does."""
        self.display.begin(task, total, unit)
        self.stop_if_pressed()

    def advance(self, amount: int = 1) -> None:
        """As the display does."""
        self.display.advance(amount)
        self.stop_if_pressed()

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """As the display does."""
        self.display.log(metrics)
        self.stop_if_pressed()
