"""Whole models: the hash of frozen weights, a full trainable copy, and what the LM head is and needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel


def frozen_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The base's own parameters by the names they have without adapters; tied weights once."""
    return {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def compute_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256, 64 hex digits, over names, dtypes, shapes and bytes of the frozen weights, sorted by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(frozen_weights(model).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).reshape(-1).numpy().data)
    return digest.hexdigest()


def copy_model(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A trainable copy of the frozen weights in `dtype`, in evaluation mode, without adapters."""
    with torch.random.fork_rng(devices=[]):
        copy = AutoModelForCausalLM.from_config(
            model.config, dtype=dtype, attn_implementation=model.config._attn_implementation
        )
    copy.to(model.device)
    weights = frozen_weights(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(weights[name])
    copy.generation_config = model.generation_config
    return keep_head_fast(copy.eval().requires_grad_(True))


def keep_head_fast(model: PreTrainedModel) -> PreTrainedModel:
    """Copy what enters the LM head into one block of memory first; returns the same model.

    transformers hands the head a slice of columns, a view with gaps. On a CPU in bfloat16 torch multiplies such a view
    row by row: 4.4 s instead of 0.014 s for the last column of 32 prompts of SmolLM2.
    """

    def make_contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(), *inputs[1:])

    model.get_output_embeddings().register_forward_pre_hook(make_contiguous)
    return model


@torch.no_grad()
def is_head_plain(model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
    """Whether the logits of `inputs` are hidden states times the head's matrix: no bias, scale or soft cap."""
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    logits = model(**inputs).logits
    plain = nn.functional.linear(model.base_model(**inputs).last_hidden_state, head.weight)
    gap = float((logits.float() - plain.float()).abs().max())
    return gap <= 4 * torch.finfo(logits.dtype).eps * float(plain.float().abs().max())
