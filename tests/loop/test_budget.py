"""A memory budget in the loop: refused before work where it cannot be kept, and otherwise without effect on results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import build_tiny_project, hash_artifacts

from accord import loop
from accord.config import load_config
from accord.errors import ConfigError
from accord.loop import budget
from accord.training.memory import Fit, Workload
from accord.types import Silence
from accord.workspace import Workspace


def run(folder: Path, overrides: Sequence[str]) -> None:
    loop.run(Workspace(folder), load_config(folder, overrides), Silence())


@pytest.mark.parametrize(
    ("gigabytes", "message"), [("0.3", "GB for a single sequence"), ("1e6", "where the device has")]
)
def test_an_impossible_budget_is_refused_before_any_work(tmp_path: Path, gigabytes: str, message: str) -> None:
    folder = build_tiny_project(tmp_path / "project")
    with pytest.raises(ConfigError, match=message) as refused:
        run(folder, [f"compute.memory_gb={gigabytes}"])
    assert refused.value.where == "compute.memory_gb"
    assert refused.value.mend
    assert hash_artifacts(folder) == {}


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_a_budget_is_a_number(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="memory_gb"):
        load_config(build_tiny_project(tmp_path / "project"), [f"compute.memory_gb={value}"])


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        (["reward_model.members=2"], {"sampling", "PPO", "a reward model"}),
        (["model.adapter=full"], {"sampling", "PPO", "a reward model"}),
        (["policy.method=rejection_sampling", "sft.epochs=1"], {"sampling", "a reward model", "fine-tuning"}),
    ],
)
def test_chosen_micro_batches_and_checkpointing_change_no_key_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], kinds: set[str]
) -> None:
    plain, spare = (build_tiny_project(tmp_path / name) for name in ("plain", "spare"))
    run(plain, settings)
    weighed = set()

    def choose(load: Workload, gigabytes: float, at_most: int) -> Fit:
        assert gigabytes == 1.5
        assert load.expect(1) < 1.5e9
        weighed.add(load.what)
        return Fit(min(3, at_most), 0)

    monkeypatch.setattr(budget, "fit_rows", choose)
    run(spare, [*settings, "compute.memory_gb=1.5", "compute.checkpoint_gradients=true"])
    assert weighed == kinds
    files = [set(hash_artifacts(folder)) for folder in (plain, spare)]
    assert files[0] == files[1]
    for path in (name for name in files[0] if name.endswith("adapter_model.safetensors")):
        ours, theirs = (load_file(folder / "artifacts" / path) for folder in (spare, plain))
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5, msg=f"{path} {name}")
    rows = [json.loads(line) for line in (spare / "rounds/001/metrics.jsonl").read_text().splitlines()]
    assert {row["micro_batch_size"] for row in rows if "micro_batch_size" in row} == {3}
