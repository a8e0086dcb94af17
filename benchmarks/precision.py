"""Whether PPO learns as well on a bfloat16 base as on a float32 one: the same runs in both, seed by seed.

    python -m benchmarks.precision --model DIR --seeds 1 2 3 4 5 --json FILE --plot FILE.html

The work is that of benchmarks.time_to_reward, smaller: 16 starter prompts an iteration, at most 32 new tokens, 12
iterations of 4 epochs of 2 optimiser steps, LoRA r 16, learning rate 3e-4, KL coefficient 0.05, the reward computed
from the answer's text. Only the frozen base differs: adapters, heads, optimiser and sums are float32 in both. Each run
is a process of its own.

Shown for each seed and dtype: reward and KL (nats a sequence) at the end, each the mean of the last `--window`
rollouts, the mean reward over all of them (the area under the curve), and both afterwards, of `--evaluation-answers`
answers of the learnt policy, which are more than all rollouts together and so the surest of these; then bfloat16 less
float32, paired by seed, with 95 % intervals (Student's t). Seeds draw the same prompts and random numbers in both, but
after the first tokens that differ the runs go their own ways, so that a pair shares little. Parts may be run apart:
with `--json FILE`, runs already in the file are kept, and `--dtypes` chooses what is run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.machine import choose_device, describe_device
from benchmarks.plots import write_curves
from benchmarks.processes import build_parser, run_command, run_ours
from benchmarks.tables import check_earlier_rows, format_table, gather_rows, write_json
from benchmarks.text_rewards import TEXT_REWARDS
from benchmarks.time_to_reward import measure_ours, smooth

DTYPES = ("bfloat16", "float32")
MEASURES = ("reward at the end", "KL at the end", "mean reward", "reward afterwards", "KL afterwards")
FIXED = {
    "temperature": 1.0,
    "vf_coef": 0.1,
    "kl_coef": 0.05,
    "micro_batches": 1,
    "warm_up": 0,
    "epochs": 4,
    "minibatches": 2,
    "learning_rate": 3e-4,
    "critic": "head",
    "old_logprobs": "sampler",
    "policy_everywhere": False,
}


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "", dtype=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES), help="what is run now")
    parser.add_argument("--split", type=int, default=-1)
    parser.add_argument("--reward", choices=TEXT_REWARDS, default="second_person")
    parser.add_argument("--window", type=int, default=3, help="rollouts at the end that are averaged")
    parser.add_argument("--evaluation-answers", type=int, default=512, help="of the learnt policy; 0: none")
    parser.add_argument("--plot", type=Path, help="draw reward against iterations into this HTML file")
    for name, default in (("iterations", 12), ("prompts", 16), ("new-tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure_ours, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run every seed in every dtype, then print what differs."""
    check_earlier_rows(arguments.json, "precision")
    names = ("model", "threads", "iterations", "prompts", "new_tokens", "split", "evaluation_answers")
    work = {name: getattr(arguments, name) for name in names} | FIXED | {"text_reward": arguments.reward}
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for dtype in arguments.dtypes:
            row = run_ours("benchmarks.precision", work | {"seed": seed, "dtype": dtype}, threads=work["threads"])
            rows.append(row | {"contestant": dtype, "seed": seed, "run": f"{dtype}, seed {seed}"})
    rows = gather_rows(arguments.json, rows, key="run")
    verdict = judge(rows, arguments.window)
    print(format_verdict(rows, verdict, arguments.window))
    if arguments.plot:
        curves = []
        for dtype in DTYPES:
            for row in (row for row in rows if row["contestant"] == dtype):
                scores = smooth(row["scores"], arguments.window)
                curves.append((dtype, list(range(1, len(scores) + 1)), scores))
        write_curves(arguments.plot, curves, "iteration", "reward")
    machine = {"name": describe_device(choose_device()), "threads": work["threads"]}
    result = {"benchmark": "precision", "date": date.today().isoformat(), "machine": machine, "work": work}
    write_json(arguments.json, result | {"verdict": verdict, "rows": rows})


def measure_run(row: Mapping[str, Any], window: int) -> dict[str, float | None]:
    """`MEASURES` of one run; None for what it was not asked for."""
    ends = [statistics.fmean(row[name][-window:]) for name in ("scores", "kl_nats")]
    afterwards = [row.get(name) for name in ("reward_afterwards", "kl_nats_afterwards")]
    return dict(zip(MEASURES, [*ends, statistics.fmean(row["scores"]), *afterwards], strict=True))


def judge(rows: Sequence[Mapping[str, Any]], window: int) -> dict[str, dict[str, float | int | None]]:
    """For each measure bfloat16 less float32 over the seeds that both have: `mean`, `low`, `high`, `seeds`."""
    found = {(row["contestant"], row["seed"]): measure_run(row, window) for row in rows}
    seeds = sorted({seed for _, seed in found if all((dtype, seed) in found for dtype in DTYPES)})
    verdict = {}
    for measure in MEASURES:
        pairs = [(found[DTYPES[0], seed][measure], found[DTYPES[1], seed][measure]) for seed in seeds]
        known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        verdict[measure] = estimate_mean([ours - theirs for ours, theirs in known])
    return verdict


def estimate_mean(values: Sequence[float]) -> dict[str, float | int | None]:
    """`mean` and its 95 % interval, mean +- t s / sqrt(n); None for what so few values do not tell."""
    if len(values) < 2:
        return {"mean": values[0] if values else None, "low": None, "high": None, "seeds": len(values)}
    mean, count = statistics.fmean(values), len(values)
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def format_verdict(
    rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Mapping[str, float | int | None]], window: int
) -> str:
    """A line a run, and the differences in words."""
    cells = [[row["run"], *measure_run(row, window).values()] for row in sorted(rows, key=lambda row: row["run"])]
    words = []
    for measure, gap in verdict.items():
        if gap["low"] is None:
            words.append(f"{measure}: too few seeds that both have")
        else:
            words.append(
                f"{measure}: bfloat16 less float32 {gap['mean']:+.3f} (95 %: {gap['low']:+.3f} to {gap['high']:+.3f}), "
                f"{gap['seeds']} seeds"
            )
    return format_table(["run", *MEASURES], cells) + "\n\n" + "\n".join(words)


if __name__ == "__main__":
    main()
