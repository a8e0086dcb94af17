"""Numbers and commands as a person reads them: durations, sizes, counts, the command that goes on with a project."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def say_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def say_count(number: float) -> str:
    """`950`, `12.3 k`, `4.5 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            scale = {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def say_bytes(number: float) -> str:
    """`512 MB`, `1.4 GB` (powers of ten)."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def say_metrics(metrics: Mapping[str, float | int | str], width: int) -> str:
    """`name value  name value ...`: as many of the row's metrics, in its order, as fit in `width` characters."""
    line = ""
    for name, value in metrics.items():
        part = f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        if len(line) + 2 + len(part) > width:
            break
        line += ("  " if line else "") + part
    return line


def say_command(command: str, folder: Path, overrides: Sequence[str]) -> str:
    """The command line that does `command` on the same project with the same overrides."""
    settings = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["accord", command, *([] if folder == Path() else [str(folder)]), *settings])
