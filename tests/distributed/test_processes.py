"""Two processes over gloo do what one does: the collectives by hand, and each trainer to float noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


TRAINERS = ("sampling", "ppo", "ppo_full", "reward_model", "sft")


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; started once, because most of the time goes into imports."""
    return run_crew(("collectives", "step", *TRAINERS), tmp_path_factory.mktemp("crew"), 2)


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


def test_who_loses_another_says_so_and_ends(tmp_path: Path) -> None:
    waiting, dying = start_crew(("lost",), tmp_path, 2)
    output = waiting.communicate(timeout=60)[0]
    dying.communicate(timeout=60)
    assert waiting.returncode not in (0, None)
    assert "WorkerLostError" in output
    assert "goes on from the last checkpoint" in output
