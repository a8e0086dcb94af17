"""What rounds brought, read off a finished project: a row a round, with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_project import build_tiny_project

from accord import loop
from accord.config import load_config
from accord.workspace import Workspace
from benchmarks import rounds


def test_a_row_a_round_for_gold_and_for_refitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, found = build_tiny_project(tmp_path / "project"), tmp_path / "found.json"
    settings = ["project.rounds=2", "policy.method=rejection_sampling", "rejection_sampling.candidates=2"]
    loop.run(Workspace(folder), load_config(folder, settings), rounds.Silence())
    options = [f"--set={setting}" for setting in settings]
    monkeypatch.setattr("sys.argv", ["rounds", str(folder), *options, "--samples=4", f"--json={found}"])
    rounds.main()
    result = json.loads(found.read_text())
    assert [row["round"] for row in result["gold"]] == [1, 2] and [row["round"] for row in result["refitting"]] == [2]
    first = result["gold"][0]
    assert first["gain_on_round_1"]["value"] == 0.0 and first["gold"]["n"] == 8
    assert 0 < result["refitting"][0]["pairs"] <= 16
    assert "gold, round 2" in capsys.readouterr().out
