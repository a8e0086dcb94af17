"""Several processes for a test: each runs functions of `work.py`, joined over gloo, and leaves a file of results."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def start_crew(names: Sequence[str], folder: Path, count: int) -> list[subprocess.Popen[str]]:
    """`count` processes that run the functions `names` of `tests.distributed.work`, started as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.work", str(folder), *names],
            cwd=ROOT,
            env={**os.environ, **{k: str(v) for k, v in shared.items()}, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def run_crew(names: Sequence[str], folder: Path, count: int, seconds: float = 120.0) -> list[dict[str, Any]]:
    """What each process found, by rank: a dictionary from a function's name to what it returned."""
    for process in start_crew(names, folder, count):
        output = process.communicate(timeout=seconds)[0]
        assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]
