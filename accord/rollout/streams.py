"""Random streams: one for each sequence, so that neither the batch nor its order changes what is sampled.

Implements inverse-transform sampling from a categorical distribution. Leaves out top-p and top-k on purpose: while
optimising, the sampled distribution must be the one whose logprobs are trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BLOCK = 128
"""Tokens in a block of the two-level inversion; changes speed only."""


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

    Returns the token ids and log P(y) in nats, float32. Sums run in float64, so that the smallest probabilities of a
    vocabulary of 50,000 are not lost to rounding. The inversion has two levels, first the block of `BLOCK` tokens, then
    the token in it: a third of the time of one long cumulative sum. A token of probability 0 is never drawn.
    Source: inverse transform sampling, Devroye 1986, chapter III.
    """
    scores = logits.float()
    if temperature != 1:
        scores = scores / temperature
    probabilities = torch.softmax(scores, dim=-1)
    largest, place = scores.max(dim=-1)
    norm = largest - probabilities.gather(1, place[:, None])[:, 0].log()
    padded = probabilities
    if short := -probabilities.shape[-1] % BLOCK:
        padded = nn.functional.pad(probabilities, (0, short))
    blocks = padded.view(len(logits), -1, BLOCK)
    shares = uniforms.to(logits.device, torch.float64)
    block, rest = _invert(blocks.sum(dim=-1, dtype=torch.float64), shares, scale=True)
    within = blocks[torch.arange(len(blocks), device=block.device), block].double()
    offset, _ = _invert(within, rest, scale=False)
    tokens = block * BLOCK + offset
    return tokens, scores.gather(1, tokens[:, None])[:, 0] - norm


def _invert(masses: Float[Tensor, "B N"], targets: Float[Tensor, " B"], *, scale: bool) -> tuple[Tensor, Tensor]:
    """First cell whose cumulative mass passes the target, always one with mass, and what of the target is left in it.

    With `scale` the targets are shares of the whole mass.
    """
    cumulative = masses.cumsum(dim=-1)
    wanted = targets * cumulative[:, -1] if scale else targets
    cells = torch.searchsorted(cumulative, wanted[:, None], right=True)[:, 0]
    columns = torch.arange(masses.shape[-1], device=masses.device)
    last_with_mass = torch.where(masses > 0, columns, 0).amax(dim=-1)
    cells = torch.minimum(cells, last_with_mass)
    before = cumulative.gather(1, cells[:, None])[:, 0] - masses.gather(1, cells[:, None])[:, 0]
    return cells, (wanted - before).clamp_(min=0)
