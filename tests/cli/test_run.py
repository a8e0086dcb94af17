"""The commands on a real tiny project: plan, run, events, status, report, Ctrl-C and on again; the doctor."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import build_tiny_model

from accord.cli import main

ROOT = Path(__file__).parents[2]
Accord = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in it."""
    folder = tmp_path_factory.mktemp("place")
    build_tiny_model(folder / "tiny-model")
    return folder


@pytest.fixture(scope="module")
def accord(place: Path) -> Accord:
    """The command as a process would run it, in `place` and 60 columns, but inside this one: torch is imported once."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(place),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setenv("COLUMNS", "60")
            patch.setattr(sys, "argv", ["accord", *arguments])
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def finished(place: Path, accord: Accord) -> list[dict]:
    """The events of a whole run of the example `tiny`."""
    assert accord("init", "tiny", "--example", "tiny").returncode == 0
    done = accord("run", "tiny", "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_tells_its_plan_its_stages_and_its_end(finished: list[dict], place: Path) -> None:
    kinds = [event["event"] for event in finished]
    assert (kinds[0], kinds[-1]) == ("plan", "finished")
    assert {"plan", "stage", "progress", "metrics", "finished"} == set(kinds)
    planned = finished[0]["stages"]
    assert all(not stage["done"] and stage["expected_seconds"] > 0 for stage in planned)
    told = [event["stage"] for event in finished if event["event"] == "stage" and event["state"] == "finished"]
    assert told == [stage["name"] for stage in planned]
    assert (place / finished[-1]["report"]).is_file()
    assert (finished[-1]["made"], finished[-1]["already_done"]) == (len(planned), 0)


def test_progress_never_runs_past_its_end(finished: list[dict]) -> None:
    for event in finished:
        if event["event"] == "progress":
            assert 0 < event["done"] <= event["total"], event
            assert event["units_per_second"] > 0


def test_a_finished_project_has_nothing_left_to_do(finished: list[dict], accord: Accord) -> None:
    status = json.loads(accord("status", "tiny", "--json").stdout)
    assert (status["event"], status["project"], status["next"]) == ("status", "tiny", None)
    assert all(stage["done"] for stage in status["stages"])
    again = accord("run", "tiny")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") == len(status["stages"])
    assert max(len(line) for line in accord("status", "tiny").stdout.splitlines()) <= 60


def test_another_setting_says_what_has_to_be_made_anew(finished: list[dict], accord: Accord) -> None:
    status = json.loads(accord("status", "tiny", "--json", "--set", "ppo.kl_coef=0.2").stdout)
    assert status["next"] == "001/policy"
    done = accord("status", "tiny", "--set", "ppo.kl_coef=0.2")
    assert "go on with: accord run tiny --set ppo.kl_coef=0.2" in " ".join(done.stdout.split())


def test_the_report_is_written_anew_to_the_same_bytes(finished: list[dict], accord: Accord, place: Path) -> None:
    report = place / "tiny/rounds/001/report.json"
    before = report.read_bytes()
    report.unlink()
    done = accord("report", "tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tiny/rounds/001/report.html"]
    assert report.read_bytes() == before


def test_an_unknown_name_is_refused_before_any_work(accord: Accord, finished: list[dict]) -> None:
    done = accord("run", "tiny", "--set", "ppo.objective=ppo_clp")
    assert done.returncode == 2
    assert "ppo.objective" in done.stderr
    assert "ppo_clip" in done.stderr
    assert done.stdout == ""


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """Processes that start now hear Ctrl-C, also where the tests run in the background of a script, which does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_a_project_that_goes_on(accord: Accord, place: Path, heard_interrupts: None) -> None:
    assert accord("init", "stopped", "--example", "tiny").returncode == 0
    command = [sys.executable, "-m", "accord", "run", "stopped", "--json", "--set", "ppo.updates=3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "stage" and (event["stage"], event["state"]) == ("001/reward_model", "started"):
                process.send_signal(signal.SIGINT)
                break
        rest, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in words
    (told,) = re.findall(r"stopped; go on with: accord (.+)", words)
    assert json.loads(rest.splitlines()[-1]) == {"event": "stopped", "command": f"accord {told}"}
    done = accord(*told.split())
    assert done.returncode == 0, done.stderr
    assert "001/samples: already done" in done.stdout
    assert "001/reward_model: finished" in done.stdout


def test_the_doctor_passes_a_sound_model(accord: Accord) -> None:
    done = accord("doctor", "--model", "tiny-model", "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert {check["event"] for check in checks} == {"check"}
    assert all(check["passed"] for check in checks)


def test_the_doctor_refuses_a_template_that_never_ends_an_answer(accord: Accord, place: Path) -> None:
    template = build_tiny_model(place / "sick-model") / "chat_template.jinja"
    text = template.read_text()
    assert "<|im_end|>" in text
    template.write_text(text.replace("<|im_end|>", ""))
    done = accord("doctor", "--model", "sick-model", "--dtype", "float32")
    assert done.returncode == 4
    assert "✗ chat_template" in done.stdout
    assert "not fit to be optimised: chat_template" in done.stderr


def list_keys(value: object) -> set[str]:
    """Every key of a JSON value, at any depth; keys that are data (names of annotators, stages, bins) are left out."""
    if isinstance(value, dict):
        data = {"timings_seconds", "parents"}
        own = {key for key in value if isinstance(key, str)}
        return own.union(*(list_keys(item) for key, item in value.items() if key not in data), set())
    if isinstance(value, list):
        return set().union(*(list_keys(item) for item in value), set())
    return set()


def test_every_metric_and_every_key_of_the_report_is_in_the_docs(finished: list[dict], place: Path) -> None:
    docs = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    words = {word for code in re.findall(r"`([^`\n]+)`", docs) for word in re.findall(r"\w+", code)}
    rounds = place / "tiny/rounds/001"
    rows = [json.loads(line) for line in (rounds / "metrics.jsonl").read_text().splitlines()]
    metrics = set().union(*rows)
    report = list_keys(json.loads((rounds / "report.json").read_text()))
    ledger = set().union(*(json.loads(line) for line in (rounds / "ledger.jsonl").read_text().splitlines()))
    assert len(metrics) > 10
    assert len(report) > 30
    assert {"metrics": metrics - words, "report": report - words, "ledger": ledger - words} == {
        "metrics": set(),
        "report": set(),
        "ledger": set(),
    }
