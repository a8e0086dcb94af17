"""What the doctor feeds a model: fixed short conversations, in the layouts that sampling and training use.

Implements rows of prompt and completion ids, the rollout layout with spare padding, logprobs by full recomputation and
by decoding with a key-value cache. Leaves out every judgement (`doctor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from accord.errors import ModelError
from accord.models.base import Base
from accord.models.tokenizer import ChatTokenizer
from accord.types import Completion, Prompt

TEXTS = (
    ("Name a colour.", "Green, like moss after rain."),
    ("What do bees make, and how do they keep it through the winter?", "Honey, in wax cells."),
    ("Hi!", "Hello."),
)
"""Prompts and completions of different lengths."""


@dataclass(frozen=True)
class Row:
    """One prompt and one completion as token ids, neither empty."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Rows in the rollout layout: P prompt columns padded on the left, C completion columns padded on the right.

    input_ids (B, P + C); attention_mask (B, P + C) bool; columns: C.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    columns: int

    @property
    def completion_ids(self) -> Int[Tensor, "B C"]:
        """The last C columns."""
        return self.input_ids[:, -self.columns :]

    @property
    def completion_mask(self) -> Bool[Tensor, "B C"]:
        """The mask of the last C columns."""
        return self.attention_mask[:, -self.columns :]


def build_rows(tokens: ChatTokenizer) -> list[Row]:
    """`TEXTS` as ids: chats where the model's template takes them, texts otherwise."""
    return [
        Row(tuple(_encode_prompt(tokens, question)), tuple(tokens.encode_completion(Completion.from_text(answer))))
        for question, answer in TEXTS
    ]


def _encode_prompt(tokens: ChatTokenizer, question: str) -> list[int]:
    if tokens.has_template:
        try:
            return tokens.encode_prompt(Prompt.from_user(question))
        except ModelError:  # the template's own check names the reason
            return tokens.encode_prompt(Prompt(text=question))
    return tokens.encode_prompt(Prompt(text=question))


def lay_out(base: Base, rows: Sequence[Row], *, spare: int = 0) -> Layout:
    """Pad `rows` to their longest prompt and completion, and by `spare` columns more on either side."""
    prompt_columns = max(len(r.prompt_ids) for r in rows) + spare
    columns = max(len(r.completion_ids) for r in rows) + spare
    ids = torch.full((len(rows), prompt_columns + columns), base.tokens.pad_id, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start, end = prompt_columns - len(row.prompt_ids), prompt_columns + len(row.completion_ids)
        ids[i, start:end] = torch.tensor(row.prompt_ids + row.completion_ids)
        mask[i, start:end] = True
    return Layout(ids.to(base.device), mask.to(base.device), columns)


def compute_layout_logprobs(
    base: Base, role: str | None, layout: Layout, *, trunk: bool = False
) -> Float[Tensor, "B C"]:
    """log p of each completion token by one full pass, from the trunk where asked, in nats; 0 where masked."""
    states = base.compute_trunk(layout.input_ids, layout.attention_mask) if trunk else None
    logits = base.compute_logits(role, layout.input_ids, layout.attention_mask, layout.columns, states)
    return pick_logprobs(logits, layout.completion_ids).where(layout.completion_mask, 0.0)


def pick_logprobs(logits: Float[Tensor, "*axes V"], ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """log softmax(logits)[ids], float32."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[..., None])[..., 0]


def decode_cached(
    base: Base, role: str | None, rows: Sequence[Row], *, sample: bool, seed: int = 0
) -> tuple[list[Row], Float[Tensor, "B C"]]:
    """Decode one token at a time with a key-value cache, prompts padded on the left.

    Where `sample`, tokens are drawn at temperature 1 for as many steps as the longest completion; otherwise those of
    `rows` are forced. Returns the rows as decoded and log p of each token (B, C) in nats, 0 after a row's end.
    """
    layout = lay_out(base, rows)
    prompt_columns = layout.input_ids.shape[1] - layout.columns
    mask, ids = layout.attention_mask[:, :prompt_columns], layout.input_ids[:, :prompt_columns]
    generator = torch.Generator().manual_seed(seed)
    taken: list[Tensor] = []
    logprobs: list[Tensor] = []
    with base.activate(role) as model:
        cache = DynamicCache(config=model.config)
        for step in range(layout.columns):
            positions = (mask.long().cumsum(dim=1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
            logits = _step(model, ids, mask, positions, cache)
            token = layout.completion_ids[:, step]
            if sample:
                chances = torch.softmax(logits.float(), dim=-1).cpu()
                token = torch.multinomial(chances, 1, generator=generator)[:, 0].to(base.device)
            taken.append(token)
            logprobs.append(pick_logprobs(logits, token))
            ids = token[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    columns, stacked = torch.stack(taken, dim=1), torch.stack(logprobs, dim=1)
    if not sample:
        return list(rows), stacked.where(layout.completion_mask, 0.0)
    decoded = [Row(row.prompt_ids, tuple(ids)) for row, ids in zip(rows, columns.tolist(), strict=True)]
    return decoded, stacked


def _step(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Float[Tensor, "B V"]:
    """Next-token logits after reading `ids`, what came before being in the cache."""
    outputs = model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True
    )
    logits: Tensor = outputs.logits[:, -1]
    return logits
