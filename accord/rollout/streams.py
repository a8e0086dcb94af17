"""Random streams: one for each sequence, so that neither the batch nor its order changes what is sampled.

Implements inverse-transform sampling from a categorical distribution. Leaves out top-p and top-k on purpose: while
optimising, the sampled distribution must be the one whose logprobs are trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_uniforms(seeds: Sequence[int], steps: int) -> Float[Tensor, "B C"]:
    """One stream a sequence: row i holds `steps` uniform numbers in [0, 1) that depend on `seeds[i]` alone. float64."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows) if rows else torch.empty(0, steps, dtype=torch.float64)


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Sample y with P(y) = softmax(logits / temperature) by inverting its cumulative distribution at `uniforms`.

    Returns the token ids and log P(y) in nats, float32. The sum runs in float64, so that the smallest probabilities of
    a vocabulary of 50,000 are not lost to rounding. Source: inverse transform sampling, Devroye 1986, chapter III.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    threshold = uniforms.to(cumulative.device, torch.float64)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]
