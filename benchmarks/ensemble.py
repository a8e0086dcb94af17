"""What an ensemble of reward models costs beside one: seconds to score and to fit, and bytes.

Run: python -m benchmarks.ensemble [--model smollm2] [--members 4] [--own-layers 4]. Prints one line a measurement, with
the ratio to a single reward model. Times are the least of several interleaved repeats. Memory is what torch allocates
beyond the loaded base while it scores, and the process's peak.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor

from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import Ensemble, add_ensemble

ROWS, COLUMNS = 16, 96
"""Sequences of a batch, and tokens of each: prompts and answers of the demo."""


def build_batch(base: Base) -> tuple[Tensor, Tensor]:
    """Random ids without padding."""
    ids = torch.randint(base.vocabulary, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    return ids.to(base.device), torch.ones(ROWS, COLUMNS, dtype=torch.bool, device=base.device)


def score(ensemble: Ensemble, batch: tuple[Tensor, Tensor], trunk: Tensor | None) -> None:
    """One pass that only scores."""
    with torch.no_grad():
        ensemble.compute_scores(*batch, trunk)


def fit(ensemble: Ensemble, batch: tuple[Tensor, Tensor], trunk: Tensor | None) -> None:
    """One forward and backward pass, as in a step of a fit."""
    ensemble.compute_scores(*batch, trunk).sum().backward()
    for parameter in ensemble.parameters().values():
        parameter.grad = None


def measure(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The least seconds of each work, taken in turn so that a busy moment of the machine meets all alike."""
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def count_bytes(base: Base, ensemble: Ensemble) -> int:
    """Weights: the base's, and the ensemble's adapters and heads."""
    frozen = sum(p.numel() * p.element_size() for p in base.model.parameters() if not p.requires_grad)
    return frozen + sum(p.numel() * p.element_size() for p in ensemble.parameters().values())


def measure_peak(work: Callable[[], None]) -> int:
    """The process's resident peak in bytes after `work`."""
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--own-layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    base = load_base(options.model, dtype=options.dtype)
    one = add_ensemble(base, "one", 1, own_layers=options.own_layers, lora=LoraSettings(), seed=0)
    batch = build_batch(base)
    trunk = base.compute_trunk(*batch)
    peaks = [measure_peak(lambda: score(one, batch, None))]
    many = add_ensemble(base, "many", options.members, own_layers=options.own_layers, lora=LoraSettings(), seed=0)
    peaks.append(measure_peak(lambda: score(many, batch, None)))
    for name, work, states in (
        ("score from tokens", score, None),
        ("score over a trunk", score, trunk),
        ("fit over a trunk", fit, trunk),
    ):
        works = {
            label: lambda e=ensemble, w=work, s=states: w(e, batch, s) for label, ensemble in (("1", one), ("K", many))
        }
        best = measure(works, options.repeats)
        print(
            f"{name:20} 1 member {best['1']:.3f} s, {options.members} {best['K']:.3f} s: x {best['K'] / best['1']:.2f}"
        )
    sizes = count_bytes(base, one), count_bytes(base, many)
    print(f"{'weights':20} {sizes[0] / 1e6:.1f} MB, {sizes[1] / 1e6:.1f} MB: x {sizes[1] / sizes[0]:.3f}")
    print(f"{'peak while scoring':20} {peaks[0] / 1e6:.0f} MB, {peaks[1] / 1e6:.0f} MB: x {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
