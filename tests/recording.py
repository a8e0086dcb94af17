"""A stand-in for CUDA graphs: records every operation with the memory it used, and replays them on that very memory.

Implements what a graph does to those who use it: only operations are repeated, none of Python's own steps; each result
is written to where it first stood; and a host that would read the device's numbers is refused. Leaves out streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item")
"""Operations whose result or shape the host must wait for."""


class HostReadError(RuntimeError):
    """What was recorded would have made the host wait for the device."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [leaf for leaf in tree_leaves(args) if torch.is_tensor(leaf) and leaf.dtype == torch.bool]
        if name in READING or (name.startswith("index") and masks):
            raise HostReadError(f"{name} waits for the device")
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        fresh = [None if leaf.untyped_storage().data_ptr() in given else leaf for leaf in results]
        self.calls.append((func, args, kwargs or {}, fresh))
        return result


class StandIn:
    """A `Recorder`; `records` counts what was recorded, `replays` how often any of it was repeated."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """As in `Recorder`; the work itself runs twice, as in a warm-up, and then never again."""
        work()
        with _Recording() as recording:
            work()
        self.records += 1

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, fresh in recording.calls:
                again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if torch.is_tensor(leaf)]
                for old, new in zip(fresh, again, strict=True):
                    if old is not None:
                        old.copy_(new)

        return replay
