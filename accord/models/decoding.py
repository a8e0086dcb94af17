"""PackedDecoder: reads prompts and decodes one token a step on packed layers, in slots of a preallocated cache.

Implements slots that are taken, moved and freed at any step, each with its own length: a row's keys and values stand at
columns 0 to length - 1 of its slot, so nothing is padded on the left and nothing is copied when others come or go. A
prompt is read once for all slots that are given it together, and for those given it right after. On request the hidden
states that enter one layer, the trunk's, are kept beside keys and values. Leaves out what is drawn from the logits
(`rollout`), and models whose layers are not packed (`packing`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from accord.models.packed_layer import PackedLayer, Store, Thin, advance_layer, build_thins
from accord.models.packing import read_adapters

if TYPE_CHECKING:
    from accord.models.base import Base

READ_TOKENS = 4096
"""Padded tokens of prompts that are read in one pass."""


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was read: its ids, keys and values of L layers (L, 2, K, P, D), and next-token logits (V).

    trunk (P, H): what entered the layer that `keep_trunk` named, or the first.
    """

    ids: tuple[int, ...]
    states: Tensor
    logits: Tensor
    trunk: Tensor


class PackedDecoder:
    """Decodes under the role that is active when it is made; `slots` rows of at most `columns` tokens each.

    Rows 0 to len - 1 are taken. The adapters are copied once, in the dtype of the weights.
    """

    def __init__(self, base: Base, slots: int, columns: int) -> None:
        model: Any = base.model.base_model
        layers = base.stack
        first = base.packed[0]
        self.base, self.model = base, model
        self.head: Tensor = base.model.get_output_embeddings().weight
        adapters = [read_adapters(layer) for layer in layers]
        self.layers: list[tuple[PackedLayer, list[Thin | None]]] = [
            (packed, build_thins(packed, own, base.dtype))
            for packed, own in zip(base.packed, adapters, strict=True)
            if own is not None
        ]
        assert len(self.layers) == len(layers), "a role adapts all matrices of a layer or none"
        shape = (len(layers), 2, slots, first.key_heads, columns, first.head_width)
        self.cache = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=base.device)
        self.taken = 0
        self.trunk: Tensor | None = None
        self._split = -1
        self._last: _Prompt | None = None

    def keep_trunk(self, split: int) -> None:
        """From now on keep the hidden states that enter layer `split`, for every token that is written. Begin empty."""
        slots, columns = self.cache.shape[2], self.cache.shape[4]
        self._split = split
        self.trunk = self.cache.new_zeros(slots, columns, self.head.shape[1])

    def read_trunk(self, slot: int) -> Float[Tensor, "T H"]:
        """Those of the T tokens that the slot holds, in memory of their own.

        Raises:
            RuntimeError: they were not kept.
        """
        if self.trunk is None:
            raise RuntimeError("call keep_trunk before the first prompt")
        return self.trunk[slot, : int(self.lengths[slot])].clone()

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """Put `prompts` into the next slots; returns their next-token logits."""
        wanted = [tuple(ids) for ids in prompts]
        read: dict[tuple[int, ...], _Prompt] = {}
        if self._last is not None:
            read[self._last.ids] = self._last
        for group in _group(sorted({ids for ids in wanted if ids not in read}, key=len)):
            read |= {prompt.ids: prompt for prompt in self._read(group)}
        for slot, ids in enumerate(wanted, start=self.taken):
            self.lengths[slot] = len(ids)
            self.cache[:, :, slot, :, : len(ids)] = read[ids].states
            if self.trunk is not None:
                self.trunk[slot, : len(ids)] = read[ids].trunk
        self.taken += len(wanted)
        self._last = read[wanted[-1]]
        return torch.stack([read[ids].logits for ids in wanted])

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Write one token behind each taken slot; returns the logits that follow."""
        rows, places = torch.arange(self.taken, device=tokens.device), self.lengths[: self.taken]
        seen = int(places.max()) + 1
        columns = torch.arange(seen, device=tokens.device)
        mask = _mask_out(columns[None, :] > places[:, None], self.base.dtype)[:, None, None]

        def keep(layer: int) -> Store:
            keys, values = self.cache[layer, 0, : self.taken], self.cache[layer, 1, : self.taken]

            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                keys[rows, :, places], values[rows, :, places] = key[:, :, 0], value[:, :, 0]
                return keys[:, :, :seen], values[:, :, :seen]

            return store

        hidden, trunk = self._run(tokens[:, None], places[:, None], mask, keep)
        if self.trunk is not None:
            self.trunk[rows, places] = trunk[:, 0]
        places += 1
        return functional.linear(hidden[:, 0], self.head)

    def free(self, slot: int) -> None:
        """Give up a slot; the last taken one moves into its place."""
        self.taken -= 1
        if slot != self.taken:
            length = int(self.lengths[self.taken])
            self.cache[:, :, slot, :, :length] = self.cache[:, :, self.taken, :, :length]
            if self.trunk is not None:
                self.trunk[slot, :length] = self.trunk[self.taken, :length]
            self.lengths[slot] = length

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> list[_Prompt]:
        """One pass over different prompts, padded on the right."""
        lengths = torch.tensor([len(ids) for ids in prompts])
        width = int(lengths.max())
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts], device=self.base.device)
        columns = torch.arange(width, device=self.base.device)
        mask = _mask_out(columns[None, :] > columns[:, None], self.base.dtype)[None, None]
        states: list[Tensor] = []

        def keep(_: int) -> Store:
            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                states.append(torch.stack([key, value]))
                return key, value

            return store

        hidden, trunk = self._run(ids, columns.expand(ids.shape), mask, keep)
        logits = functional.linear(hidden[torch.arange(len(prompts)), lengths - 1], self.head)
        layers = torch.stack(states)
        return [
            _Prompt(p, layers[:, :, row, :, : len(p)], logits[row], trunk[row, : len(p)])
            for row, p in enumerate(prompts)
        ]

    def _run(
        self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], mask: Tensor, keep: Callable[[int], Store]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """Hidden states after the final norm, and those that enter the layer that `keep_trunk` named, or the first."""
        x = self.model.get_input_embeddings()(ids)
        cos, sin = self.model.rotary_emb(x, positions)
        trunk = x
        for number, (layer, thins) in enumerate(self.layers):
            if number == self._split:
                trunk = x
            x = advance_layer(layer, [thins], x, cos, sin, mask, keep(number))
        return self.model.norm(x), trunk


def _mask_out(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: the least finite number where `hidden`, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def _group(prompts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Prompts, sorted by length, in groups of at most READ_TOKENS when padded."""
    start = 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or (end + 1 - start) * len(prompts[end]) > READ_TOKENS:
            yield prompts[start:end]
            start = end


@torch.no_grad()
def check_packed_decoding(base: Base) -> bool:
    """Whether decoding on packed layers gives the logits of the model's own forward, on a row of random ids."""
    if not base.packed or not base.head_is_plain:
        return False
    ids = torch.randint(base.vocabulary, (1, 12), generator=torch.Generator().manual_seed(0)).to(base.device)
    try:
        with base.activate(None) as model:
            expected = model(**base.build_inputs(ids, torch.ones_like(ids, dtype=torch.bool))).logits[0, 7:].float()
            decoder = PackedDecoder(base, 1, 12)
            found = [decoder.admit([ids[0, :8].tolist()]), *(decoder.step(ids[:, i]) for i in range(8, 12))]
    except (TypeError, AttributeError, RuntimeError) as error:  # an architecture whose layers are called otherwise
        logging.getLogger(__name__).info("decoding runs the model's own layers: %s", error)
        return False
    gap = float((torch.cat(found).float() - expected).abs().max())
    return gap <= 32 * torch.finfo(base.dtype).eps * float(expected.abs().max())
