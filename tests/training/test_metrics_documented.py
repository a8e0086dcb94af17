"""Every metric that a trainer logs is explained on its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import Config
from accord.config.schema import PpoSection, RejectionSamplingSection, RewardModelSection, SampleSection, SftSection
from accord.models import Base, LoraSettings
from accord.rollout import Sampler
from accord.training import TRAINERS, TrainingJob, train_reward_model, train_sft
from accord.types import Completion, Preference, Prompt, Rollout
from tests.training.fakes import CollectingProgress, MemoryCheckpoint, build_digit_base

DOCS = Path(__file__).parents[2] / "docs"
PROMPTS = [Prompt(text=t) for t in ("0", "12", "3", "21")]
CONFIG = Config(
    sample=SampleSection(max_new_tokens=4),
    ppo=PpoSection(updates=1, prompts_per_update=4, epochs=1, minibatches=1),
    rejection_sampling=RejectionSamplingSection(candidates=2, epochs=1),
)


def build() -> Base:
    base = build_digit_base(4, eos=True, split=1)
    base.add_policy("policy", lora=LoraSettings(2, 4), seed=0)
    for role in ("critic", "reward"):
        base.add_scorer(role, lora=LoraSettings(2, 4), seed=0)
    return base


def find_undocumented(page: str, rows: list[dict[str, object]]) -> set[str]:
    """Names of metrics that the first column of no table on the page has."""
    cells = [line.split("|")[1] for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    prose = (DOCS / page).read_text()
    names = {name for row in rows for name in row}
    return {n for n in names if not any(f"`{n}`" in c for c in cells) and not (n.endswith("_seconds") and n in prose)}


@pytest.mark.parametrize(("method", "page"), [("ppo", "ppo.md"), ("rejection_sampling", "sft.md")])
def test_metrics_of_policy_trainers(method: str, page: str) -> None:
    base = build()

    def score(rollout: Rollout) -> object:
        return rollout.completion_ids[:, 0].float()

    progress = CollectingProgress()
    job = TrainingJob(
        base=base, config=CONFIG, prompts=PROMPTS, validation_prompts=PROMPTS, generator=Sampler(base), proxy=score,
        heldout=None, reference=None, seed=0, progress=progress, checkpoint=MemoryCheckpoint(),
    )  # fmt: skip
    result = TRAINERS[method](job)
    assert {row["update"] for row in result.history} == {0, 1}
    rows = [*result.history, *({n: v for n, v in row.items() if n != "warning"} for row in progress.rows)]
    assert find_undocumented(page, rows) == set()


def test_metrics_of_the_reward_model_and_sft() -> None:
    good, bad = Completion.from_text("3"), Completion.from_text("0")
    pairs = [Preference(prompt, good, bad, 1.0, 0.0) for prompt in PROMPTS]
    options = {"seed": 0, "progress": CollectingProgress(), "checkpoint": MemoryCheckpoint()}
    fitted = train_reward_model(build(), "reward", pairs, pairs, RewardModelSection(epochs=1), **options)
    assert find_undocumented("reward-model.md", fitted.history) == set()
    options["checkpoint"] = MemoryCheckpoint()
    examples = [(prompt, good) for prompt in PROMPTS]
    tuned = train_sft(build(), "policy", examples, SftSection(epochs=1), **options)
    assert find_undocumented("sft.md", tuned.history) == set()


def test_a_metric_without_a_word_is_found() -> None:
    assert find_undocumented("sft.md", [{"nll_nats": 1.0, "surprise": 2.0}]) == {"surprise"}
