"""PackedDecoder: reads prompts and decodes one token a step on packed layers, in slots of a preallocated cache.

Implements slots that are taken, moved and freed at any step, each with its own length: a row's keys and values stand at
columns 0 to length - 1 of its slot, so nothing is padded on the left and nothing is copied when others come or go. A
prompt is read once for all slots that are given it together, and for those given it right after. On request the hidden
states that enter one layer, the trunk's, are kept beside keys and values. On CUDA a step is static (`static_step`).
Lengths are known to the host, so that no step waits for the device. Leaves out what is drawn from the logits
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

from accord.models.packed_layer import Store, Thin, advance_layer, build_thins
from accord.models.packing import read_adapters
from accord.models.static_step import Recorder, StaticStep, choose_recorder, send

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

    lengths: tokens that each taken slot holds; these are slots 0 to `taken` - 1. The adapters are copied once, in the
    dtype of the weights. With `record` its steps are static and recorded; without, they are as large as they must be.
    """

    def __init__(self, base: Base, slots: int, columns: int, *, record: Recorder | None = None) -> None:
        model: Any = base.model.base_model
        first = base.packed[0]
        self.base, self.model = base, model
        self.head: Tensor = base.model.get_output_embeddings().weight
        self.lanes = _copy_adapters(base)
        shape = (base.layers, 2, slots, first.key_heads, columns, first.head_width)
        self.cache = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self.lengths: list[int] = []
        self.trunk: Tensor | None = None
        self._split = -1
        self._last: _Prompt | None = None
        self._record = record
        self._static = self._build_static()

    @property
    def taken(self) -> int:
        """Slots that hold a row."""
        return len(self.lengths)

    @property
    def is_static(self) -> bool:
        """Whether its steps are recorded, so that it is worth keeping."""
        return self._static is not None

    def holds(self, slots: int, columns: int) -> bool:
        """Whether it has room for so many rows of so many tokens."""
        return slots <= self.cache.shape[2] and columns <= self.cache.shape[4]

    def restart(self) -> bool:
        """Begin empty, under the role that is active now, in the same memory, so that recorded steps go on to hold.

        False where that role has adapters in other places or of another rank: then nothing has changed.
        """
        fresh = [thin for lane in _copy_adapters(self.base) for thin in lane]
        own = [thin for lane in self.lanes for thin in lane]
        if [_shape(thin) for thin in fresh] != [_shape(thin) for thin in own]:
            return False
        for old, new in zip(own, fresh, strict=True):
            if old is not None and new is not None:
                old.a.copy_(new.a)
                old.b.copy_(new.b)
        self.lengths, self._last = [], None
        return True

    def keep_trunk(self, split: int) -> None:
        """From now on keep the hidden states that enter layer `split`, for every token that is written. Begin empty."""
        if split != self._split:
            slots, columns = self.cache.shape[2], self.cache.shape[4]
            self._split = split
            self.trunk = self.cache.new_zeros(slots, columns, self.head.shape[1])
            self._static = self._build_static()

    def read_trunk(self, slot: int) -> Float[Tensor, "T H"]:
        """Those of the T tokens that the slot holds, in memory of their own.

        Raises:
            RuntimeError: they were not kept.
        """
        if self.trunk is None:
            raise RuntimeError("call keep_trunk before the first prompt")
        return self.trunk[slot, : self.lengths[slot]].clone()

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """Put `prompts` into the next slots; returns their next-token logits."""
        wanted = [tuple(ids) for ids in prompts]
        read: dict[tuple[int, ...], _Prompt] = {}
        if self._last is not None:
            read[self._last.ids] = self._last
        for group in _group(sorted({ids for ids in wanted if ids not in read}, key=len)):
            read |= {prompt.ids: prompt for prompt in self._read(group)}
        for slot, ids in enumerate(wanted, start=self.taken):
            self.lengths.append(len(ids))
            self.cache[:, :, slot, :, : len(ids)] = read[ids].states
            if self.trunk is not None:
                self.trunk[slot, : len(ids)] = read[ids].trunk
        self._last = read[wanted[-1]]
        return torch.stack([read[ids].logits for ids in wanted])

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Write one token behind each taken slot; returns the logits that follow, which the next step may overwrite."""
        if self._static is None:
            logits = self._compute_step(tokens, send(self.lengths, tokens.device), max(self.lengths) + 1)
        else:
            logits = self._static(tokens, self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def free(self, slot: int) -> None:
        """Give up a slot; the last taken one moves into its place."""
        length = self.lengths.pop()
        if slot != self.taken:
            self.cache[:, :, slot, :, :length] = self.cache[:, :, self.taken, :, :length]
            if self.trunk is not None:
                self.trunk[slot, :length] = self.trunk[self.taken, :length]
            self.lengths[slot] = length

    def _build_static(self) -> StaticStep | None:
        """Nothing is recorded yet: what was recorded before would write into the buffers of then."""
        if self._record is None:
            return None
        logits = self.cache.new_zeros(self.cache.shape[2], len(self.head))
        return StaticStep(self._compute_step, self._record, logits, self.cache.shape[4])

    def _compute_step(
        self, tokens: Int[Tensor, " N"], places: Int[Tensor, " N"], seen: int
    ) -> Float[Tensor, "N V"]:
        """Write `tokens` into columns `places` of slots 0 to N - 1, all below `seen`; returns the logits that follow.

        Its shapes depend on N and `seen` alone, and the host reads nothing of the device: a step can be recorded.
        """
        count = len(tokens)
        rows, columns = torch.arange(count, device=tokens.device), torch.arange(seen, device=tokens.device)
        mask = _mask_out(columns[None, :] > places[:, None], self.base.dtype)[:, None, None]

        def keep(layer: int) -> Store:
            keys, values = self.cache[layer, 0, :count], self.cache[layer, 1, :count]

            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                keys[rows, :, places], values[rows, :, places] = key[:, :, 0], value[:, :, 0]
                return keys[:, :, :seen], values[:, :, :seen]

            return store

        hidden, trunk = self._run(tokens[:, None], places[:, None], mask, keep)
        if self.trunk is not None:
            self.trunk[rows, places] = trunk[:, 0]
        return functional.linear(hidden[:, 0], self.head)

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
        for number, (layer, thins) in enumerate(zip(self.base.packed, self.lanes, strict=True)):
            if number == self._split:
                trunk = x
            x = advance_layer(layer, [thins], x, cos, sin, mask, keep(number))
        return self.model.norm(x), trunk


def _copy_adapters(base: Base) -> list[list[Thin | None]]:
    """The active role's, layer by layer, in the dtype of the weights."""
    lane = []
    for packed, layer in zip(base.packed, base.stack, strict=True):
        adapters = read_adapters(layer)
        assert adapters is not None, "a role adapts all matrices of a layer or none"
        lane.append(build_thins(packed, adapters, base.dtype))
    return lane


def _shape(thin: Thin | None) -> tuple[torch.Size, ...]:
    return () if thin is None else (thin.a.shape, thin.b.shape)


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
            decoder = PackedDecoder(base, 1, 12, record=choose_recorder(base.device))
            found = [decoder.admit([ids[0, :8].tolist()]), *(decoder.step(ids[:, i]).clone() for i in range(8, 12))]
    except (TypeError, AttributeError, RuntimeError) as error:  # an architecture whose layers are called otherwise
        logging.getLogger(__name__).info("decoding runs the model's own layers: %s", error)
        return False
    gap = float((torch.cat(found).float() - expected).abs().max())
    return gap <= 32 * torch.finfo(base.dtype).eps * float(expected.abs().max())
