"""Prompts have the length they should, and every row stops where its prompt says, whoever samples it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.models import Base, load_base
from accord.rollout import Sampler
from benchmarks.processes import BenchmarkError
from benchmarks.prompts import Countdown, build_prompts, find_word_ids, spread_limits

LIMITS = [5, 2, 9, 1, 7]


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return load_base(str(tiny_model), dtype="float32", split=0, device="cpu")


def test_prompts_have_exactly_so_many_tokens(base: Base) -> None:
    prompts = build_prompts(base.tokens, 6, 11, seed=3)
    assert [len(base.tokens.encode_prompt(p)) for p in prompts] == [11] * 6
    assert len(set(prompts)) == 6
    assert prompts == build_prompts(base.tokens, 6, 11, seed=3)


def test_prompts_that_cannot_be_are_refused(base: Base) -> None:
    with pytest.raises(BenchmarkError, match="exactly"):
        build_prompts(base.tokens, 1, 4, seed=0, endings=[base.tokens.eos_id])


def test_limits_are_spread_evenly_with_both_ends() -> None:
    assert sorted(spread_limits(5, 8, 128, seed=0)) == [8, 38, 68, 98, 128]
    assert spread_limits(1, 8, 128, seed=0) == [8]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_each_row_of_our_sampler_stops_at_its_limit(base: Base, batch_size: int) -> None:
    countdown = Countdown(find_word_ids(base.tokens), base.tokens.eos_id, base.vocabulary)
    prompts = build_prompts(base.tokens, 5, 8, seed=0, endings=[countdown.words[n] for n in LIMITS])
    detach = countdown.attach(base.model)
    sampler = Sampler(base, batch_size)
    rollout = sampler.generate(None, prompts, seeds=range(5), max_new_tokens=12, temperature=1.0)
    assert rollout.completion_mask.sum(1).tolist() == LIMITS
    assert bool(rollout.finished.all())
    detach()
    free = sampler.generate(None, prompts, seeds=range(5), max_new_tokens=12, temperature=1.0)
    assert free.completion_mask.sum(1).tolist() != LIMITS


def test_each_row_of_transformers_stops_at_its_limit(base: Base, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    countdown = Countdown(find_word_ids(base.tokens), base.tokens.eos_id, base.vocabulary)
    prompts = build_prompts(base.tokens, 5, 8, seed=0, endings=[countdown.words[n] for n in LIMITS])
    countdown.attach(model)
    ids = torch.tensor([base.tokens.encode_prompt(p) for p in prompts])
    tokens = model.generate(ids, max_new_tokens=12, do_sample=True, pad_token_id=0, eos_token_id=base.tokens.eos_id)
    assert [row.tolist().index(base.tokens.eos_id) + 1 for row in tokens[:, 8:]] == LIMITS


def test_rows_without_a_count_are_left_alone(base: Base) -> None:
    ids = torch.tensor([[7, 9, 11]])
    before = base.model(ids).logits
    Countdown([20, 21], base.tokens.eos_id, base.vocabulary).attach(base.model)
    torch.testing.assert_close(base.model(ids).logits, before, rtol=0, atol=0)
    assert base.model(torch.tensor([[7, 9, 20]])).logits[0, -1].argmax() == base.tokens.eos_id
