"""Each silent mistake is made on purpose, and the run stops and says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from accord.config.schema import PpoSection, SampleSection
from accord.errors import TrainingError
from accord.models import Base, LoraSettings
from accord.rollout import Sampler
from accord.training import checks, train_ppo
from accord.training.optimization import build_optimizer, take_step
from accord.types import Prompt, Rollout
from tests.training.fakes import CollectingProgress, MemoryCheckpoint, build_digit_base

SETTINGS = PpoSection(updates=3, prompts_per_update=8, epochs=1, minibatches=1, learning_rate=1e-3)


class SpoiledSampler(Sampler):
    """A generator whose rollouts are spoiled by `spoil`."""

    def __init__(self, base: Base, spoil: Callable[[Rollout], Rollout]) -> None:
        super().__init__(base)
        self.spoil = spoil

    def generate(self, *args: Any, **options: Any) -> Rollout:
        return self.spoil(super().generate(*args, **options))


class HotSampler(Sampler):
    """Samples at another temperature than it was asked to."""

    def generate(self, *args: Any, **options: Any) -> Rollout:
        return super().generate(*args, **{**options, "temperature": 1.5 * options["temperature"]})


@pytest.fixture
def base() -> Base:
    base = build_digit_base(4, eos=True, split=1)
    base.add_policy("policy", lora=LoraSettings(4, 8), seed=1)
    base.add_scorer("critic", lora=LoraSettings(4, 8), seed=2)
    return base


def last_digit(rollout: Rollout) -> torch.Tensor:
    return rollout.completion_ids[:, 0].float()


def train(base: Base, **changes: Any) -> CollectingProgress:
    progress = CollectingProgress()
    cfg = SETTINGS.model_copy(update=changes.pop("settings", {}))
    train_ppo(
        base, [Prompt(text=t) for t in ("0", "12", "3")], changes.get("generator", Sampler(base)),
        changes.get("reward", last_digit), cfg, sample=changes.get("sample", SampleSection(max_new_tokens=6)),
        max_kl_nats=changes.get("max_kl_nats", 8.0), seed=0, progress=progress, checkpoint=MemoryCheckpoint(),
    )  # fmt: skip
    return progress


def test_a_sound_run_passes_every_check(base: Base) -> None:
    train(base)


def test_pad_must_not_be_eos(base: Base) -> None:
    base.tokens.pad_id = base.tokens.eos_id
    with pytest.raises(TrainingError, match="padding token is the end-of-sequence token"):
        train(base)


@pytest.mark.parametrize(
    ("old", "message"),
    [("trainer", "sampler's logprobs and the trainer's differ"), ("sampler", "ratio is not 1 before any update")],
)
def test_a_sampler_at_another_temperature_is_found(base: Base, old: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(base, generator=HotSampler(base), settings={"old_logprobs": old})


def test_a_policy_that_moves_before_the_first_step_is_found(base: Base) -> None:
    def meddle(rollout: Rollout) -> torch.Tensor:
        with torch.no_grad():
            for parameter in base.parameters("policy").values():
                parameter.add_(0.3)
        return last_digit(rollout)

    with pytest.raises(TrainingError, match="ratio is not 1 before any update"):
        train(base, reward=meddle)


def forget_eos(rollout: Rollout) -> Rollout:
    mask = rollout.completion_mask & (rollout.completion_ids != 5)
    mask[:, 0] = True
    return dataclasses.replace(rollout, completion_mask=mask)


def count_padding(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, completion_mask=torch.ones_like(rollout.completion_mask))


def call_all_finished(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, finished=torch.ones_like(rollout.finished))


def empty_first(rollout: Rollout) -> Rollout:
    mask = rollout.completion_mask.clone()
    mask[0] = False
    return dataclasses.replace(rollout, completion_mask=mask)


def pad_prompts_right(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, prompt_mask=rollout.prompt_mask.flip(1), prompt_ids=rollout.prompt_ids.flip(1))


def start_late(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, completion_mask=rollout.completion_mask.flip(1))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forget_eos, "does not say where EOS"),
        (count_padding, "does not say where EOS|goes on after its EOS"),
        (call_all_finished, "does not say where EOS"),
        (empty_first, "no token"),
        (pad_prompts_right, "not padded on the left"),
        (start_late, "hole or starts late"),
    ],
)
def test_a_score_on_padding_is_found(base: Base, spoil: Callable[[Rollout], Rollout], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        train(base, generator=SpoiledSampler(base, spoil))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_found(base: Base, bad: float) -> None:
    with pytest.raises(TrainingError, match="score is not finite"):
        train(base, reward=lambda rollout: torch.full((len(rollout),), bad))


def test_a_critic_gone_nan_is_found(base: Base) -> None:
    base.load_state("critic", {n: torch.full_like(v, float("nan")) for n, v in base.state("critic").items()})
    with pytest.raises(TrainingError, match="value is not finite"):
        train(base)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(base: Base) -> None:
    optimizer = build_optimizer(base, "policy", 1e-3)
    before = base.state("policy")
    for parameter in base.parameters("policy").values():
        parameter.grad = torch.full_like(parameter, float("inf"))
    norm = take_step([optimizer], [1e-3], max_grad_norm=1.0)
    assert all(torch.equal(value, before[name]) for name, value in base.state("policy").items())
    with pytest.raises(TrainingError, match="grad_norm is not finite"):
        checks.check_finite({"grad_norm": norm}, where="here")


def test_an_exploding_kl_is_found(base: Base) -> None:
    with pytest.raises(TrainingError, match="over 10 times the budget"):
        train(base, max_kl_nats=1e-4, settings={"learning_rate": 3e-2, "epochs": 4})


def test_a_kl_below_zero_is_found_but_noise_is_not() -> None:
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0))
    checks.check_kl(noise - noise.mean() - 0.1, budget_nats=8.0, where="here")
    with pytest.raises(TrainingError, match="negative beyond noise"):
        checks.check_kl(noise - 2.0, budget_nats=8.0, where="here")


def test_a_constant_reward_is_found(base: Base) -> None:
    with pytest.raises(TrainingError, match="every completion the same score"):
        train(base, reward=lambda rollout: torch.ones(len(rollout)))


def test_a_collapsed_entropy_is_found() -> None:
    rows = [{"update": u, "score_std": 1.0, "entropy": e} for u, e in ((1, 2.0), (2, 0.5), (3, 0.019))]
    checks.check_history(rows[:2], updates=8)
    with pytest.raises(TrainingError, match="entropy collapsed"):
        checks.check_history(rows, updates=8)


def test_completions_that_never_finish_are_a_warning(base: Base) -> None:
    progress = train(base, sample=SampleSection(max_new_tokens=1))
    cut = [row for row in progress.rows if row["finished_share"] == 0.0]
    assert all("no completion finished" in row["warning"] for row in cut)
    spoken = train(base, sample=SampleSection(max_new_tokens=24))
    assert not any("no completion finished" in row.get("warning", "") for row in spoken.rows)
