"""PeakCounter: the most bytes that tensors held at one moment while a piece of work ran.

Implements a count of every tensor's memory from the operation that makes it to the moment when nothing refers to it any
more, in forward and backward passes alike, on any device. So what autograd keeps, what a layer that is run again needs
meanwhile, gradients on their way and buffers of a loss are all in it, without any of them being known by name. Each
block of memory counts once, however many views it has; what was there before counts nothing. Leaves out what an
operation takes and gives back inside itself, and the allocator's fragments.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakCounter(TorchDispatchMode):
    """held_bytes: of all that was made since it was entered and is still there; peak_bytes: their maximum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.held_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation. Memory first seen in its arguments was there before; first seen in its result, is new."""
        options = kwargs or {}
        for storage in _list_storages((args, options)):
            self._note(storage, 0)
        result = func(*args, **options)
        for storage in _list_storages(result):
            self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: UntypedStorage, size_bytes: int) -> None:
        address = storage._cdata
        if address not in self._known:
            self._known[address] = size_bytes
            self.held_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self.held_bytes -= self._known.pop(address)


def _list_storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
