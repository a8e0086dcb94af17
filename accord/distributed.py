"""More than one process: who this one is, which share of the work is its own, and how the shares become one result.

Implements data parallelism over one shared folder, by torch.distributed (gloo on a CPU, NCCL on CUDA). Every process
runs the same program. Work is parted by `share`, what came of it is joined by `gather`, `sum_tensors` and
`sum_gradients`, and a decision that rests on the clock or the disk is made by the first process (`agree`). With one
process each of them hands back what it was given, so nothing changes by a bit. Leaves out starting the processes
(`launching`), and parting one model's weights over processes (`models/sharding`), which stands on `build_mesh` and on
`share_rounds`: passes in which processes wait for each other must be as many in each.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from accord.errors import AccordError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
R = TypeVar("R")

BUCKET_ELEMENTS = 2**24
"""Gradients that are summed in one message (64 MiB in float32): what a flat copy of them costs at most."""
TORCH_DISTRIBUTED = "torch.distributed."
PATIENCE = timedelta(days=30)
"""How long processes wait while the first one works alone: people's votes may take days. Its death ends the wait."""


class WorkerLostError(AccordError):
    """Another process of the run died or went silent; what was finished or checkpointed is kept."""

    exit_code = 8


@dataclass
class _Crew:
    """The processes of this run as this one sees them. waiting: a group whose only use is to wait long."""

    rank: int = 0
    count: int = 1
    store: Any = None
    waiting: Any = None
    meshes: dict[str, Any] = field(default_factory=dict)
    speaks: bool | None = None


_crew = _Crew()


def is_launched() -> bool:
    """Whether a launcher (`torchrun`, `[compute] processes`) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def count_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_threads(threads: int) -> int:
    """CPU threads for this process: `threads`, or where that is 0 its part of the cores; 0: alone, as torch has it."""
    if threads or not is_launched():
        return threads
    return max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined(timeout_seconds: float) -> Iterator[None]:
    """Be one of the processes that a launcher has started; alone where none has.

    timeout_seconds: for how long one process waits for another before the run counts as lost.

    Raises:
        WorkerLostError: the others cannot be reached.
    """
    if not is_launched():
        yield
        return
    import torch
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_seconds)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _reaching("the processes of this run did not find each other"):
        found, rank, count = next(iter(dist.rendezvous("env://", timeout=timeout)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"accord-{attempt}", found)  # where the lost ones listened is forgotten
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
        _crew.rank, _crew.count, _crew.store = rank, count, store
        _crew.waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        with _reaching("another process was lost", within=TORCH_DISTRIBUTED):
            yield
    finally:
        _crew.rank, _crew.count, _crew.waiting, _crew.meshes = 0, 1, None, {}
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 to `count()` - 1; 0 is the first, which alone writes and speaks."""
    return _crew.rank


def count() -> int:
    """How many processes share the work now."""
    return _crew.count


def is_first() -> bool:
    """Whether this process is the one that writes artifacts, checkpoints and progress."""
    return _crew.rank == 0


@contextmanager
def first_alone() -> Iterator[bool]:
    """The first process enters with True and works as if it were the only one; the others get False and wait for it.

    Raises:
        WorkerLostError: the first one died meanwhile.
    """
    if _crew.count == 1:
        yield True
        return
    import torch.distributed as dist

    first, together = is_first(), _crew.count
    if first:
        _crew.count = 1
        try:
            yield True
        finally:
            _crew.count = together
    else:
        yield False
    with _reaching("another process was lost"):
        dist.barrier(group=_crew.waiting)


def wait() -> None:
    """Go on when all processes are here.

    Raises:
        WorkerLostError: one of them died meanwhile.
    """
    if _crew.count > 1:
        import torch.distributed as dist

        with _reaching("another process was lost"):
            dist.barrier(group=_crew.waiting)


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of `items`: every `count()`-th from the `rank()`-th on, so that sorted work is parted evenly.

    Takes anything that can be sliced with a step, tensors too.
    """
    return items if _crew.count == 1 else items[_crew.rank :: _crew.count]


def share_rounds(items: Sequence[T], size: int) -> Iterator[tuple[Sequence[T], bool]]:
    """This process's share of `items` in groups of `size`, as many groups as any process has: (group, counts).

    A process with a group less than the first one's gets one more, of one item of another's, that does not count: what
    is computed on it is thrown away. So a pass over a group may wait for the other processes.
    """
    own = share(items)
    for start in range(0, len(own), size):
        yield own[start : start + size], True
    most = -(-len(items) // _crew.count)
    if -(-len(own) // size) < -(-most // size):
        yield items[:1], False


def gather(own: Sequence[T]) -> list[T]:
    """What all processes hold, one after the other. Values travel pickled: keep tensors small and on the CPU."""
    if _crew.count == 1:
        return list(own)
    import torch.distributed as dist

    found: list[Any] = [None] * _crew.count
    with _reaching("another process was lost"):
        dist.all_gather_object(found, list(own))
    return [value for part in found for value in part]


def gather_metrics(own: Sequence[Mapping[str, Tensor]]) -> Sequence[Mapping[str, Tensor]]:
    """The metrics of all micro-batches of all processes, one mapping each (`losses.combine_metrics` joins them)."""
    if _crew.count == 1:
        return own
    return gather([{name: value.detach().cpu() for name, value in part.items()} for part in own])


def map_shared(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`[work(item) for item in items]`, each made by one process and known to all, in the order of `items`."""
    if _crew.count == 1:
        return [work(item) for item in items]
    made = dict(gather([(place, work(items[place])) for place in share(range(len(items)))]))
    return [made[place] for place in range(len(items))]


def agree(value: T) -> T:
    """The first process's `value`, in every process: for what the clock, the disk or a person decides."""
    if _crew.count == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with _reaching("another process was lost"):
        dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_tensors(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, in place.

    Where each entry is filled in by one process and 0 elsewhere, the sum is exact: no bit depends on the sharing.
    """
    if _crew.count == 1:
        return
    import torch.distributed as dist

    with _reaching("another process was lost"):
        for tensor in tensors:
            dist.all_reduce(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its sum over all processes; a process without one adds 0.

    A sum and not a mean: each loss was divided by the denominator of the whole batch, whoever computed it.
    """
    if _crew.count == 1:
        return
    import torch

    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(grad.numel() for grad in bucket) >= BUCKET_ELEMENTS:
            _sum_bucket(bucket)
            bucket = []
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(grads: list[Tensor]) -> None:
    """One message for all of them."""
    import torch

    flat = torch.cat([grad.flatten() for grad in grads])
    sum_tensors(flat)
    for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))


def build_mesh(device_type: str) -> DeviceMesh:
    """All processes in one row, as torch's DTensor asks for it; made once, for `device_type` "cpu" or "cuda"."""
    from torch.distributed.device_mesh import init_device_mesh

    if device_type not in _crew.meshes:
        _crew.meshes[device_type] = init_device_mesh(device_type, (_crew.count,))
    return _crew.meshes[device_type]


def speak_first() -> bool:
    """Whether this process is the first of all to report how the run ended: one cause, told once."""
    if _crew.speaks is None:
        try:
            _crew.speaks = _crew.store is None or int(_crew.store.add("accord/ended", 1)) == 1
        except RuntimeError:  # whoever kept the count is gone
            _crew.speaks = True
    return _crew.speaks


@contextmanager
def _reaching(message: str, within: str = "") -> Iterator[None]:
    """A connection that breaks, or a process that stays silent, is an error in words.

    within: only of errors that come out of modules whose names begin so, as where a model sends its weights by itself.
    """
    try:
        yield
    except RuntimeError as error:
        names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        if type(error).__name__ == "OutOfMemoryError" or not any(name.startswith(within) for name in names):
            raise
        reason = str(error).strip().split("\n")[0]
        raise WorkerLostError(
            f"{message} ({reason})",
            where=f"process {os.environ.get('RANK', '0')}",
            mend="start accord run again: it goes on from the last checkpoint",
        ) from error
