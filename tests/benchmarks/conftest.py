"""A tiny model for benchmarks; the children of a benchmark run in this process, where they need not start up."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import build_tiny_model

from benchmarks import generate, gradients, kernels, ppo, precision, scaling, time_to_reward


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("benchmark") / "tiny", layers=3)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(module: str, work: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
        child = importlib.import_module(module)
        measure = getattr(child, "measure_ours", None) or child.measure
        result: dict[str, Any] = json.loads(json.dumps(measure(json.loads(json.dumps(dict(work))))))
        return result

    for module in (generate, gradients, kernels, ppo, precision, scaling, time_to_reward):
        monkeypatch.setattr(module, "run_ours", run)
