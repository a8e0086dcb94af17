"""Memory of a PPO update: as it is set, with layers computed again, and within budgets, beside what was expected.

    python -m benchmarks.memory --model DIR [--budget 0 --budget 1.5 --budget 2 --budget 3]

Work of an update: 32 prompts of 64 random words, 48 new tokens each (nothing stops before), one pass of a reward model,
and one epoch of one optimiser step; LoRA r 16 above the split, or for the policy on every layer
(`--policy-everywhere`), temperature 1, bfloat16. Rows of the table: micro-batches of `--micro-batch` sequences; the
same with `compute.checkpoint_gradients`; and for each `--budget`, in GB, the micro-batches that `compute.memory_gb`
chooses, without and with checkpointing. A budget in which nothing fits is shown as refused.

Each row is a process of its own, one after the other, with the same threads. The first update warms up; the
`--iterations` after it are timed, the median is shown. Peak GB is the process's largest resident set, loading included,
or on a GPU its CUDA memory; expected GB is what `accord.training.memory` says before the first update. Prints a table
and one line of JSON.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from datetime import date
from typing import Any

from benchmarks.machine import choose_device, describe_device
from benchmarks.processes import build_parser, read_peak_memory, run_command, run_ours
from benchmarks.tables import format_table, gather_rows, summarize, write_json

BUDGETS_GB = (0.0, 1.5, 2.0, 3.0)


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "")
    parser.add_argument(
        "--budget", type=float, action="append", help="in GB, may be given again; 0: as set (default: all)"
    )
    parser.add_argument("--policy-everywhere", action="store_true", help="the policy adapts every layer")
    parser.add_argument("--split", type=int, default=-1)
    sizes = {"micro-batch": 8, "iterations": 2, "prompts": 32, "prompt-tokens": 64, "new-tokens": 48, "epochs": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run each row in turn and print them."""
    names = ("model", "dtype", "threads", "split", "policy_everywhere", "micro_batch", "iterations", "prompts",
             "prompt_tokens", "new_tokens", "epochs")  # fmt: skip
    work = {name: getattr(arguments, name) for name in names}
    rows = []
    for budget in arguments.budget or BUDGETS_GB:
        for checkpointed in (False, True):
            name = (f"{budget:g} GB" if budget else "as set") + (", checkpointed" if checkpointed else "")
            own = work | {"budget": budget, "checkpoint_gradients": checkpointed}
            rows.append({"name": name, **run_ours("benchmarks.memory", own, threads=work["threads"])})
    rows = gather_rows(arguments.json, rows)
    print(format_memory(rows))
    machine = {"name": describe_device(choose_device()), "cores": os.cpu_count()}
    head = {"benchmark": "memory", "date": date.today().isoformat(), "machine": machine, "work": work}
    write_json(arguments.json, head | {"rows": rows})


def format_memory(rows: list[dict[str, Any]]) -> str:
    """A row a run: its micro-batch, seconds of an update, peak and expected memory."""
    cells: list[list[object]] = []
    for row in rows:
        if "refused" in row:
            cells.append([row["name"], "refused", None, None, None])
            continue
        peak = (row["cuda_peak_bytes"] or row["peak_rss_bytes"]) / 1e9
        seconds = summarize(row["seconds"])["median"]
        cells.append([row["name"], row["micro_batch"], seconds, peak, row["expected_bytes"] / 1e9])
    return format_table(["", "micro-batch", "s an update", "peak GB", "expected GB"], cells)


def measure(work: Mapping[str, Any]) -> dict[str, Any]:
    """The child: updates with one arrangement, or why its budget is refused."""
    from accord.config.schema import PpoSection
    from accord.errors import ConfigError
    from accord.models.recompute import recompute_layers
    from accord.rewards import LearnedReward
    from accord.training.memory import Fit, fit_rows, return_freed_memory, weigh_ppo, weigh_sampling
    from benchmarks.prompts import build_prompts
    from benchmarks.training import build_base, never_stopping, run_ppo

    base = build_base(work, work["split"])
    if work["checkpoint_gradients"]:
        recompute_layers(base)
    prompts = build_prompts(base.tokens, work["prompts"] * (work["iterations"] + 1), work["prompt_tokens"], 0)
    sizes = {"prompt_tokens": work["prompt_tokens"], "new_tokens": work["new_tokens"]}
    load = weigh_ppo(base, "policy", "critic", PpoSection(prompts_per_update=work["prompts"], minibatches=1), **sizes)
    slots = work["prompts"]
    try:
        if work["budget"]:
            return_freed_memory()
            slots = fit_rows(weigh_sampling(base, "policy", **sizes), work["budget"], slots).rows
            fit = fit_rows(load, work["budget"], work["prompts"])
        else:
            fit = Fit(work["micro_batch"], load.expect(work["micro_batch"]))
    except ConfigError as error:
        return {"refused": error.message}
    fixed = {"learning_rate": 1e-5, "temperature": 1.0, "vf_coef": 0.1, "kl_coef": 0.05, "minibatches": 1, "seed": 0}
    own = {**work, **fixed, "micro_batch_size": fit.rows, "decoding_rows": slots}
    with never_stopping(base):
        observer = run_ppo(base, prompts, LearnedReward(base, "reward"), own, warm_up=1)
    seconds = [sum(v for k, v in row.items() if k.endswith("_seconds") and k != "ended_seconds")
               for row in observer.timed]  # fmt: skip
    found = {"micro_batch": fit.rows, "expected_bytes": fit.expected_bytes, "seconds": seconds}
    return found | read_peak_memory()


if __name__ == "__main__":
    main()
