"""Grouped attention against transformers' own eager attention, on real architectures and forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model
from transformers import AutoModelForCausalLM

from accord.errors import ModelError
from accord.models.attention import compute_grouped_attention, register
from accord.models.doctor import require_healthy, run_doctor
from accord.models.loading import load_base


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3"])
def test_a_model_says_the_same_as_with_eager_attention(architecture: str, tmp_path: Path) -> None:
    build_tiny_model(tmp_path, architecture)
    ids = torch.randint(3, 200, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    logits, grads = [], []
    for implementation in ("eager", register()):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation, dtype=torch.float32)
        output = model(input_ids=ids, attention_mask=mask).logits[:, 5:]
        output.square().mean().backward()
        logits.append(output.detach())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2", "gemma3"])
def test_bfloat16_models_are_healthy_with_it(architecture: str, tmp_path: Path) -> None:
    build_tiny_model(tmp_path, architecture)
    require_healthy(run_doctor(load_base(str(tmp_path), dtype="bfloat16", device="cpu")))


def test_it_is_scaled_dot_product_attention() -> None:
    source = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=source) for heads in (6, 2, 2))
    mask = torch.full((5, 5), float("-inf")).triu(1).expand(2, 1, 5, 5)
    ours, _ = compute_grouped_attention(torch.nn.Identity(), query, key, value, mask)
    oracle = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), oracle)


def test_attention_sinks_are_refused() -> None:
    tensor = torch.zeros(1, 1, 1, 2)
    with pytest.raises(ModelError, match="sinks"):
        compute_grouped_attention(torch.nn.Identity(), tensor, tensor, tensor, None, s_aux=torch.zeros(1))
