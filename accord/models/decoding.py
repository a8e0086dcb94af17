"""PackedDecoder: reads prompts and decodes one token a step on packed layers, in slots of a preallocated cache.

Implements slots that are taken, moved and freed at any step, each with its own length: a row's keys and values stand at
columns 0 to length - 1 of its slot, so nothing is padded on the left and nothing is copied when others come or go. A
prompt is read once for all slots that are given it together, and for those given it right after. On request the hidden
states that enter one layer, the trunk's, are kept beside keys and values; and a second lane of rows runs along under a
critic's adapter, whose final hidden states are kept, so that values need no pass of their own. On CUDA a step is static
(`static_step`). The host knows all lengths, so that no step waits for the device. Leaves out what is drawn from the
logits (`rollout`), and models whose layers are not packed (`packing`).
"""

from __future__ import annotations

import logging
import math
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

WIDTH_STEP = 32
"""A cache that is not static grows by so many columns: a CPU would copy a part of its columns to multiply with it."""


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was read: its ids, keys and values in each plane (planes, 2, K, P, D), next-token logits (V).

    trunk (P, H): what entered the layer that `keep_trunk` named, or the first. end (H): the last token's final hidden
    state in the last lane.
    """

    ids: tuple[int, ...]
    states: Tensor
    logits: Tensor
    trunk: Tensor
    end: Tensor


class PackedDecoder:
    """Decodes under the role that is active when it is made; `slots` rows of at most `columns` tokens each.

    lengths: tokens that each taken slot holds; these are slots 0 to `taken` - 1. cache (planes, 2, slots, K, S, D):
    keys and values, a plane for each layer, and one more for each that a critic's lane has to itself. The adapters are
    copied once, in the dtype of the weights. With `record` its steps are static and recorded, and S is `columns`;
    without, there are as many rows in a step as are taken, and S grows as they do.
    """

    cache: Tensor
    _memory: Tensor
    trunk: Tensor | None
    ends: Tensor | None
    _static: StaticStep | None

    def __init__(self, base: Base, slots: int, columns: int, *, record: Recorder | None = None) -> None:
        model: Any = base.model.base_model
        self.base, self.model = base, model
        self.slots, self.columns = slots, columns
        self.head: Tensor = base.model.get_output_embeddings().weight
        self.lengths: list[int] = []
        self._record = record
        self._split, self._critic, self._running = -1, "", 1
        self._last: _Prompt | None = None
        self.trunk, self.ends = None, None
        self._allocate()

    @property
    def taken(self) -> int:
        """Slots that hold a row."""
        return len(self.lengths)

    @property
    def follows(self) -> bool:
        """Whether a critic's lane runs along."""
        return self._running > 1

    @property
    def is_static(self) -> bool:
        """Whether its steps are recorded, so that it is worth keeping."""
        return self._static is not None

    def holds(self, slots: int, columns: int) -> bool:
        """Whether it has room for so many rows of so many tokens."""
        return slots <= self.slots and columns <= self.columns

    def restart(self) -> bool:
        """Begin empty, under the role that is active now, in the same memory, so that recorded steps go on to hold.

        False where that role, or the critic, has adapters in other places or of another rank: then nothing has changed.
        """
        if self._critic and self._critic not in self.base.roles():
            return False
        own, fresh = _flatten(self._lanes), _flatten(_copy_lanes(self.base, self._critic))
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
            self._split = split
            self.trunk = self.cache.new_zeros(self.slots, self.columns, self.base.hidden_size)
            self._static = self._build_static()

    def follow(self, critic: str | None) -> None:
        """From now on carry a second lane of rows, `critic`'s, and keep its final hidden states. Begin empty.

        Both lanes are one up to the first layer that either adapts; above, each frozen matrix is read once for both.
        None: the policy's lane alone.
        """
        self._running = 1 if critic is None else 2
        self._last = None
        if critic is not None and critic != self._critic:
            self._critic = critic
            self._allocate()

    def read_trunk(self, slot: int) -> Float[Tensor, "T H"]:
        """What entered the trunk's layer, of the T tokens that the slot holds, in memory of their own.

        Raises:
            RuntimeError: they were not kept.
        """
        if self.trunk is None:
            raise RuntimeError("call keep_trunk before the first prompt")
        return self.trunk[slot, : self.lengths[slot]].clone()

    def read_ends(self, slot: int, first: int) -> Float[Tensor, "N H"]:
        """The critic's final hidden states at the slot's tokens from number `first` on, in memory of their own.

        Raises:
            RuntimeError: they were not kept.
        """
        if self.ends is None:
            raise RuntimeError("call follow before the first prompt")
        return self.ends[slot, first : self.lengths[slot]].clone()

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """Put `prompts` into the next slots; returns their next-token logits."""
        wanted = [tuple(ids) for ids in prompts]
        read: dict[tuple[int, ...], _Prompt] = {}
        if self._last is not None:
            read[self._last.ids] = self._last
        for group in _group(sorted({ids for ids in wanted if ids not in read}, key=len)):
            read |= {prompt.ids: prompt for prompt in self._read(group)}
        self._widen(max(len(ids) for ids in wanted))
        planes = self._find_planes()
        for slot, ids in enumerate(wanted, start=self.taken):
            self.lengths.append(len(ids))
            self.cache.select(2, slot)[planes, :, :, : len(ids)] = read[ids].states
            if self.trunk is not None:
                self.trunk[slot, : len(ids)] = read[ids].trunk
            if self.ends is not None:
                self.ends[slot, len(ids) - 1] = read[ids].end
        self._last = read[wanted[-1]]
        return torch.stack([read[ids].logits for ids in wanted])

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Write one token behind each taken slot; returns the logits that follow, which the next step may overwrite."""
        if self._static is None:
            self._widen(max(self.lengths) + 1)
            places = send(self.lengths, tokens.device)
            logits = self._compute_step(tokens, places, self.cache.shape[4], self._running)
        else:
            logits = self._static(self._compute_step, tokens, self.lengths, self._running)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def free(self, slot: int) -> None:
        """Give up a slot; the last taken one moves into its place."""
        length = self.lengths.pop()
        if slot == self.taken:
            return
        self.cache[:, :, slot, :, :length] = self.cache[:, :, self.taken, :, :length]
        for kept in (self.trunk, self.ends):
            if kept is not None:
                kept[slot, :length] = kept[self.taken, :length]
        self.lengths[slot] = length

    def _allocate(self) -> None:
        """The lanes' adapters and memory anew, the old freed before, and what is kept of a critic."""
        base, first = self.base, self.base.packed[0]
        self.cache = self._memory = self.head.new_empty(0)
        self._static = None
        self._lanes = _copy_lanes(base, self._critic)
        layers = zip(*self._lanes, strict=True)
        adapted = [any(thin is not None for own in layer for thin in own) for layer in layers]
        self._fork = adapted.index(True) if len(self._lanes) > 1 else base.layers
        above = len(self._lanes) * (base.layers - self._fork)
        row = self.slots * first.key_heads * self.columns * first.head_width
        self._memory = torch.zeros(self._fork + above, 2, row, dtype=base.dtype, device=base.device)
        self.cache = self._lay_out(0 if self._record is None else self.columns)
        if self._critic:
            self.ends = self.cache.new_zeros(self.slots, self.columns, base.hidden_size)
        self._static = self._build_static()

    def _build_static(self) -> StaticStep | None:
        """Nothing is recorded yet: what was recorded would write into the buffers of then."""
        if self._record is None:
            return None
        return StaticStep(self._record, self.cache.new_zeros(self.slots, len(self.head)), self.columns)

    def _lay_out(self, columns: int) -> Tensor:
        """The cache with so many columns: each plane's rows side by side, without gaps, where its memory begins."""
        first = self.base.packed[0]
        shape = (len(self._memory), 2, self.slots, first.key_heads, columns, first.head_width)
        return self._memory[..., : math.prod(shape[2:])].view(shape)

    def _widen(self, columns: int) -> None:
        """Lay the cache out anew where it has fewer columns than that."""
        old, had = self.cache, self.cache.shape[4]
        if columns <= had:
            return
        self.cache = self._lay_out(min(-(-columns // WIDTH_STEP) * WIDTH_STEP, self.columns))
        for plane, kept in zip(self.cache, old, strict=True):
            plane[:, : self.taken, :, :had] = kept[:, : self.taken].clone()

    def _find_plane(self, layer: int) -> int:
        """The first of a layer's planes; another lane's is the next."""
        return layer + (len(self._lanes) - 1) * max(0, layer - self._fork)

    def _find_planes(self) -> slice | list[int]:
        """All planes that the running lanes write."""
        if self._running == len(self._lanes):
            return slice(None)
        return [self._find_plane(layer) for layer in range(self.base.layers)]

    def _compute_step(
        self, tokens: Int[Tensor, " N"], places: Int[Tensor, " N"], seen: int, lanes: int
    ) -> Float[Tensor, "N V"]:
        """Write `tokens` into columns `places` of slots 0 to N - 1, all below `seen`; returns the logits that follow.

        Its shapes depend on N, `seen` and `lanes` alone, and the host reads nothing of the device: it can be recorded.
        """
        count = len(tokens)
        rows, columns = torch.arange(count, device=tokens.device), torch.arange(seen, device=tokens.device)
        mask = _mask_out(columns[None, :] > places[:, None], self.base.dtype)[:, None, None]

        def keep(plane: int) -> Store:
            def store(key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
                seen_of = []
                for lane, new in enumerate(zip(key.split(count), value.split(count), strict=True), start=plane):
                    keys, values = self.cache[lane, 0, :count], self.cache[lane, 1, :count]
                    keys[rows, :, places], values[rows, :, places] = new[0][:, :, 0], new[1][:, :, 0]
                    seen_of.append((keys[:, :, :seen], values[:, :, :seen]))
                return seen_of

            return store

        hidden, trunk = self._run(tokens[:, None], places[:, None], mask, keep, lanes)
        if self.trunk is not None:
            self.trunk[rows, places] = trunk[:, 0]
        if self.ends is not None:
            self.ends[rows, places] = hidden[-count:, 0]
        return functional.linear(hidden[:count, 0], self.head)

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> list[_Prompt]:
        """One pass over different prompts, padded on the right."""
        width = max(len(ids) for ids in prompts)
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts], device=self.base.device)
        columns = torch.arange(width, device=self.base.device)
        mask = _mask_out(columns[None, :] > columns[:, None], self.base.dtype)[None, None]
        states: list[Tensor] = []

        def keep(_: int) -> Store:
            def store(key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
                states.extend(torch.stack([key, value]).split(len(ids), dim=1))
                return [(key, value)]

            return store

        hidden, trunk = self._run(ids, columns.expand(ids.shape), mask, keep, self._running)
        last = list(range(len(prompts))), [len(p) - 1 for p in prompts]
        logits, ends = functional.linear(hidden[: len(ids)][last], self.head), hidden[-len(ids) :][last]
        planes = torch.stack(states)
        return [
            _Prompt(p, planes[:, :, row, :, : len(p)], logits[row], trunk[row, : len(p)], ends[row])
            for row, p in enumerate(prompts)
        ]

    def _run(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        mask: Tensor,
        keep: Callable[[int], Store],
        lanes: int,
    ) -> tuple[Float[Tensor, "L T H"], Float[Tensor, "B T H"]]:
        """Hidden states after the final norm, lane by lane, and those that enter the layer that `keep_trunk` named."""
        x = self.model.get_input_embeddings()(ids)
        cos, sin = self.model.rotary_emb(x, positions)
        trunk = x
        for number, layer in enumerate(self.base.packed):
            if number == self._split:
                trunk = x
            if number == self._fork:
                x, cos, sin = (part.repeat(lanes, 1, 1) for part in (x, cos, sin))
            own = [lane[number] for lane in self._lanes[: lanes if number >= self._fork else 1]]
            x = advance_layer(layer, own, x, cos, sin, mask, keep(self._find_plane(number)))
        return self.model.norm(x), trunk


Lane = list[list[Thin | None]]
"""A role's adapters, layer by layer."""


def _copy_lanes(base: Base, critic: str) -> list[Lane]:
    """The active role's adapters, and behind them the critic's, if any."""
    lanes = [_copy_adapters(base)]
    if critic:
        with base.activate(critic):
            lanes.append(_copy_adapters(base))
    return lanes


def _copy_adapters(base: Base) -> Lane:
    """The active role's, layer by layer, in the dtype of the weights."""
    lane = []
    for packed, layer in zip(base.packed, base.stack, strict=True):
        adapters = read_adapters(layer)
        assert adapters is not None, "a role adapts all matrices of a layer or none"
        lane.append(build_thins(packed, adapters, base.dtype))
    return lane


def _flatten(lanes: Sequence[Lane]) -> list[Thin | None]:
    return [thin for lane in lanes for layer in lane for thin in layer]


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
