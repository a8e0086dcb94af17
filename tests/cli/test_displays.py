"""Long work shows itself truthfully, sparingly, and inside a narrow terminal."""

import io
import json
from dataclasses import dataclass

import pytest
from rich.console import Console

from accord.cli.progress import BarProgress, JsonProgress, PlainProgress
from accord.cli.tables import build_plan_table, print_plan
from accord.cli.words import say_bytes, say_command, say_count, say_metrics, say_seconds


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Row:
    name: str
    done: bool
    tokens: int = 0
    expected_seconds: float = 0.0
    expected_bytes: int = 0
    note: str = ""


ROWS = [
    Row("001/prompts", True),
    Row("001/heldout_reward_model", False, 1_234_567, 95.0, 1_100_000_000),
    Row("001/policy", False, 20_000_000, 3700.0, 2_400_000_000),
]


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (12.3, "12 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (1500, "25 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds_as_said(seconds: float, words: str) -> None:
    assert say_seconds(seconds) == words


@pytest.mark.parametrize(
    "number, words", [(0, "0"), (2.5, "2.5"), (950, "950"), (12_345, "12.3 k"), (4.5e6, "4.5 M"), (2e9, "2.0 G")]
)
def test_counts_as_said(number: float, words: str) -> None:
    assert say_count(number) == words


def test_bytes_as_said() -> None:
    assert (say_bytes(512e6), say_bytes(1.44e9)) == ("512 MB", "1.4 GB")


def test_metrics_end_where_the_line_does() -> None:
    row = {"update": 3, "score": 0.123456, "kl_nats": 2.0, "very_long_name_of_a_metric": 1.0}
    assert say_metrics(row, 40) == "update 3  score 0.1235  kl_nats 2"
    assert say_metrics(row, 5) == ""


def test_a_command_can_be_pasted_back() -> None:
    from pathlib import Path

    assert say_command("run", Path(), []) == "accord run"
    assert (
        say_command("run", Path("my project"), ["project.name=a b"])
        == "accord run 'my project' --set 'project.name=a b'"
    )


def test_plain_lines_tell_rate_and_time_left_at_most_every_five_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    progress = PlainProgress(out, clock)
    progress.stage("001/samples", "started")
    progress.begin("sampling", 400, "tokens")
    for _ in range(40):
        clock.now += 1.0
        progress.advance(10)
    progress.stage("001/samples", "finished", 40.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "001/samples: started"
    assert lines[1] == "  sampling: 50 of 400 tokens, 10 a second, 35 s left"
    assert lines[-2] == "  sampling: 400 of 400 tokens, 10 a second"
    assert lines[-1] == "001/samples: finished after 40 s"
    assert len(lines) == 2 + 8


def test_plain_lines_do_not_flood_with_metrics() -> None:
    clock, out = Clock(), io.StringIO()
    progress = PlainProgress(out, clock)
    for update in range(20):
        clock.now += 1.0
        progress.log({"update": update, "score": 0.5})
    assert out.getvalue().splitlines()[:2] == ["  update 0  score 0.5", "  update 5  score 0.5"]


def test_json_events_are_one_object_a_line() -> None:
    clock, out = Clock(), io.StringIO()
    progress = JsonProgress(out, clock)
    progress.stage("001/samples", "started")
    progress.begin("sampling", 40, "tokens")
    for _ in range(8):
        clock.now += 0.5
        progress.advance(5)
    progress.log({"update": 1, "score": 0.5})
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["stage", "progress", "progress", "progress", "progress", "metrics"]
    assert events[1] == {
        "event": "progress", "task": "sampling", "done": 10, "total": 40, "unit": "tokens",
        "seconds": 1.0, "units_per_second": 10.0, "seconds_left": 3.0,
    }  # fmt: skip
    assert (events[4]["done"], events[4]["seconds_left"]) == (40, 0.0)
    assert events[5]["metrics"] == {"update": 1, "score": 0.5}


def render(width: int, rows: list[Row]) -> str:
    console = Console(width=width, file=io.StringIO())
    print_plan(console, rows, available_bytes=10**12)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_plan_fits_the_terminal_and_loses_nothing(width: int) -> None:
    text = render(width, ROWS)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for part in ("001/heldout_reward_model", "1.2 M", "1 min 35 s", "1.1 GB", "done", "to do", "2 to do", "1 h 03 min"):
        assert part in text


def test_a_finished_plan_has_nothing_to_do() -> None:
    assert "0 to do" in render(60, ROWS[:1])
    assert build_plan_table(ROWS[:1]).row_count == 1


def test_too_little_memory_is_told_before_the_run() -> None:
    console = Console(width=60, file=io.StringIO())
    print_plan(console, ROWS, available_bytes=2_000_000_000)
    words = " ".join(console.file.getvalue().split())
    assert "needs about 2.4 GB of memory, 2.0 GB are free" in words


def test_bars_fit_sixty_columns() -> None:
    console = Console(width=60, file=io.StringIO(), force_terminal=True, color_system=None)
    bars, clock = BarProgress(console), Clock()
    bars.display.get_time = clock
    with bars.display:
        bars.stage("001/prompts", "already done")
        bars.stage("001/heldout_reward_model", "started")
        bars.begin("scoring test pairs", 1000, "pairs")
        for _ in range(4):
            clock.now += 1.0
            bars.advance(100)
        bars.log({"epoch": 1, "validation_loss": 0.6931, "validation_accuracy": 0.5, "learning_rate": 1e-4})
        bars.display.refresh()
        bars.stage("001/heldout_reward_model", "finished", 75.0)
    import re

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    lines = [part for line in text.splitlines() for part in line.split("\r")]
    assert max(len(line) for line in lines) <= 60
    assert "✓ 001/prompts already done" in lines
    assert "✓ 001/heldout_reward_model finished in 1 min 15 s" in lines
    (bar,) = {line.rstrip() for line in lines if "40%" in line}
    assert bar.startswith("scoring test pairs ")
    assert bar.endswith("100 pairs/s, 6.0 s left")
    assert any("validation_loss 0.6931" in line for line in lines)
