"""Ctrl-C stops a run also where Python drops its exception, and is left alone where it is ignored."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord import loop
from accord.cli import app
from accord.cli.interrupts import hear_interrupts
from accord.cli.project import create_project
from accord.types import Progress


def test_a_swallowed_ctrl_c_stops_the_run_at_its_next_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def run(workspace: object, config: object, progress: Progress, **options: Any) -> None:
        progress.stage("001/policy", "started")
        with suppress(KeyboardInterrupt):  # as in a finalizer, or in C code that clears the error
            signal.raise_signal(signal.SIGINT)
        told.append("still at work")
        progress.log({"update": 1})
        told.append("went on")

    create_project(tmp_path / "project", "tiny")
    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(loop, "plan", lambda workspace, config: [])
    done = CliRunner().invoke(app, ["run", str(tmp_path / "project"), "--plain"])
    assert done.exit_code == 130
    assert told == ["still at work"]
    assert "stopped; go on with: accord run" in done.output
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_still_rises_where_the_work_stands() -> None:
    with hear_interrupts() as stop_if_pressed:
        stop_if_pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop_if_pressed()


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hear_interrupts() as stop_if_pressed:
            signal.raise_signal(signal.SIGINT)
            stop_if_pressed()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
