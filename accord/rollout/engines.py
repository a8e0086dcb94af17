"""Engines: how a running batch is decoded, one token a step.

Implements two under one interface: `PackedEngine`, for models whose layers run packed, in which rows come and go at any
step; and `CachedEngine`, for any other causal LM, on the model's own forward and transformers' cache, which takes new
rows only when the last ones have left. An engine whose steps are recorded is kept for the next rollout (`Reopener`).
Leaves out what is drawn from the logits (`streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from accord.models import Base
from accord.models.decoding import PackedDecoder
from accord.models.static_step import COLUMN_STEP, choose_recorder, send

KEPT_SHARE = 0.1
"""An engine's cache is kept from one rollout to the next where it takes no more than this share of a GPU's memory."""

COMPACT_BELOW = 0.75
"""The cache is compacted when less than this share of its rows is still wanted: copying it is not free."""


@runtime_checkable
class Engine(Protocol):
    """A batch that is being decoded. Its rows are in the order in which they entered, or as `keep` says."""

    admits_while_running: bool

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """Rows that enter behind those that are there; returns their next-token logits."""
        ...

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """One more token for each row; returns the logits that follow, which the next step may overwrite."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """All other rows leave. Returns which of the old rows the new ones are, in their new order."""
        ...


OpenEngine = Callable[[Base, PreTrainedModel, int, int], Engine]
"""Opens an engine for (base, model, slots, columns); see `open_engine`."""


def open_engine(base: Base, model: PreTrainedModel, slots: int, columns: int) -> Engine:
    """The fastest engine that is proven for `model`, a role of `base`; no row becomes longer than `columns`."""
    if model is base.model and base.decodes_packed:
        record = choose_recorder(base.device)
        if record is not None:  # room for the next rollout's longest prompt
            columns += -columns % COLUMN_STEP
        return PackedEngine(PackedDecoder(base, slots, columns, record=record))
    return CachedEngine(base, model)


class Reopener:
    """Opens engines by `inner`, but goes on with the last one where its steps are recorded and it has room.

    Recording takes as long as dozens of steps, and what is recorded holds for one place in memory. So the memory stays
    taken, where it is no more than KEPT_SHARE of the device's.
    """

    def __init__(self, inner: OpenEngine = open_engine) -> None:
        self.inner = inner
        self.last: PackedDecoder | None = None

    def __call__(self, base: Base, model: PreTrainedModel, slots: int, columns: int) -> Engine:
        """As `open_engine`, under the role that is active now."""
        last, self.last = self.last, None
        fits = last is not None and last.base is base and last.model is model.base_model and last.holds(slots, columns)
        if last is not None and fits and last.restart():
            self.last = last
            return PackedEngine(last)
        del last  # its memory is free before the next is taken
        engine = self.inner(base, model, slots, columns)
        if isinstance(engine, PackedEngine) and engine.decoder.is_static and _is_small(engine.decoder.cache):
            self.last = engine.decoder
        return engine


def _is_small(cache: Tensor) -> bool:
    if cache.device.type != "cuda":
        return True
    return cache.nbytes <= KEPT_SHARE * torch.cuda.get_device_properties(cache.device).total_memory


class PackedEngine:
    """Decoding on packed layers, in slots that are refilled as they fall free."""

    admits_while_running = True

    def __init__(self, decoder: PackedDecoder) -> None:
        self.decoder = decoder

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """As in `Engine`."""
        return self.decoder.admit(prompts)

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """As in `Engine`."""
        return self.decoder.step(tokens)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As in `Engine`: the last row takes the place of one that leaves, so that little is copied."""
        order, wanted = list(range(self.decoder.taken)), set(rows)
        for slot in reversed(range(len(order))):
            if order[slot] not in wanted:
                self.decoder.free(slot)
                last = order.pop()
                if slot < len(order):
                    order[slot] = last
        return order


class CachedEngine:
    """Decoding by the model's own forward; prompts are padded on the left, rows that have left are dropped late."""

    admits_while_running = False

    def __init__(self, base: Base, model: PreTrainedModel) -> None:
        self.base = base
        self.model = model
        self.held: list[int] = []  # rows of the cache that are wanted

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """As in `Engine`, into an empty batch; each different prompt is read once."""
        unique = list(dict.fromkeys(tuple(ids) for ids in prompts))
        ids, mask = (t.to(self.base.device) for t in pad_left(unique, self.base.tokens.pad_id))
        self.cache = DynamicCache(config=self.base.model.config)
        logits = self._forward(ids, mask, (mask.long().cumsum(dim=1) - 1).clamp_(min=0), logits_to_keep=1)
        place = {ids: i for i, ids in enumerate(unique)}
        index = torch.tensor([place[tuple(ids)] for ids in prompts], device=self.base.device)
        if len(unique) < len(prompts):
            self.cache.batch_select_indices(index)
        self.mask = mask[index]
        self.held = list(range(len(prompts)))
        return logits[index]

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """As in `Engine`."""
        every = torch.full((len(self.mask),), self.base.tokens.pad_id, device=tokens.device)
        every[self.held] = tokens
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self._forward(every[:, None], self.mask, self.mask.sum(dim=1, keepdim=True) - 1)[self.held]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As in `Engine`."""
        self.held = [self.held[row] for row in rows]
        if self.held and len(self.held) <= COMPACT_BELOW * len(self.mask):
            index = send(self.held, self.base.device)
            self.cache.batch_select_indices(index)
            self.mask, self.held = self.mask[index], list(range(len(index)))
        return list(rows)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Float[Tensor, "N V"]:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).logits[:, -1]
        return logits


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """`rows` side by side, filled up on the left with `pad_id`, and the mask that is True on their real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
