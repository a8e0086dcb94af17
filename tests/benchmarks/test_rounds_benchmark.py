"""What rounds brought, read off a finished project: a row a round, with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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
    assert [row["round"] for row in result["gold"]] == [1, 2]
    assert [(row["policy"], row["kind"]) for row in result["refitting"]] == [
        ("began", "all"), ("began", "clear"), ("made", "all"), ("made", "clear"),
    ]  # fmt: skip
    first = result["gold"][0]
    assert first["gain_on_round_1"]["value"] == 0.0 and first["gold"]["n"] == 8
    assert 0 < result["refitting"][0]["pairs"] <= (8 + 16) * 6
    assert "gold, round 2" in capsys.readouterr().out


def test_accuracy_counts_prompts_and_never_pairs() -> None:
    """By hand, three answers to each of two prompts: one model is right on all pairs, one on 2 of 3 and on none."""
    gold = np.array([0.1, 0.2, 0.3, 0.5, 0.5, 0.9])
    first = np.array([1.0, 3.0, 2.0, 9.0, 9.0, 1.0])
    found = rounds.compare_accuracy(gold, gold, first, samples=3, least=0.0)
    assert found["pairs"] == 3 + 2
    assert found["refitted"]["value"] == 1.0
    assert found["round_1"]["value"] == pytest.approx((2 / 3 + 0) / 2) and found["round_1"]["n"] == 2
    assert found["difference"]["value"] == pytest.approx(2 / 3)
    assert rounds.compare_accuracy(gold, gold, first, samples=3, least=0.3)["pairs"] == 2
