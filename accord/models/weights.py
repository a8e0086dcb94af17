"""Whole weights: the hash of a frozen model, and its full trainable copy."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
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


def copy_model(model: PreTrainedModel) -> PreTrainedModel:
    """A trainable float32 copy of the frozen weights, in evaluation mode, without adapters."""
    with torch.random.fork_rng(devices=[]):
        copy = AutoModelForCausalLM.from_config(
            model.config, dtype=torch.float32, attn_implementation=model.config._attn_implementation
        )
    copy.to(model.device)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(frozen_weights(model)[name])
    copy.generation_config = model.generation_config
    return copy.eval().requires_grad_(True)
