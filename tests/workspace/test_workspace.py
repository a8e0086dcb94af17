"""Artifacts are whole or absent, keys hash all that shaped them, lines cut by a kill are mended, one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from accord.errors import WorkspaceError
from accord.workspace import FolderCheckpoint, Workspace, append_line, compute_key, read_lines

SHAPE = {"stage": "votes", "version": 1, "section": {"a": 1}, "parents": {"p": "x/y"}, "seed": 3}


def make(workspace: Workspace, key: str, text: str = "hello", parents: dict[str, str] | None = None) -> None:
    with workspace.create("votes", key, stage="votes", version=1, section={}, parents=parents or {}, seed=0) as draft:
        (draft.folder / "text.txt").write_text(text)
        draft.summary["n"] = 1


@pytest.mark.parametrize(
    "change", [{"stage": "x"}, {"version": 2}, {"section": {"a": 2}}, {"parents": {"p": "x/z"}}, {"seed": 4}]
)
def test_each_input_changes_the_key(change: dict[str, object]) -> None:
    assert compute_key(**SHAPE) == compute_key(**dict(SHAPE))
    assert compute_key(**{**SHAPE, **change}) != compute_key(**SHAPE)


def test_an_artifact_is_found_once_whole_and_its_files_are_hashed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.find("votes", "k") is None
    make(workspace, "k")
    found = workspace.find("votes", "k")
    assert found and found.summary["n"] == 1
    assert found.manifest["files"]["text.txt"].startswith("2cf24dba5fb0a30e")  # SHA-256 of "hello"


def test_a_stage_that_fails_leaves_nothing_that_could_be_taken_for_finished(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        workspace.create("votes", "k", stage="votes", version=1, section={}, parents={}, seed=0) as draft,
    ):
        (draft.folder / "half.txt").write_text("half")
        raise ZeroDivisionError
    assert workspace.find("votes", "k") is None
    make(workspace, "k")
    assert not (tmp_path / "artifacts/votes/k/half.txt").exists()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    make(Workspace(tmp_path / "one"), "k")
    make(Workspace(tmp_path / "two"), "k")
    paths = [tmp_path / name / "artifacts/votes/k/manifest.json" for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_manifest_changed_by_hand_is_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    make(workspace, "k")
    (tmp_path / "artifacts/votes/k/manifest.json").write_text("{")
    with pytest.raises(WorkspaceError, match="delete that folder"):
        workspace.find("votes", "k")


def test_one_can_walk_from_an_artifact_back_to_where_it_came_from(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    make(workspace, "a")
    make(workspace, "b", parents={"from": "votes/a"})
    make(workspace, "c", parents={"from": "votes/b", "also": "votes/a"})
    last = workspace.find("votes", "c")
    assert last and [a.key for a in workspace.ancestors(last)] == ["c", "a", "b"]  # each once, parents in order of name


def test_a_line_cut_by_a_kill_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "hal')
    assert read_lines(path) == [{"n": 1}]
    append_line(path, {"n": 3})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_checkpoint_returns_tensors_and_state_bit_for_bit(tmp_path: Path) -> None:
    checkpoint = FolderCheckpoint(tmp_path)
    assert checkpoint.load() is None
    weights = torch.randn(3, 5, dtype=torch.float64)
    checkpoint.save({"w": weights, "rng": torch.get_rng_state()}, {"update": 3, "kl_coef": 0.1})
    checkpoint.save({"w": weights + 1}, {"update": 4, "kl_coef": 0.1 + 0.2})
    loaded = checkpoint.load()
    assert loaded is not None
    assert torch.equal(loaded[0]["w"], weights + 1) and loaded[1] == {"update": 4, "kl_coef": 0.1 + 0.2}


def test_two_runs_do_not_work_in_one_project_at_once(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import time
        from accord.workspace import Workspace
        with Workspace({str(tmp_path)!r}).lock():
            print("locked", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(WorkspaceError, match="another accord run"), Workspace(tmp_path).lock():
            pass
    finally:
        process.kill()
        process.wait()
    with Workspace(tmp_path).lock():
        pass
