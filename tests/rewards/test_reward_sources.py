"""Names, lifting and mixing: what a setting may say, and what a rollout gets for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from accord.config import Config
from accord.errors import ConfigError
from accord.rewards import TEXT_REWARDS, Mixture, as_source, find_text_reward
from accord.types import Completion, Prompt, Rollout
from tests.rewards.rollouts import build_prompts, build_rollout

ROOT = Path(__file__).resolve().parents[2]
ROLLOUT = build_rollout(build_prompts(3), [[5, 2], [6, 7, 2], [8, 9]])


def test_a_text_reward_scores_each_row_of_a_rollout() -> None:
    scores = as_source(find_text_reward("length_words"))(ROLLOUT)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [2.0, 3.0, 2.0]  # the texts are the token ids


def test_a_wrong_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=re.escape("no text reward named 'demo_utilty'")) as caught:
        find_text_reward("demo_utilty", where="simulation.utility")
    assert caught.value.where == "simulation.utility"
    assert caught.value.mend == "did you mean 'demo_utility'?"
    with pytest.raises(ConfigError, match="toxicity, warmth"):
        find_text_reward("zzz")


def test_the_settings_defaults_are_names_of_text_rewards() -> None:
    config = Config()
    assert config.simulation.utility in TEXT_REWARDS
    assert config.evaluation.toxicity in TEXT_REWARDS


def test_a_mixture_is_the_weighted_sum_and_keeps_its_parts() -> None:
    def constant(rollout: Rollout) -> torch.Tensor:
        return torch.full((len(rollout),), 10.0)

    mixture = Mixture(
        {"words": as_source(find_text_reward("length_words")), "ten": constant}, {"words": 2.0, "ten": -0.5}
    )
    total, parts = mixture.score(ROLLOUT)
    assert total.tolist() == [2 * 2 - 5, 2 * 3 - 5, 2 * 2 - 5]
    assert {name: part.tolist() for name, part in parts.items()} == {"words": [2, 3, 2], "ten": [10, 10, 10]}
    assert torch.equal(mixture(ROLLOUT), total)


@pytest.mark.parametrize("weights", [{}, {"word": 1.0}, {"words": 1.0, "ten": 1.0}])
def test_a_mixture_without_one_weight_a_source_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="one weight"):
        Mixture({"words": as_source(find_text_reward("length_words"))} if weights else {}, weights)


def read_section(title: str) -> str:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_text_reward_is_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", read_section("Text rewards"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(TEXT_REWARDS)


def test_the_pages_utilities_are_those_of_the_code() -> None:
    section = read_section("The demo's hidden utility").split("**On real")[0]
    rows = re.findall(r"^\| (.+) \| (\d\.\d\d) \|$", section, flags=re.MULTILINE)
    assert len(rows) == 6
    prompt = Prompt.from_user("What is the capital of Norway?")
    for text, value in rows:
        completion = Completion.from_text("" if text == "(nothing)" else text)
        assert TEXT_REWARDS["demo_utility"](prompt, completion) == pytest.approx(float(value), abs=0.006), text


def test_the_pages_recipe_works_as_written(tmp_path: Path) -> None:
    """A stranger follows docs/rewards.md in a copy of the tree: one file, one dictionary line, one test that passes."""
    recipe = read_section("Add a reward source")
    blocks = dict(re.findall(r"`([\w/.]+)`[^\n]*:\n\n```python\n(.*?)```", recipe, re.DOTALL))
    assert list(blocks) == [
        "accord/rewards/asks_back.py",
        "accord/rewards/__init__.py",
        "tests/rewards/test_asks_back.py",
    ]
    shutil.copytree(ROOT / "accord", tmp_path / "accord", ignore=shutil.ignore_patterns("__pycache__"))
    import_line, dictionary_line = blocks.pop("accord/rewards/__init__.py").strip("\n").split("\n\n")
    registry = tmp_path / "accord/rewards/__init__.py"
    before = registry.read_text(encoding="utf-8")
    after = before.replace("from accord.rewards.best_of_n", f"{import_line}\nfrom accord.rewards.best_of_n", 1)
    after = after.replace("= {\n", f"= {{\n{dictionary_line}\n", 1)
    assert after.count("\n") == before.count("\n") + 2
    registry.write_text(after, encoding="utf-8")
    for path, code in blocks.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "tests"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
