"""What Accord wrote itself, beside the libraries': layers in training, a step of decoding, and attention.

    python -m benchmarks.kernels --model DIR [--repeats 15]

layers: one training step (forward, backward, no optimiser) on 8 rows of 112 tokens, of the layers above the split
(two thirds down, as by default) and of all of them: packed (`accord.models.packed_layer`); transformers' layers with
`accord.models.fused`; and transformers' layers with PEFT's own `LoraLayer.forward`, on the very same weights. Beside
them the share of the machine's matrix-product peak that the counted products reach.
decoding: one decoding step of 64 rows behind 96 cached tokens, through the whole model: `accord.models.decoding`,
and transformers' forward and cache, with `accord.models.attention` and with transformers' `eager` and `sdpa`.

All variants of a part run in one process, taking turns in every repetition, so that what else the machine does falls on
all of them; after one round that is not counted. Shown: the median of the repetitions with the lowest and highest, and
the ratio of the medians to ours. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import DynamicCache

from accord.models.packing import unpacked
from benchmarks.counting import WorkCounter
from benchmarks.machine import measure_roofs, synchronize
from benchmarks.processes import build_parser, run_command, run_ours
from benchmarks.tables import format_table, summarize, write_json


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "", roofs=True)
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given again (default: all)")
    parser.add_argument("--repeats", type=int, default=15)
    for name, default in (("rows", 8), ("tokens", 112), ("decoding-rows", 64), ("cached-tokens", 96)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run each part in a process of its own, then print it."""
    names = ("model", "dtype", "threads", "repeats", "rows", "tokens", "decoding_rows", "cached_tokens")
    work = {name: getattr(arguments, name) for name in names}
    rows: list[dict[str, Any]] = []
    for part in arguments.part or PARTS:
        rows += run_ours("benchmarks.kernels", work | {"part": part}, threads=work["threads"])["rows"]
    machine = measure_roofs(threads=work["threads"], quick=arguments.quick)
    peak = machine.matmul_gflops[work["dtype"]] * 1e9
    for row in rows:
        row["matmul_share"] = row["flops"] / row["seconds"]["median"] / peak if "flops" in row else None
    cells = [
        [r["part"], r["name"], r["seconds"]["median"], r["seconds"]["min"], r["seconds"]["max"], r["times_ours"],
         100 * r["matmul_share"] if r["matmul_share"] else None]
        for r in rows
    ]  # fmt: skip
    print(format_table(["", "", "s", "min", "max", "times ours", "% of matmul peak"], cells))
    result = {"benchmark": "kernels", "date": date.today().isoformat(), "machine": machine.to_dict(), "work": work}
    write_json(arguments.json, result | {"rows": rows})


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """The child: all variants of one part, taking turns."""
    torch.set_num_threads(work["threads"])
    return {"rows": PARTS[work["part"]](work)}


def take_turns(
    part: str, variants: Mapping[str, Callable[[], object]], repeats: int, device: str
) -> list[dict[str, Any]]:
    """Run every variant once in each of `repeats` rounds, after one round that is not counted; ours comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    summaries = {name: summarize(taken[1:]) for name, taken in seconds.items()}
    ours = next(iter(summaries.values()))["median"]
    return [{"part": part, "name": n, "seconds": s, "times_ours": s["median"] / ours} for n, s in summaries.items()]


def measure_layers(work: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A training step of the layers above the default split, and of all of them."""
    rows = []
    for split in (-1, 0):
        base = _load(work, split)
        ids = torch.randint(base.vocabulary, (work["rows"], work["tokens"]), generator=torch.Generator().manual_seed(0))
        ids = ids.to(base.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        trunk = base.compute_trunk(ids, mask)

        def step(base: Any = base, ids: Any = ids, mask: Any = mask, trunk: Any = trunk) -> None:
            base.compute_values("scorer", ids, mask, ids.shape[1] - 1, trunk=trunk).sum().backward()
            for parameter in base.parameters("scorer").values():
                parameter.grad = None

        def step_unpacked(base: Any = base, step: Any = step) -> None:
            with unpacked(base.stack):
                step()

        def step_with_peft(base: Any = base, step: Any = step) -> None:
            with unpacked(base.stack), peft_forward(base.model):
                step()

        part = f"training, layers {base.split} to {base.layers}"
        variants: dict[str, Callable[[], object]] = {
            "packed": step,
            "transformers, fused LoRA": step_unpacked,
            "transformers, PEFT": step_with_peft,
        }
        with WorkCounter() as counter:
            step()
        measured = take_turns(part, variants, work["repeats"], base.device.type)
        rows += [row | {"flops": counter.work.flops} for row in measured]
    return rows


def measure_decoding(work: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One decoding step of the whole model, in each way."""
    from accord.models import attention
    from accord.models.decoding import PackedDecoder

    base = _load(work, 0, roles=False)
    rows, cached = work["decoding_rows"], work["cached_tokens"]
    ids = torch.randint(base.vocabulary, (rows, cached + 1), generator=torch.Generator().manual_seed(0))
    ids = ids.to(base.device)
    mask = torch.ones_like(ids)
    steps: dict[str, Callable[[], None]] = {}
    if base.decodes_packed:
        with torch.no_grad():
            decoder = PackedDecoder(base, rows, cached + 1)
            decoder.admit(ids[:, :-1].tolist())

        @torch.no_grad()
        def step_packed() -> None:
            decoder.step(ids[:, -1])
            decoder.lengths = [cached] * rows

        steps["packed"] = step_packed
    for name in (attention.register(), "eager", "sdpa"):
        base.model.set_attn_implementation(name)
        cache = DynamicCache(config=base.model.config)
        with torch.no_grad(), unpacked(base.stack):
            base.model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, logits_to_keep=1)
        steps[f"transformers, {name}"] = _build_step(base, name, ids[:, -1:], mask, cache)
    return take_turns("decoding step", steps, work["repeats"], base.device.type)


def _build_step(base: Any, name: str, ids: Any, mask: Any, cache: DynamicCache) -> Callable[[], None]:
    def step() -> None:
        base.model.set_attn_implementation(name)
        with torch.no_grad(), unpacked(base.stack):
            base.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    return step


def _load(work: Mapping[str, Any], split: int, *, roles: bool = True) -> Any:
    from accord.models import LoraSettings, load_base

    base = load_base(work["model"], dtype=work["dtype"], split=split)
    if roles:
        base.add_scorer("scorer", lora=LoraSettings(rank=16, alpha=32), seed=0)
        head = torch.full((base.hidden_size,), 0.01, device=base.device)  # zero would leave no gradient below it
        base.load_state("scorer", base.state("scorer") | {"head.weight": head})
    return base


@contextmanager
def peft_forward(model: Any) -> Iterator[None]:
    """Every adapted layer computes as PEFT's own class does while open; weights and graph stay the same."""
    fused: Sequence[Any] = [module for module in model.modules() if isinstance(module, LoraLinear)]
    kinds = [type(module) for module in fused]
    for module in fused:
        module.__class__ = LoraLinear
    try:
        yield
    finally:
        for module, kind in zip(fused, kinds, strict=True):
            module.__class__ = kind


PARTS: dict[str, Callable[[Mapping[str, Any]], list[dict[str, Any]]]] = {
    "layers": measure_layers,
    "decoding": measure_decoding,
}


if __name__ == "__main__":
    main()
