"""What this machine can do at best: matrix products a second and bytes copied a second, measured, not read off a sheet.

Implements the two roofs that every table divides by, and the machine in words. A roof is the best of several runs, for
noise only ever slows a machine down. Leaves out caches and networks.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.processes import print_result, read_work, run_ours

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Machine:
    """A machine in words, and its measured roofs.

    matmul_gflops: of a square product in each dtype, in 10^9 floating-point operations a second (a multiply and an add
    are two). copy_gb_per_second: bytes read plus bytes written by a copy far larger than any cache, in 10^9 a second.
    """

    name: str
    device: str
    threads: int
    torch: str
    matmul_gflops: dict[str, float]
    copy_gb_per_second: float

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON takes them."""
        return asdict(self)


def measure_roofs(*, threads: int, quick: bool = False, rounds: int = 2) -> Machine:
    """The machine's roofs as the best of `rounds` processes, each fresh; `quick`: in this process, roughly.

    Now and then a process gets a slow path of the matrix library for its whole life (a tenth of the speed was seen
    once); a roof measured there would flatter everybody.
    """
    device = choose_device()
    if quick:
        return measure_machine(threads=threads, device=device, quick=True)
    told = {"threads": threads, "device": device}
    found = [Machine(**run_ours("benchmarks.machine", told, threads=threads)) for _ in range(rounds)]
    gflops = {name: max(machine.matmul_gflops[name] for machine in found) for name in DTYPES}
    return replace(
        found[0], matmul_gflops=gflops, copy_gb_per_second=max(machine.copy_gb_per_second for machine in found)
    )


def measure_machine(*, threads: int, device: str, quick: bool = False) -> Machine:
    """Measure both roofs on `threads` CPU threads, or on the CUDA device; about 5 seconds, or 1 where `quick`."""
    torch.set_num_threads(threads)
    large = device == "cuda"
    size = 256 if quick else 8192 if large else 2048
    copied_bytes = 2**24 if quick else 2**32 if large else 2**29
    gflops = {name: measure_matmul_gflops(dtype, device, size) for name, dtype in DTYPES.items()}
    copy = measure_copy_gb_per_second(device, copied_bytes)
    return Machine(describe_device(device), device, threads, torch.__version__, gflops, copy)


def measure_matmul_gflops(dtype: torch.dtype, device: str, size: int, repeats: int = 7) -> float:
    """Best of `repeats` products of two `size` x `size` matrices: 2 size^3 operations over the seconds, in 10^9."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    seconds = time_best(lambda: torch.mm(left, right, out=result), device, repeats)
    return 2 * size**3 / seconds / 1e9


def measure_copy_gb_per_second(device: str, copied_bytes: int, repeats: int = 7) -> float:
    """Best of `repeats` copies of a buffer: twice its bytes (read and written) over the seconds, in 10^9."""
    source = torch.ones(copied_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * copied_bytes / time_best(lambda: target.copy_(source), device, repeats) / 1e9


def time_best(work: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that is not counted."""
    return min(time_calls(work, device, repeats))


def time_calls(work: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted; waits for a CUDA device."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it; nothing on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def choose_device(device: str = "auto") -> str:
    """`cuda` or `cpu`; `auto` is CUDA where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_device(device: str) -> str:
    """The processor's name as the system gives it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print_result(measure_machine(**read_work(sys.argv[1:])).to_dict())
