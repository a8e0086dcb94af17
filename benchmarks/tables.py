"""Results as text, JSON and numbers: tables, medians with their range, files that gather several runs, linear fits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.errors import ConfigError


def summarize(values: Sequence[float]) -> dict[str, float]:
    """`median`, `min` and `max` of the timed repetitions."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, as docs/performance.md takes it; floats with three significant digits, None as a dash."""
    lines = [list(header), ["---"] * len(header), *([format_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_cell(value: object) -> str:
    """One cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def check_earlier_rows(path: Path | None, benchmark: str) -> None:
    """Before hours of measuring: a file that `gather_rows` is to join must be this benchmark's.

    Raises:
        ConfigError: the file is there, and holds no result of `benchmark`.
    """
    if path is None or not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fits = found["benchmark"] == benchmark and all("contestant" in row for row in found["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ConfigError(f"--json names a file that holds no rows of benchmarks.{benchmark}", where=str(path),
                          mend="name another file, or one that this version has written")  # fmt: skip


def gather_rows(path: Path | None, rows: Sequence[dict[str, Any]], key: str = "name") -> list[dict[str, Any]]:
    """`rows` after those that an earlier run left in the file under another `key`: parts of one table, run apart."""
    if path is None or not path.is_file():
        return list(rows)
    new = {row[key] for row in rows}
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in earlier if row[key] not in new] + list(rows)


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Print the result as one line of JSON, and write it to `path` where one is given."""
    print(json.dumps(dict(result)))
    if path is not None:
        path.write_text(json.dumps(dict(result), indent=1) + "\n", encoding="utf-8")


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares y = intercept + slope x: `intercept`, `slope`, `r_squared` = 1 - residual / total sum of squares.

    `r_squared` is 1 where y does not vary, and nan where x does not.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if np.ptp(xs) == 0:
        return {"intercept": float(ys.mean()), "slope": float("nan"), "r_squared": float("nan")}
    slope, intercept = np.polyfit(xs, ys, 1)
    residual = float(((ys - intercept - slope * xs) ** 2).sum())
    total = float(((ys - ys.mean()) ** 2).sum())
    return {
        "intercept": float(intercept),
        "slope": float(slope),
        "r_squared": 1.0 if total == 0 else 1.0 - residual / total,
    }
