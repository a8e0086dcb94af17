"""Two processes over gloo do what one does: the collectives by hand, and each trainer to float noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from accord.training.optimization import build_optimizer, unpack_roles
from accord.workspace import FolderCheckpoint
from tests.distributed import work
from tests.distributed.crew import run_crew, start_crew


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """Tensors and numbers to float noise, everything else exactly."""
    if torch.is_tensor(one) and one.is_floating_point():
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=lambda text: f"{where}: {text}")
    elif torch.is_tensor(one):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other)):
            assert_close(first, second, f"{where}[{number}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5), where
    else:
        assert one == other, where


TRAINERS = ("sampling", "ppo", "ppo_full", "ppo_sharded", "reward_model", "sft", "sft_sharded")


@pytest.fixture(scope="module")
def crew_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="module")
def crew(crew_folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found; started once, because most of the time goes into imports."""
    return run_crew(("collectives", "step", "shards", "resumed", *TRAINERS), crew_folder, 2)


def test_shares_are_parted_and_joined(crew: list[dict[str, Any]]) -> None:
    first, second = (found["collectives"] for found in crew)
    assert (first["rank"], first["count"], second["rank"]) == (0, 2, 1)
    assert (first["share"], second["share"]) == ([0, 2, 4], [1, 3])
    assert first["inside"] == (True, 1, [0, 1, 2, 3, 4])
    assert second["inside"][0] is False
    for found in (first, second):
        assert found["sum"].tolist() == [3.0, 3.0, 3.0]
        assert [grad.tolist() for grad in found["grads"]] == [[1.0, 2.0], [0.0]]
        assert found["gathered"] == [0, 1, 1]
        assert found["mapped"] == [(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)]
        assert found["agreed"] == 0
    assert first["rounds"] == [([0, 2], True), ([4], True)]
    assert second["rounds"] == [([1, 3], True), ([0], False)]
    assert sorted([first["speaks"], second["speaks"]]) == [False, True]


def test_alone_nothing_is_changed() -> None:
    found = work.collectives()
    assert found["sum"].tolist() == [1.0, 1.0, 1.0]
    assert found["grads"][1] is None
    assert (found["share"], found["gathered"], found["speaks"]) == ([0, 1, 2, 3, 4], [0], True)


def test_a_step_is_taken_on_the_whole_batch(crew: list[dict[str, Any]]) -> None:
    """d/dw of the mean of (w - x)^2 over 0, ..., 6 at w = 10 is 2 (10 - 3) = 14, whoever holds which number."""
    for found in crew:
        assert found["step"]["norm"] == pytest.approx(14.0)
        assert found["step"]["weight"] == pytest.approx(10.0 - 0.25 * 14.0)


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_do_as_one(crew: list[dict[str, Any]], name: str) -> None:
    alone = getattr(work, name)()
    assert_close(alone, crew[0][name], name)
    assert_close(crew[0][name], crew[1][name], f"{name}, the two")


def test_a_sharded_policy_lies_in_halves_and_its_gradients_are_sums(crew: list[dict[str, Any]]) -> None:
    """Each of two processes added the gradient that one process alone has: the sum is twice it, a mean would be it."""
    alone, first, second = work.shards(), *(found["shards"] for found in crew)
    assert alone["own"] == alone["all"] == first["all"] == first["own"] + second["own"]
    assert 0.45 < first["own"] / first["all"] < 0.55
    for found in (first, second):
        assert_close({name: 2 * g for name, g in alone["gradients"].items()}, found["gradients"])
        assert found["norm"] == pytest.approx(2 * alone["norm"], rel=1e-4)
        assert_close(alone["policy"], found["policy"])
        assert_close(alone["logits"], found["logits"])
    assert_close(alone["moments"], first["moments"])
    assert all(name.endswith(".step") for name in second["moments"])


def test_a_sharded_run_goes_on_from_its_checkpoint_and_its_folder(
    crew: list[dict[str, Any]], crew_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "FOLDER", tmp_path)
    alone = work.resumed()
    for found in crew:
        assert_close(alone, found["resumed"])
        assert_close(found["resumed"]["policy"], found["resumed"]["again"])
    one = work.load_tiny()  # a process that is alone reads what two have written
    optimizer = build_optimizer(one, "policy", 1e-2)
    tensors, _ = FolderCheckpoint(crew_folder).load() or ({}, {})
    unpack_roles(one, {"policy": optimizer}, tensors)
    assert_close(alone["policy"], one.state("policy"))
    assert not (crew_folder / "role-1/model.safetensors").exists()
    assert_close(
        load_file(tmp_path / "merged-0/model.safetensors"), load_file(crew_folder / "merged-0/model.safetensors")
    )


@pytest.mark.parametrize("where", ["lost", "lost_in_a_pass"])
def test_who_loses_another_says_so_and_ends(tmp_path: Path, where: str) -> None:
    waiting, dying = start_crew((where,), tmp_path, 2)
    output = waiting.communicate(timeout=60)[0]
    dying.communicate(timeout=60)
    assert waiting.returncode not in (0, None)
    assert "WorkerLostError" in output
    assert "goes on from the last checkpoint" in output
