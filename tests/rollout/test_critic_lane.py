"""Values taken while sampling against the critic's own pass over the finished rollout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import StandIn
from tiny import build_tiny_model
from transformers import PreTrainedModel

from accord.models import Base, LoraSettings, load_base
from accord.models.decoding import PackedDecoder
from accord.rollout import Sampler
from accord.rollout.engines import Engine, PackedEngine, Reopener
from accord.rollout.sharded import join_rollouts
from accord.types import Prompt, Rollout

LORA = LoraSettings(rank=4, alpha=8)
PROMPTS = [Prompt.from_user("x" * (i % 7)) for i in range(14)]


def fill(base: Base, role: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base.load_state(role, {n: 0.2 * torch.randn(v.shape, generator=generator) for n, v in base.state(role).items()})


def build(folder: Path, architecture: str = "llama", *, split: int = 1, every_layer: bool = False) -> Base:
    build_tiny_model(folder, architecture, layers=3)
    base = load_base(str(folder), dtype="float32", split=split, device="cpu")
    base.add_policy("policy", lora=LORA, seed=0, every_layer=every_layer)
    base.add_scorer("proxy", lora=LoraSettings(rank=2, alpha=3), seed=1)
    base.add_head("critic", on="proxy")
    for seed, role in enumerate(("policy", "proxy", "critic")):
        fill(base, role, seed)
    return base


def generate(sampler: Sampler, role: str | None = "policy", **options: Any) -> Rollout:
    return sampler.generate(role, PROMPTS, seeds=range(len(PROMPTS)), max_new_tokens=50, temperature=3.0, **options)


@torch.no_grad()
def check(base: Base, rollout: Rollout) -> None:
    """Values before each token, and the score behind the last, against passes over the whole rollout."""
    mask, states = rollout.completion_mask, rollout.critic_states
    assert states is not None and states.shape[1] == mask.shape[1] + 1
    values = base.compute_values("critic", rollout.input_ids, rollout.attention_mask, mask.shape[1])
    found = base.head("critic")(states[:, :-1])
    assert values[mask].std() > 0.1
    torch.testing.assert_close(found[mask], values[mask], atol=5e-5, rtol=1e-4)
    scores = base.compute_scores("proxy", rollout.input_ids, rollout.attention_mask)
    ends = states[torch.arange(len(states)), mask.sum(dim=1)]
    torch.testing.assert_close(base.head("proxy")(ends), scores, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("batch_size", [3, 14])
def test_values_are_those_of_a_pass_whoever_comes_and_leaves(tmp_path: Path, split: int, batch_size: int) -> None:
    base = build(tmp_path, split=split)
    plain = generate(Sampler(base, batch_size))
    rollout = generate(Sampler(base, batch_size), critic="critic")
    assert rollout.finished.any() and not rollout.finished.all()
    assert torch.equal(rollout.completion_ids, plain.completion_ids)
    torch.testing.assert_close(rollout.logprobs, plain.logprobs, atol=2e-5, rtol=0)
    assert plain.critic_states is None and rollout.trunk is None
    check(base, rollout)


@pytest.mark.parametrize("role", ["policy", None])
def test_below_the_split_both_lanes_are_one_and_the_trunk_is_kept_beside(tmp_path: Path, role: str | None) -> None:
    base = build(tmp_path)
    opened: list[PackedDecoder] = []

    def open_engine(base: Base, model: PreTrainedModel, slots: int, columns: int) -> Engine:
        opened.append(PackedDecoder(base, slots, columns))
        return PackedEngine(opened[-1])

    rollout = generate(Sampler(base, 5, open_engine=open_engine, keep_trunk=True), role, critic="critic")
    assert len(opened[0].cache) == 1 + 2 * 2, "keys and values of one layer once, of two layers twice"
    check(base, rollout)
    trunk, mask = base.compute_trunk(rollout.input_ids, rollout.attention_mask), rollout.attention_mask
    assert rollout.trunk is not None and trunk is not None
    torch.testing.assert_close(rollout.trunk[mask], trunk[mask], atol=2e-5, rtol=1e-4)


def test_a_policy_on_every_layer_parts_from_the_critic_at_the_first(tmp_path: Path) -> None:
    base = build(tmp_path, every_layer=True)
    check(base, generate(Sampler(base, 4, keep_trunk=True), critic="critic"))


def test_other_models_leave_values_to_a_pass(tmp_path: Path) -> None:
    base = build(tmp_path, "gpt2")
    assert generate(Sampler(base, 4), critic="critic").critic_states is None


@pytest.fixture
def recorded() -> tuple[StandIn, Callable[..., Engine]]:
    recorder = StandIn()

    def open_engine(base: Base, model: PreTrainedModel, slots: int, columns: int) -> Engine:
        return PackedEngine(PackedDecoder(base, slots, columns, record=recorder))

    return recorder, open_engine


def test_recorded_steps_serve_the_next_rollout_under_its_own_weights(
    tmp_path: Path, recorded: tuple[StandIn, Callable[..., Engine]]
) -> None:
    base, (recorder, open_engine) = build(tmp_path), recorded
    sampler = Sampler(base, 5, open_engine=Reopener(open_engine), keep_trunk=True)
    records = []
    for seed in (10, 20, 30):
        for role in ("policy", "proxy", "critic"):
            fill(base, role, seed)
        rollout = generate(sampler, critic="critic")
        assert torch.equal(rollout.completion_ids, generate(Sampler(base, 14)).completion_ids)
        check(base, rollout)
        looked = generate(sampler)  # without the critic's lane, in the same memory
        assert torch.equal(looked.completion_ids, rollout.completion_ids)
        assert looked.critic_states is None
        records.append(recorder.records)
    assert records[0] < records[0] * 2 <= recorder.replays
    assert records[2] <= records[0] + 4, "later rollouts record sizes only that have not come before"


def test_another_role_or_a_longer_prompt_opens_another_engine(
    tmp_path: Path, recorded: tuple[StandIn, Callable[..., Engine]]
) -> None:
    base, opener = build(tmp_path), Reopener(recorded[1])
    with base.activate("policy"):
        first = opener(base, base.model, 4, 60).decoder
        assert opener(base, base.model, 3, 50).decoder is first
        assert opener(base, base.model, 4, 61).decoder is not first
        first = opener(base, base.model, 4, 60).decoder
    assert opener(base, base.model, 4, 60).decoder is not first, "the reference has no adapters"


def test_a_step_that_is_not_recorded_is_not_worth_keeping(tmp_path: Path) -> None:
    base, opener = build(tmp_path), Reopener()
    first = opener(base, base.model, 4, 60)
    assert opener(base, base.model, 4, 60) is not first
    assert opener.last is None


def test_parts_of_a_rollout_join_with_their_states(tmp_path: Path) -> None:
    base = build(tmp_path)
    whole = generate(Sampler(base, 14), critic="critic")
    halves = [
        Sampler(base, 7).generate(
            "policy", PROMPTS[part], seeds=range(14)[part], max_new_tokens=50, temperature=3.0, critic="critic"
        )
        for part in (slice(0, 7), slice(7, 14))
    ]
    joined = join_rollouts(halves, base.tokens.pad_id)
    torch.testing.assert_close(joined.critic_states, whole.critic_states, atol=5e-5, rtol=1e-4)
    check(base, joined)
