"""Static decoding: a step of fixed shapes on buffers at fixed addresses, which a device records once and replays.

Implements rounding a batch up to one of a few sizes (`choose_rows`, `choose_columns`), the buffers, and recording as
CUDA graphs, which spares a GPU's host the launch of each of a layer's kernels. A step is recorded once for each set of
sizes; nothing in it depends on a number that the device holds, so the host never waits for the device. Leaves out what
a step computes (`decoding`). Nothing here has run on a GPU yet: tests record with a stand-in that replays every
operation on the very same memory, as a graph does.
Source: CUDA graphs as in "CUDA semantics", PyTorch's documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

COLUMN_STEP = 128
"""Columns that are attended to come in multiples of this; the needless ones are masked."""

WARM_UP = 3
"""Runs on a side stream before a step is recorded, in which libraries settle what they allocate and choose."""

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a call runs on the device and returns what repeats it, on the same memory. The call may run any number
of times meanwhile: it must give the same however often it is run."""

Compute = Callable[[Tensor, Tensor, int, int], Tensor]
"""Logits (N, V) behind `tokens` (N,) that stand in columns `places` (N,), of so many columns seen, in so many lanes."""


class StaticStep:
    """Steps of at most N rows and `columns` columns, each recorded by `record` when its sizes first come.

    logits: the buffer that holds what a step gives, a row for each slot.
    """

    def __init__(self, record: Recorder, logits: Float[Tensor, "N V"], columns: int) -> None:
        slots, device = len(logits), logits.device
        self.record = record
        self.columns = columns
        self.logits = logits
        self.tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self.places = torch.zeros(slots, dtype=torch.long, device=device)
        self.replays: dict[tuple[int, int, int], Callable[[], None]] = {}

    def __call__(
        self, compute: Compute, tokens: Int[Tensor, " N"], places: Sequence[int], lanes: int
    ) -> Float[Tensor, "N V"]:
        """The logits behind `tokens`, which go to columns `places` of slots 0 to N - 1; the next step overwrites them.

        Rows beyond them are computed too: they write into column 0 of slots that nobody has taken. `compute` is the
        same in every call; it is not kept, so that its owner, who keeps this, is freed with its memory at once.
        """
        taken, slots = len(places), len(self.places)
        rows, seen = choose_rows(taken, slots), choose_columns(max(places) + 1, self.columns)
        self.tokens[:taken].copy_(tokens)
        self.places.copy_(send([*places, *[0] * (slots - taken)], self.places.device))
        if (rows, seen, lanes) not in self.replays:
            self.replays[rows, seen, lanes] = self.record(lambda: self._run(compute, rows, seen, lanes))
        self.replays[rows, seen, lanes]()
        return self.logits[:taken]

    def _run(self, compute: Compute, rows: int, seen: int, lanes: int) -> None:
        self.logits[:rows].copy_(compute(self.tokens[:rows], self.places[:rows], seen, lanes))


class GraphRecorder:
    """A `Recorder` by CUDA graphs, which share one pool of memory.

    They may, in whatever order they are replayed: all that one leaves to another lies in buffers outside the pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """As in `Recorder`."""
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                work()
        replay: Callable[[], None] = graph.replay
        return replay


def choose_recorder(device: torch.device) -> Recorder | None:
    """CUDA graphs on CUDA. None elsewhere: a CPU has no use for needless rows and columns."""
    return GraphRecorder(device) if device.type == "cuda" else None


def choose_rows(taken: int, slots: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... (2^k and 3 * 2^k) that holds `taken` rows, at most `slots`.

    So a third of the rows at most is needless, and 256 slots have 16 sizes.
    """
    power = 1 << (taken - 1).bit_length()
    between = 3 * power // 4
    return min(between if power >= 4 and between >= taken else power, slots)


def choose_columns(seen: int, columns: int) -> int:
    """The least multiple of COLUMN_STEP that holds `seen` columns, at most `columns`."""
    return min(-(-seen // COLUMN_STEP) * COLUMN_STEP, columns)


def send(numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """`numbers` on `device`; the host does not wait until the device, which may be at work, has taken them."""
    values = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.long)
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
