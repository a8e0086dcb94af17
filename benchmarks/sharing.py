"""A PPO update shared by processes: seconds by phase and peak memory, beside one process with as many threads.

Implements `python -m benchmarks.sharing --model DIR --plot FILE.html`: the same updates (prompts of an exact length,
new tokens as the policy samples them) by one process of one thread, one of n threads, and n of one thread, each in
turn. With `--full` all weights of the policy learn, and the last is run twice: each process holds the whole copy, or
its part of it. The first update warms up and does not count. Leaves out several machines, and what a checkpoint takes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from accord import distributed
from accord.types import Forgetful, Silence
from benchmarks.machine import choose_device, describe_device
from benchmarks.plots import write_panels
from benchmarks.processes import MARK, ROOT, BenchmarkError, build_parser, read_peak_memory, run_command
from benchmarks.tables import format_table, gather_rows, summarize, write_json

PHASES = ("sample", "experience", "score", "optimise")


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "")
    parser.add_argument("--processes", type=int, default=2, help="n, of one thread each")
    for name, default in (("prompts", 32), ("prompt-tokens", 64), ("new-tokens", 48), ("epochs", 2), ("updates", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--split", type=int, default=-1)
    parser.add_argument("--full", action="store_true", help="train all weights, whole in each process and in parts")
    parser.add_argument("--plot", type=Path, help="draw seconds and memory against processes into this HTML file")
    run_command(compare, measure, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run each arrangement in turn and print them as a table and JSON."""
    names = ("model", "dtype", "split", "prompts", "prompt_tokens", "new_tokens", "epochs", "updates")
    work = {name: getattr(arguments, name) for name in names} | {"full": arguments.full}
    rows = []
    arrangements = [(1, 1, False), (1, arguments.processes, False), (arguments.processes, 1, False)]
    for processes, threads, shard in arrangements + [(arguments.processes, 1, True)] * arguments.full:
        found = run_crew(work | {"shard": shard}, processes=processes, threads=threads)
        name = f"{processes} x {threads}{', in parts' if shard else ''}"
        rows.append({"name": name, "processes": processes, "threads": threads, "shard": shard, **found})
    rows = gather_rows(arguments.json, rows)
    print(format_sharing(rows))
    machine = {"name": describe_device(choose_device()), "cores": os.cpu_count()}
    if arguments.plot:
        draw(arguments.plot, rows)
    head = {"benchmark": "sharing", "date": date.today().isoformat(), "machine": machine, "work": work}
    write_json(arguments.json, head | {"rows": rows})


def format_sharing(rows: list[dict[str, Any]]) -> str:
    """A row an arrangement: seconds an update, of each phase, the largest process's peak memory."""
    lines = []
    for row in rows:
        phases = [summarize([update[name] for update in row["phases"]])["median"] for name in PHASES]
        lines.append([row["name"], _sum_phases(row), *phases, row["peak_rss_bytes"] / 1e9])
    return format_table(["processes x threads", "seconds", *PHASES, "GB a process"], lines)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Seconds an update and memory against processes of one thread; the line of perfect sharing beside them."""
    points = sorted((row["processes"], _sum_phases(row), row["peak_rss_bytes"] / 1e9)
                    for row in rows if row["threads"] == 1 and not row.get("shard"))  # fmt: skip
    processes, seconds, gigabytes = (list(column) for column in zip(*points, strict=True))
    ideal = [seconds[0] * processes[0] / count for count in processes]
    curves = [("seconds an update", processes, seconds), ("seconds, shared perfectly", processes, ideal)]
    write_panels(path, [("processes", [*curves, ("peak GB a process", processes, gigabytes)])], "seconds, GB")


def _sum_phases(row: Mapping[str, Any]) -> float:
    """Median seconds of an update."""
    return summarize([sum(update.values()) for update in row["phases"]])["median"]


def run_crew(work: Mapping[str, Any], *, processes: int, threads: int) -> dict[str, Any]:
    """The result of the first of `processes` processes that do `work` together.

    Raises:
        BenchmarkError: one of them failed.
    """

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "WORLD_SIZE": processes, "HF_HUB_OFFLINE": 1}
    shared |= {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "work.json"
        told.write_text(json.dumps(dict(work)), encoding="utf-8")
        crew = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.sharing", "--work", str(told)],
                cwd=ROOT,
                env=os.environ | {k: str(v) for k, v in shared.items()} | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        outputs = [process.communicate()[0] for process in crew]
    if any(process.returncode for process in crew):
        raise BenchmarkError("a process failed", where="benchmarks.sharing", mend="read what it wrote above")
    marked = [line for line in outputs[0].splitlines() if line.startswith(MARK)]
    found: dict[str, Any] = json.loads(marked[-1].removeprefix(MARK))
    return found


class _Phases(Silence):
    """A `types.Progress` that keeps the seconds of each update's phases."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.updates.append({name: float(metrics[f"{name}_seconds"]) for name in PHASES})


def measure(work: Mapping[str, Any]) -> dict[str, Any]:
    """This process's part: train_ppo on random prompts, with a reward model that was never fitted."""
    from accord.config.schema import PpoSection, SampleSection
    from accord.models import LoraSettings, load_base
    from accord.rewards import LearnedReward
    from accord.rollout import Sampler
    from accord.rollout.sharded import SharedSampler
    from accord.training import train_ppo
    from accord.training.memory import return_freed_memory
    from benchmarks.prompts import build_prompts
    from benchmarks.training import draw_head

    phases = _Phases()
    with distributed.joined(600.0):
        base = load_base(work["model"], dtype=work["dtype"], split=0 if work["full"] else work["split"])
        if work["full"]:
            return_freed_memory()  # as with a budget: what is resident is what is held
        lora = LoraSettings(16, 32)
        base.shard = work["shard"]
        base.add_policy("policy", lora=None if work["full"] else lora, seed=0)
        base.add_scorer("proxy", lora=lora, seed=1)
        base.load_state("proxy", base.state("proxy") | {"head.weight": draw_head(base.hidden_size)})
        base.add_head("critic", on="proxy")
        prompts = build_prompts(base.tokens, work["prompts"], work["prompt_tokens"], seed=0)
        sampler = SharedSampler(
            Sampler(base, work["prompts"], keep_trunk=True), pad_id=base.tokens.pad_id, device=base.device
        )
        section = PpoSection(
            updates=work["updates"],
            prompts_per_update=work["prompts"],
            epochs=work["epochs"],
            learning_rate=1e-6,
            kl_horizon=10_000,
            checkpoint_every=work["updates"] + 1,
        )
        train_ppo(
            base,
            prompts,
            sampler,
            LearnedReward(base, "proxy"),
            section,
            sample=SampleSection(max_new_tokens=work["new_tokens"]),
            max_kl_nats=1e3,
            seed=0,
            progress=phases,
            checkpoint=Forgetful(),
        )
        peaks = distributed.gather([read_peak_memory()])
    largest = max(peaks, key=lambda peak: peak["peak_rss_bytes"] or 0)
    return {"phases": phases.updates[1:], **largest}


if __name__ == "__main__":
    main()
