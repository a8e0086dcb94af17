"""Mixtures: weights, the worst of several, and multipliers that settle at the constrained optimum's closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from accord.config.rewarding import RewardSection, SourceSection
from accord.config.schema import PpoSection, SampleSection
from accord.errors import ConfigError, DataError
from accord.functional import update_multiplier
from accord.loop.mixing import mix_sources
from accord.models import LoraSettings
from accord.rewards import Mixture, Scored, score_in_parts, steer_source
from accord.rollout import Sampler
from accord.training import train_ppo
from accord.types import Prompt, Rollout
from tests.rewards.rollouts import build_prompts, build_rollout
from tests.training.fakes import CollectingProgress, Killed, MemoryCheckpoint, build_digit_base

ROLLOUT = build_rollout(build_prompts(3), [[5, 6, 2], [9], [10, 2]])


def fixed(*values: float) -> Any:
    return lambda rollout: torch.tensor(values)


def test_the_worst_of_sources() -> None:
    mixture = Mixture({"a": fixed(1, 2, 3), "b": fixed(3, 1, -1)}, {"a": 1.0, "b": 2.0}, combine="worst")
    assert mixture(ROLLOUT).tolist() == [1.0, 2.0, -2.0]


def test_a_bound_adds_its_multiplier_and_is_steered() -> None:
    mixture = Mixture({"a": fixed(1, 2, 3), "b": fixed(0, 0, 3)}, {"a": 1.0}, {"b": 2.0}, start=0.5, rate=0.1)
    total, parts = mixture.score(ROLLOUT)
    assert total.tolist() == [1 + 0.5 * (0 - 2), 2 + 0.5 * (0 - 2), 3 + 0.5 * (3 - 2)]
    assert steer_source(mixture, parts) == pytest.approx({"b": 0.5 + 0.1 * (2 - 1)})
    again = Mixture({"a": fixed(1, 2, 3), "b": fixed(0, 0, 3)}, {"a": 1.0}, {"b": 2.0}, rate=0.1)
    again.load_state(mixture.state())
    assert torch.equal(again(ROLLOUT), mixture(ROLLOUT))


def test_parts_of_parts_keep_their_curve() -> None:
    class Inner:
        def score(self, rollout: Rollout) -> Scored:
            return Scored(torch.ones(3), {"disagreement": torch.full((3,), 0.25)})

        def __call__(self, rollout: Rollout) -> torch.Tensor:
            return self.score(rollout).total

    _, parts = score_in_parts(Mixture({"proxy": Inner()}, {"proxy": 1.0}), ROLLOUT)
    assert {name: part.tolist()[0] for name, part in parts.items()} == {"proxy": 1.0, "proxy.disagreement": 0.25}


def test_the_trunk_goes_to_the_sources_that_take_it() -> None:
    class Learned:
        takes_trunk = True

        def __call__(self, rollout: Rollout, trunk: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros(3) if trunk is None else trunk[:, 0, 0]

    mixture = Mixture({"proxy": Learned(), "rule": fixed(1, 1, 1)}, {"proxy": 1.0, "rule": 2.0})
    trunk = torch.arange(3.0)[:, None, None].expand(3, 4, 8)
    assert score_in_parts(mixture, ROLLOUT, trunk).total.tolist() == [2.0, 3.0, 4.0]
    assert score_in_parts(mixture, ROLLOUT).total.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("beta", "bound"), [(1.0, 0.6), (0.5, 0.8), (2.0, 0.5)])
def test_multipliers_settle_at_the_constrained_optimum(beta: float, bound: float) -> None:
    """Two answers, scores (1, 0) and (0, 1), reference uniform: pi(second) = sigmoid((lambda - 1) / beta).

    The constraint E[second score] >= bound therefore holds with equality at lambda* = 1 + beta logit(bound).
    """
    multiplier = 0.0
    for _ in range(4000):
        value = 1 / (1 + math.exp(-(multiplier - 1) / beta))
        multiplier = update_multiplier(multiplier, value, bound, 0.05)
    assert multiplier == pytest.approx(1 + beta * math.log(bound / (1 - bound)), abs=1e-6)


def test_a_bound_that_holds_anyway_costs_nothing() -> None:
    multiplier = 3.0
    for _ in range(4000):
        multiplier = update_multiplier(multiplier, 1 / (1 + math.exp(1 - multiplier)), 0.2, 0.05)
    assert multiplier == 0.0  # sigmoid(-1) = 0.27 > 0.2


@pytest.mark.parametrize(("multiplier", "value", "rate"), [(1.0, math.nan, 0.1), (-1.0, 0.0, 0.1), (1.0, 0.0, -0.1)])
def test_impossible_steps_are_refused(multiplier: float, value: float, rate: float) -> None:
    with pytest.raises(DataError):
        update_multiplier(multiplier, value, 0.0, rate)


def count(digit: int) -> Any:
    """The share of one digit among the sampled ones."""

    def share(rollout: Rollout) -> torch.Tensor:
        hits = (rollout.completion_ids == digit) & rollout.completion_mask
        return hits.sum(1).float() / rollout.completion_mask.sum(1)

    return share


def train(bound: float | None, checkpoint: MemoryCheckpoint | None = None, updates: int = 30) -> list[dict[str, Any]]:
    base = build_digit_base(4)
    base.add_policy("policy", lora=LoraSettings(4, 8), seed=1)
    base.add_scorer("critic", lora=LoraSettings(4, 8), seed=2)
    cfg = PpoSection(
        updates=updates, prompts_per_update=64, epochs=2, minibatches=2, micro_batch_size=64, learning_rate=1e-2,
        critic_learning_rate=1e-2, kl_controller="fixed", kl_coef=0.02, missing_eos_penalty=0.0, checkpoint_every=3,
        critic="adapter", old_logprobs="trainer",
    )  # fmt: skip
    sources = {"threes": count(3), "ones": count(1)}
    mixture = Mixture(sources, {"threes": 1.0, "ones": 0.0}, {} if bound is None else {"ones": bound}, rate=1.0)
    prompts = [Prompt(text=f"{a}{b}") for a in range(4) for b in range(4)]
    result = train_ppo(
        base, prompts, Sampler(base), mixture, cfg, sample=SampleSection(max_new_tokens=6), max_kl_nats=100.0, seed=3,
        progress=CollectingProgress(), checkpoint=checkpoint or MemoryCheckpoint(),
    )  # fmt: skip
    return result.history


def test_ppo_holds_a_bound() -> None:
    free, held = train(None), train(0.4)
    assert free[-1]["source_threes"] > 0.9
    assert free[-1]["source_ones"] < 0.1
    late = held[-8:]
    assert sum(row["source_ones"] for row in late) / 8 == pytest.approx(0.4, abs=0.12)
    assert sum(row["source_threes"] for row in late) / 8 > 0.35
    assert late[-1]["multiplier_ones"] > 0.0


def test_a_killed_run_goes_on_with_its_multipliers() -> None:
    whole = train(0.4, updates=8)
    checkpoint = MemoryCheckpoint(kill_after_saves=2)
    with pytest.raises(Killed):
        train(0.4, checkpoint, updates=8)
    assert train(0.4, checkpoint, updates=8) == whole


def test_sources_are_found_by_name() -> None:
    proxy = fixed(1.0, 2.0, 3.0)
    assert mix_sources(RewardSection(), proxy) is proxy
    section = RewardSection(
        sources=(SourceSection(name="proxy"), SourceSection(name="length_words", weight=0.0, at_least=2.0))
    )
    mixture = mix_sources(section, proxy)
    assert isinstance(mixture, Mixture)
    assert (mixture.weights, mixture.bounds) == ({"proxy": 1.0, "length_words": 0.0}, {"length_words": 2.0})
    with pytest.raises(ConfigError, match="did you mean 'harmless'"):
        mix_sources(RewardSection(sources=(SourceSection(name="harmles"),)), proxy)
    with pytest.raises(ValueError, match="same name"):
        RewardSection(sources=(SourceSection(name="proxy"), SourceSection(name="proxy")))
