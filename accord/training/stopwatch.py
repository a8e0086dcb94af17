"""Seconds by phase, for progress alone: no clock ever enters a history or an artifact."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the seconds between laps under names; `read` gives them as `NAME_seconds` and starts afresh."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The time since the last lap belongs to `name`."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last `read`."""
        seconds = {f"{name}_seconds": round(value, 3) for name, value in self._seconds.items()}
        self._seconds = {}
        return seconds
