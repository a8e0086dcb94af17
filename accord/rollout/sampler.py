"""Sampler: the `Generator` that Accord trains with.

Implements batched decoding with a key-value cache: prompts sorted by length, a prompt that several samples share is
read once, finished rows leave the batch, logprobs are taken while sampling, and every sequence has its own random
stream. Leaves out admission of waiting prompts into a running batch, CUDA graphs, top-p and top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache

from accord.errors import DataError
from accord.models import Base
from accord.rollout.streams import draw_tokens, draw_uniforms
from accord.types import Completion, Prompt, Rollout

COMPACT_BELOW = 0.75
"""The batch is compacted when less than this share of its rows is still decoding: copying the cache is not free."""


@dataclass
class _Sequence:
    """One sequence while it is being sampled."""

    prompt_ids: list[int]
    uniforms: Tensor
    completion_ids: list[int]
    logprobs: list[float]
    finished: bool = False


class Sampler:
    """Samples completions from a role of `base`, `batch_size` sequences side by side.

    The batch size changes speed and memory only: in float32 the tokens are those of one-by-one recomputation.
    `on_tokens`, where given, is called with the number of tokens just sampled (for a progress bar).
    """

    def __init__(self, base: Base, batch_size: int = 32, on_tokens: Callable[[int], None] | None = None) -> None:
        self.base = base
        self.batch_size = batch_size
        self.on_tokens = on_tokens

    @torch.no_grad()
    def generate(
        self,
        role: str | None,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> Rollout:
        """One completion for each prompt, with its sampling logprobs; see `types.Rollout` for shapes.

        Raises:
            DataError: no prompts, or not one seed a prompt.
        """
        if not prompts or len(prompts) != len(seeds):
            raise DataError(f"{len(prompts)} prompts and {len(seeds)} seeds", mend="give one seed for each prompt")
        encoded = _encode_unique(self.base, prompts)
        uniforms = draw_uniforms(seeds, max_new_tokens)
        rows = [_Sequence(encoded[p], uniforms[i], [], []) for i, p in enumerate(prompts)]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids), rows[i].prompt_ids))
        with self.base.activate(role) as model:
            for start in range(0, len(order), self.batch_size):
                batch = [rows[i] for i in order[start : start + self.batch_size]]
                self._decode(model, batch, max_new_tokens, temperature)
        return assemble_rollout(
            self.base,
            prompts,
            [r.prompt_ids for r in rows],
            [r.completion_ids for r in rows],
            [r.logprobs for r in rows],
            [r.finished for r in rows],
        )

    def _decode(self, model: nn.Module, rows: list[_Sequence], max_new_tokens: int, temperature: float) -> None:
        """Sample every row to EOS or `max_new_tokens`, in place."""
        device, eos_id = self.base.device, self.base.tokens.eos_id
        cache, mask, logits = _prefill(self.base, model, rows)
        active = list(rows)
        for step in range(max_new_tokens):
            uniforms = torch.stack([r.uniforms[step] for r in active])
            tokens, logprobs = draw_tokens(logits, uniforms, temperature)
            sampled, sampled_logprobs = tokens.tolist(), logprobs.tolist()
            for row, token, logprob in zip(active, sampled, sampled_logprobs, strict=True):
                if not row.finished:
                    row.completion_ids.append(token)
                    row.logprobs.append(logprob)
                    row.finished = token == eos_id
            alive = [i for i, row in enumerate(active) if not row.finished]
            if self.on_tokens:
                self.on_tokens(len(active))
            if not alive or step + 1 == max_new_tokens:
                return
            if len(alive) <= COMPACT_BELOW * len(active):
                keep = torch.tensor(alive, device=device)
                cache.batch_select_indices(keep)
                mask, tokens = mask[keep], tokens[keep]
                active = [active[i] for i in alive]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            logits = model(
                input_ids=tokens[:, None],
                attention_mask=mask.long(),
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]


def _encode_unique(base: Base, prompts: Sequence[Prompt]) -> dict[Prompt, list[int]]:
    """Token ids of each different prompt."""
    return {prompt: base.tokens.encode_prompt(prompt) for prompt in dict.fromkeys(prompts)}


def _pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    width = max(len(r) for r in rows)
    ids = torch.tensor([[pad_id] * (width - len(r)) + list(r) for r in rows])
    mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rows])
    return ids, mask


def _prefill(base: Base, model: nn.Module, rows: Sequence[_Sequence]) -> tuple[DynamicCache, Tensor, Tensor]:
    """Read each different prompt of the batch once; returns the cache, mask (B, P) and next-token logits (B, V)."""
    unique = {tuple(r.prompt_ids): None for r in rows}
    position = {ids: i for i, ids in enumerate(unique)}
    ids, mask = (t.to(base.device) for t in _pad_left(list(unique), base.tokens.pad_id))
    cache = DynamicCache(config=base.model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(dim=1) - 1).clamp_(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if len(unique) == len(rows):
        return cache, mask, logits
    index = torch.tensor([position[tuple(r.prompt_ids)] for r in rows], device=base.device)
    cache.batch_select_indices(index)
    return cache, mask[index], logits[index]


def assemble_rollout(
    base: Base,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    finished: Sequence[bool],
) -> Rollout:
    """Pad B prompts on the left and B completions on the right into one `Rollout`; texts are decoded without EOS."""
    pad_id = base.tokens.pad_id
    left_ids, left_mask = _pad_left(prompt_ids, pad_id)
    width = max(len(c) for c in completion_ids)
    right_ids = torch.tensor([list(c) + [pad_id] * (width - len(c)) for c in completion_ids])
    right_mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in completion_ids])
    right_logprobs = torch.tensor([list(p) + [0.0] * (width - len(p)) for p in logprobs], dtype=torch.float32)
    completions = tuple(
        Completion.from_text(base.tokens.decode(ids[:-1] if done else ids), finished=done)
        for ids, done in zip(completion_ids, finished, strict=True)
    )
    tensors = (left_ids, left_mask, right_ids, right_mask, right_logprobs, torch.tensor(list(finished)))
    return Rollout(tuple(prompts), completions, *(t.to(base.device) for t in tensors))


def count_tokens(rollout: Rollout) -> int:
    """Sampled tokens of a rollout, EOS included."""
    return int(rollout.completion_mask.sum())
