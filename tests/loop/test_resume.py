"""Killed with SIGKILL at random moments and started again, a run ends with the same bytes in every artifact."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_project import build_tiny_project, hash_artifacts, start_accord

from accord import distributed, loop
from accord.config import load_config
from accord.feedback.store import VoteStore
from accord.types import Silence
from accord.workspace import Workspace

KILLS = int(os.environ.get("ACCORD_KILLS", "2"))
"""Runs that are killed once each; set ACCORD_KILLS=50 for the long version."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A tiny project run to its end in one go, and the seconds that it took."""
    folder = build_tiny_project(tmp_path_factory.mktemp("whole") / "project")
    started = time.monotonic()
    process = start_accord("run", str(folder), "--plain", "--yes")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return folder, time.monotonic() - started


ROUNDS = [
    f"--set={setting}"
    for setting in (
        "project.rounds=2",
        "rounds.reference=ema",
        "rounds.anchor_pairs=4",
        "alarm.votes=20",
        "tournament.votes=60",
    )
]
"""A second round, with an anchor of its own and pairs that are voted on again; votes at each look in both, and a choice
among checkpoints."""


def run_with_kills(folder: Path, seconds: float, source: random.Random, kills: int, *options: str) -> int:
    """Start the run and kill it `kills` times at a random moment; then let it end. Returns the kills that hit.

    seconds: of an uninterrupted run. The first kill leaves room for a machine that is quicker this time.
    """
    hit = 0
    for _ in range(kills):
        process = start_accord("run", str(folder), "--plain", "--yes", *options)
        try:
            process.communicate(timeout=source.uniform(0.2, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hit += 1
    process = start_accord("run", str(folder), "--plain", "--yes", *options)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return hit


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, uninterrupted: tuple[Path, float]) -> None:
    whole, seconds = uninterrupted
    folder = build_tiny_project(tmp_path / "project")
    assert run_with_kills(folder, seconds, random.Random(0), kills=4) > 0
    assert hash_artifacts(folder) == hash_artifacts(whole)
    votes = [[vote.id for vote in VoteStore(Workspace(path).database_url).votes()] for path in (folder, whole)]
    assert votes[0] == votes[1] and votes[0]


@pytest.mark.parametrize("number", range(KILLS))
def test_each_kill_has_an_equal_ending(tmp_path: Path, uninterrupted: tuple[Path, float], number: int) -> None:
    whole, seconds = uninterrupted
    folder = build_tiny_project(tmp_path / "project")
    run_with_kills(folder, seconds, random.Random(1000 + number), kills=1)
    assert hash_artifacts(folder) == hash_artifacts(whole)


def test_a_kill_in_either_of_two_rounds_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, folder = (build_tiny_project(tmp_path / name) for name in ("whole", "killed"))
    started = time.monotonic()
    run_with_kills(whole, 0.0, random.Random(0), 0, *ROUNDS)
    assert run_with_kills(folder, time.monotonic() - started, random.Random(7), 4, *ROUNDS) > 0
    hashes = hash_artifacts(folder)
    assert hashes == hash_artifacts(whole)
    assert {path.split("/")[0] for path in hashes} >= {"gate", "anchor", "samples", "votes", "policy", "tournament"}


def test_a_finished_run_does_nothing_and_its_report_can_be_rebuilt(uninterrupted: tuple[Path, float]) -> None:
    folder, _ = uninterrupted
    before = hash_artifacts(folder)
    process = start_accord("run", str(folder), "--plain", "--yes")
    assert process.communicate() and process.returncode == 0
    assert hash_artifacts(folder) == before
    report = folder / "rounds" / "001" / "report.json"
    first = json.loads(report.read_text())
    report.unlink()
    process = start_accord("report", str(folder))
    assert process.communicate() and process.returncode == 0
    assert json.loads(report.read_text()) == first
    for key in ("feedback", "reward_model", "policy", "evaluation", "timings_seconds", "peak_rss_bytes"):
        assert first[key], key


def test_of_several_processes_only_the_first_clears_what_a_finished_stage_left(
    uninterrupted: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that remove one folder at once fall over each other, and a restart under torchrun fails."""
    folder, _ = uninterrupted
    touched = []
    monkeypatch.setattr(Workspace, "scratch_folder", lambda self, kind, key: touched.append(kind) or folder / "none")
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    monkeypatch.setattr(distributed, "agree", lambda value: value or ["the first one's report"])
    found = loop.run(Workspace(folder), load_config(folder, []), Silence())
    assert (found.made, touched) == (0, []) and found.already_done > 5
    monkeypatch.setattr(distributed, "is_first", lambda: True)
    loop.run(Workspace(folder), load_config(folder, []), Silence())
    assert len(touched) == found.already_done


def test_from_the_policy_one_walks_back_to_each_vote(uninterrupted: tuple[Path, float]) -> None:
    workspace = Workspace(uninterrupted[0])
    (policy_key,) = (p.name for p in (workspace.root / "artifacts/policy").iterdir())
    policy = workspace.find("policy", policy_key)
    assert policy is not None
    (votes,) = [a for a in workspace.ancestors(policy) if a.kind == "votes"]
    snapshot = {row["id"] for row in votes.read_jsonl("votes.jsonl")}
    assert snapshot == {vote.id for vote in VoteStore(workspace.database_url).votes()}


def test_one_changed_setting_makes_anew_only_what_it_shapes(uninterrupted: tuple[Path, float]) -> None:
    folder, _ = uninterrupted
    process = start_accord("run", str(folder), "--plain", "--yes", "--set", "ppo.gamma=0.9")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    counts = {kind.name: len(list(kind.iterdir())) for kind in (folder / "artifacts").iterdir()}
    assert counts["policy"] == counts["evaluation"] == 2
    assert counts["reward_model"] == counts["samples"] == 1
