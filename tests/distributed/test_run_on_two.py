"""`accord run` on two processes: the same result as on one, a process killed midway, and torchrun's restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from tiny_project import ROOT, build_tiny_project, start_accord

from accord.workspace import Workspace, read_lines

SETTINGS = (
    "--plain", "--yes", "--set", "ppo.updates=4", "--set", "compute.timeout_seconds=60", "--set", "tournament.votes=40",
    "--set", "alarm.votes=12",
)  # fmt: skip
TWO = ("--set", "compute.processes=2")


def read_policy(folder: Path) -> dict[str, float]:
    """Each weight's sum of magnitudes, the evaluation's numbers, and what each checkpoint won."""
    (policy,) = (folder / "artifacts/policy").glob("*/adapter/*.safetensors")
    (evaluation,) = (folder / "artifacts/evaluation").glob("*/evaluation.json")
    found = {name: float(value.abs().sum()) for name, value in load_file(policy).items()}
    (tournament,) = (folder / "artifacts/tournament").glob("*/tournament.json")
    contest = json.loads(tournament.read_text())
    found |= {f"won by {row['update']}": row["share"]["value"] for row in contest["standings"]}
    found |= {"kept": contest["update"], "proxy": json.loads(evaluation.read_text())["policy"]["proxy"]["value"]}
    return found


def wait_for_update(folder: Path, update: int, process: subprocess.Popen[str], seconds: float = 90.0) -> None:
    """Until the live metrics hold so many PPO updates."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rows = read_lines(folder / "rounds/001/metrics.jsonl")
        if any(row["stage"] == "policy" and row.get("update") == update for row in rows):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("the run never came so far")


def kill_a_worker(parent: subprocess.Popen[str]) -> None:
    """SIGKILL for the last of the processes that `parent` has started."""
    workers = [child for child in psutil.Process(parent.pid).children(recursive=True) if "run" in child.cmdline()]
    os.kill(max(worker.pid for worker in workers), signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_tiny_project(tmp_path_factory.mktemp("alone") / "project")
    process = start_accord("run", str(folder), *SETTINGS)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return folder


def test_two_processes_make_the_same_policy_and_one_speaks(alone: Path, tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    process = start_accord("run", str(folder), *SETTINGS, *TWO)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert output.count("001/policy: finished") == 1
    assert output.count("done.") == 1
    assert read_policy(folder) == pytest.approx(read_policy(alone), rel=1e-3, abs=1e-4)
    kinds = [row["stage"] for row in Workspace(folder).read_ledger(1)]
    assert len(kinds) == len(set(kinds)) == len(Workspace(alone).read_ledger(1))


def lose_a_worker(folder: Path, *command: str) -> None:
    """Start a run of two, kill a worker after the second update: it ends in words, with nothing half made."""
    process = start_accord(*command)
    wait_for_update(folder, 2, process)
    kill_a_worker(process)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 8, output
    assert "goes on from the last checkpoint" in output.replace("\n", " ")
    assert not list((folder / "artifacts/policy").glob("[!.]*"))


def go_on(folder: Path, *command: str) -> None:
    """Run to the end from the last checkpoint."""
    process = start_accord(*command)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    rows = [row for row in read_lines(folder / "rounds/001/metrics.jsonl") if row["stage"] == "policy"]
    assert [row["update"] for row in rows].count(1) == 1, "it began anew instead of going on"


def test_a_killed_worker_ends_the_run_and_it_goes_on_where_it_was(alone: Path, tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    lose_a_worker(folder, "run", str(folder), *SETTINGS, *TWO)
    go_on(folder, "run", str(folder), *SETTINGS)  # with one process this time
    assert read_policy(folder) == pytest.approx(read_policy(alone), rel=1e-3, abs=1e-4)


def test_a_sharded_run_that_loses_a_worker_goes_on_to_the_same_policy(tmp_path: Path) -> None:
    """All weights learn, parted over two processes, one of which is killed; alone they learn the same."""
    whole = ("--set", "model.adapter=full", "--set", "model.split=0", "--set", "ppo.micro_batch_size=1")
    one, two = (build_tiny_project(tmp_path / name) for name in ("one", "two"))
    process = start_accord("run", str(one), *SETTINGS, *whole)
    output = process.communicate()[0]
    assert process.returncode == 0, output

    sharded = ("run", str(two), *SETTINGS, *whole, *TWO, "--set", "compute.shard=full")
    lose_a_worker(two, *sharded)
    go_on(two, *sharded)
    assert read_policy(two) == pytest.approx(read_policy(one), rel=1e-3, abs=1e-4)


def test_torchrun_starts_again_after_a_loss(alone: Path, tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = subprocess.Popen(
        [*command, "-m", "accord", "run", str(folder), *SETTINGS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_update(folder, 2, process)
    kill_a_worker(process)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    rows = [row for row in read_lines(folder / "rounds/001/metrics.jsonl") if row["stage"] == "policy"]
    assert [row["update"] for row in rows].count(1) == 1
    assert read_policy(folder) == pytest.approx(read_policy(alone), rel=1e-3, abs=1e-4)
