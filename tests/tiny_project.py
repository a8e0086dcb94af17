"""A whole project that takes seconds: the tiny example's settings and a tiny random model made on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import build_tiny_model

from accord import loop
from accord.cli.project import create_project
from accord.config import load_config
from accord.types import Silence
from accord.workspace import Artifact, Workspace

ROOT = Path(__file__).resolve().parents[1]


def build_tiny_project(folder: Path, *, seed: int = 0) -> Path:
    """`accord init FOLDER --example tiny`, and the model that its settings name."""
    create_project(folder, "tiny")
    build_tiny_model(folder / "tiny-model", "llama", seed=seed)
    return folder


def start_accord(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, with one thread, as a user would start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "accord", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hash_artifacts(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of every finished artifact, and the list of what else lies there."""
    root = Workspace(folder).root / "artifacts"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run_rounds(folder: Path, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Run the loop; the report of every round."""
    loop.run(Workspace(folder), load_config(folder, settings), Silence())
    paths = sorted((folder / "rounds").glob("*/report.json"))
    return [json.loads(path.read_text()) for path in paths]


def find_stages(folder: Path, settings: Sequence[str], kind: str) -> list[Artifact]:
    """The finished artifacts of one kind, by round."""
    workspace = Workspace(folder)
    stages = [s for s in loop.build_stages(workspace, load_config(folder, settings)) if s.kind == kind]
    found = [workspace.find(kind, stage.key) for stage in stages]
    return [artifact for artifact in found if artifact]
