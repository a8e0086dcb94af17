"""Cached, batched decoding against plain recomputation: the same tokens, the same logprobs, whatever the neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model

from accord.errors import DataError
from accord.functional import compute_logprobs
from accord.models import Base, LoraSettings, load_base
from accord.rollout import Sampler, count_tokens, draw_tokens, draw_uniforms
from accord.types import Prompt

PROMPTS = [Prompt.from_user(text) for text in ("hi", "a rather longer question?", "hi", "why", "middle one", "x" * 40)]
SEEDS = [11, 12, 13, 14, 15, 16]
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gemma2", "gemma3"]


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    build_tiny_model(tmp_path, request.param)
    return load_base(str(tmp_path), dtype="float32")


@torch.no_grad()
def recompute(base: Base, prompt: Prompt, seed: int, new_tokens: int, temperature: float) -> list[int]:
    """The oracle: one sequence, no cache, no padding, the whole text read again for each token."""
    ids = base.tokens.encode_prompt(prompt)
    uniforms = draw_uniforms([seed], new_tokens)[0]
    sampled: list[int] = []
    with base.activate(None) as model:
        for step in range(new_tokens):
            logits = model(input_ids=torch.tensor([ids + sampled]), use_cache=False).logits[:, -1]
            token, _ = draw_tokens(logits, uniforms[step : step + 1], temperature)
            sampled.append(int(token))
            if sampled[-1] == base.tokens.eos_id:
                break
    return sampled


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_tokens_equal_plain_recomputation_whatever_the_batch(base: Base, batch_size: int) -> None:
    rollout = Sampler(base, batch_size).generate(None, PROMPTS, seeds=SEEDS, max_new_tokens=12, temperature=0.9)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        sampled = rollout.completion_ids[row][rollout.completion_mask[row]].tolist()
        assert sampled == recompute(base, prompt, seed, 12, 0.9)


def test_logprobs_are_the_trainers_to_float_noise(base: Base) -> None:
    rollout = Sampler(base, 4).generate(None, PROMPTS, seeds=SEEDS, max_new_tokens=10, temperature=0.8)
    width = rollout.completion_ids.shape[1]
    with torch.no_grad():
        logits = base.compute_logits(None, rollout.input_ids, rollout.attention_mask, width)
    trained = compute_logprobs(logits, rollout.completion_ids, 0.8).logprobs
    torch.testing.assert_close(rollout.logprobs, trained * rollout.completion_mask, atol=2e-5, rtol=0)


def test_finished_rows_end_with_eos_and_leave_the_batch(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, "llama")
    base = load_base(str(tmp_path), dtype="float32")
    prompts = [Prompt.from_user(f"question {i}") for i in range(40)]
    seen: list[int] = []
    sampler = Sampler(base, 40, on_tokens=seen.append)
    rollout = sampler.generate(None, prompts, seeds=range(40), max_new_tokens=160, temperature=3.0)
    lengths = rollout.completion_mask.sum(1)
    last = rollout.completion_ids.gather(1, (lengths - 1)[:, None])[:, 0]
    assert rollout.finished.any() and not rollout.finished.all()
    assert torch.equal(last == base.tokens.eos_id, rollout.finished)
    assert (lengths[~rollout.finished] == 160).all()
    assert min(seen) < 40, "no row ever left the batch"
    assert count_tokens(rollout) == int(lengths.sum())
    for completion, finished in zip(rollout.completions, rollout.finished.tolist(), strict=True):
        assert completion.finished == finished
        assert "<|im_end|>" not in completion.text


@pytest.mark.parametrize("batch_size", [3, 5])
def test_waiting_prompts_enter_while_others_are_decoded_and_change_nothing(tmp_path: Path, batch_size: int) -> None:
    build_tiny_model(tmp_path, "llama")
    base = load_base(str(tmp_path), dtype="float32")
    prompts = [Prompt.from_user("x" * (i % 7)) for i in range(18)]
    seen: list[int] = []
    sampler = Sampler(base, batch_size, on_tokens=seen.append)
    rollout = sampler.generate(None, prompts, seeds=range(18), max_new_tokens=120, temperature=3.0)
    lengths = rollout.completion_mask.sum(1)
    assert len(set(lengths.tolist())) > 3, "the rows should end at different steps"
    waves = sum(max(lengths[i : i + batch_size]) for i in range(0, 18, batch_size))
    assert len(seen) < waves, "no faster than waiting for a whole batch to end"
    assert max(seen) == batch_size
    for row in (0, 7, 12, 17):
        sampled = rollout.completion_ids[row][rollout.completion_mask[row]].tolist()
        assert sampled == recompute(base, prompts[row], row, 120, 3.0)


def test_a_role_without_training_samples_what_the_reference_samples(base: Base) -> None:
    base.add_policy("policy", lora=LoraSettings(rank=4, alpha=8), seed=0)
    sampler = Sampler(base, 3)
    ours = sampler.generate("policy", PROMPTS, seeds=SEEDS, max_new_tokens=8, temperature=1.0)
    theirs = sampler.generate(None, PROMPTS, seeds=SEEDS, max_new_tokens=8, temperature=1.0)
    assert torch.equal(ours.completion_ids, theirs.completion_ids)


@pytest.mark.parametrize("batch_size", [3, 18])
def test_a_kept_trunk_is_the_trunks_own_pass_over_the_rollout(tmp_path: Path, batch_size: int) -> None:
    build_tiny_model(tmp_path, "llama")
    base = load_base(str(tmp_path), dtype="float32", split=1)
    base.add_policy("policy", lora=LoraSettings(rank=4, alpha=8), seed=0)
    fill = torch.Generator().manual_seed(1)
    base.load_state("policy", {n: torch.randn(v.shape, generator=fill) for n, v in base.state("policy").items()})
    prompts = [Prompt.from_user("x" * (i % 7)) for i in range(18)]
    options = {"seeds": range(18), "max_new_tokens": 60, "temperature": 3.0}
    rollout = Sampler(base, batch_size, keep_trunk=True).generate("policy", prompts, **options)
    plain = Sampler(base, batch_size).generate("policy", prompts, **options)
    assert rollout.finished.any() and not rollout.finished.all()
    assert torch.equal(rollout.completion_ids, plain.completion_ids)
    torch.testing.assert_close(rollout.logprobs, plain.logprobs, atol=2e-5, rtol=0)
    assert plain.trunk is None
    expected = base.compute_trunk(rollout.input_ids, rollout.attention_mask)
    mask = rollout.attention_mask
    torch.testing.assert_close(rollout.trunk[mask], expected[mask], atol=2e-5, rtol=1e-4)
    assert not rollout.trunk[~mask].any()


def test_no_trunk_is_kept_of_a_role_that_adapts_the_lower_layers(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, "llama")
    base = load_base(str(tmp_path), dtype="float32", split=1)
    base.add_policy("policy", lora=LoraSettings(rank=4, alpha=8), seed=0, every_layer=True)
    rollout = Sampler(base, 4, keep_trunk=True).generate(
        "policy", PROMPTS, seeds=SEEDS, max_new_tokens=4, temperature=1.0
    )
    assert rollout.trunk is None


def test_one_seed_a_prompt(base: Base) -> None:
    with pytest.raises(DataError, match="seeds"):
        Sampler(base).generate(None, PROMPTS, seeds=[1], max_new_tokens=4, temperature=1.0)
