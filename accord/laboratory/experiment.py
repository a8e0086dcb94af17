"""Over-optimisation on purpose: policies optimised against rewards learnt from ever fewer votes, beside the truth.

Implements the experiment of Gao et al. 2022 in worlds with a hidden utility: which runs a world has, and keeping each
as a file, so that a stopped experiment goes on. Worlds are independent, and are made side by side in processes. Leaves
out the runs themselves (`bench`), what became of them (`outcome`), the laws (`evaluation.overoptimization`) and drawing
(`page`).
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from accord.laboratory.bench import Arm, Bench, BenchRun, BenchSettings
from accord.laboratory.outcome import describe_outcome
from accord.laboratory.world import build_toy_world
from accord.looks import Look
from accord.types import Progress
from accord.workspace import dump_json, replace_file

Row = dict[str, Any]


@dataclass(frozen=True)
class LabSettings:
    """What is tried. worlds: how many, numbered from `first`.

    votes: how many votes a proxy is fitted on, each on a pair of its own. members: of the ensemble, and kl_coef: of the
    run with a KL penalty, both fitted on `votes[regularized]`. false_alarm_rate: of the alarm.
    """

    worlds: int = 20
    first: int = 0
    votes: tuple[int, ...] = (50, 500, 5000)
    regularized: int = 1
    members: int = 4
    kl_coef: float = 0.3
    false_alarm_rate: float = 0.05
    bench: BenchSettings = field(default_factory=BenchSettings)


QUICK = LabSettings(
    worlds=1, votes=(50, 500), regularized=0,
    bench=BenchSettings(judge_pairs=500, updates=12, looks=6, candidates=32, look_votes=32, tournament_votes=512),
)  # fmt: skip
"""Seconds: for a first impression, and for tests."""


def list_arms(settings: LabSettings) -> list[Arm]:
    """The runs of one world: the truth, each number of votes, and for one of these also an ensemble and KL."""
    votes = settings.votes[settings.regularized]
    return [
        Arm("truth", 0),
        *(Arm(f"votes-{count}", count) for count in settings.votes),
        Arm(f"votes-{votes}-ensemble", votes, members=settings.members),
        Arm(f"votes-{votes}-kl", votes, kl_coef=settings.kl_coef),
    ]


def run_lab(settings: LabSettings, folder: Path, progress: Progress, *, processes: int = 1) -> list[Row]:
    """Every run of every world, one dictionary each (docs/lab.md); those that `folder/runs` holds already are read.

    Each process computes on one thread, so their number changes no digit.

    Raises:
        TrainingError: a fit or a PPO run has gone wrong.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    arms = list_arms(settings)
    progress.begin("laboratory", settings.worlds * len(arms), "runs")
    found: dict[int, list[Row]] = {}
    for world, rows, made in _run_worlds(settings, folder, processes):
        found[world] = rows
        for row in rows:
            if row["name"] in made:
                progress.log({"run": name_run(world, row["name"]), "gold_end": row["looks"][-1]["gold"]})
        progress.advance(len(rows))
    return [row for world in sorted(found) for row in found[world]]


def run_world(settings: LabSettings, folder: Path, world: int) -> tuple[list[Row], list[str]]:
    """The runs of one world, and the names of those that were not there yet."""
    bench: Bench | None = None
    rows, made = [], []
    for arm in list_arms(settings):
        path = folder / "runs" / f"{name_run(world, arm.name)}.json"
        wanted = _plain({"settings": asdict(settings) | {"worlds": 0, "first": 0}, "arm": asdict(arm), "world": world})
        row = json.loads(path.read_text()) if path.exists() else None
        if row is None or row["wanted"] != wanted:
            bench = bench or Bench(build_toy_world(world), settings.bench, world)
            row = {"wanted": wanted, "world": world, **asdict(arm), **describe_run(bench.run(arm), settings)}
            replace_file(path, dump_json(row))
            made.append(arm.name)
        rows.append(row)
    return rows, made


def describe_run(run: BenchRun, settings: LabSettings) -> Row:
    """What a run's file says of it."""
    unasked = describe_outcome(run.looks, run.gold, settings.false_alarm_rate, None, run.choose)
    rows = [describe_look(look) for look in run.looks]
    for row, gold in zip(rows, run.gold, strict=True):
        row["gold_seen"], row["gold"] = row["gold"], sum(gold) / len(gold)
    told = ("alarm", "best_look", "kept_look", "best_share", "kept_share")
    return {
        "looks": rows,
        "best_of_n": run.best_of_n,
        **describe_outcome(run.looks, run.gold, settings.false_alarm_rate, run.ask, run.choose),
        "judge_alone": {name: unasked[name] for name in told},
    }


def name_run(world: int, arm: str) -> str:
    """`000-votes-50`: the file of a run."""
    return f"{world:03d}-{arm}"


def describe_look(look: Look) -> dict[str, Any]:
    """The means of a look: update, KL and its root, proxy, held-out judge, gold, disagreement."""

    def mean(values: Sequence[float] | None) -> float | None:
        return None if values is None else sum(values) / len(values)

    kl = mean(look.kl_nats) or 0.0
    return {
        "update": look.update,
        "kl_nats": kl,
        "distance": math.sqrt(max(0.0, kl)),
        "proxy": mean(look.proxy),
        "heldout": mean(look.heldout),
        "gold": mean(look.gold),
        "disagreement": mean(look.disagreement),
    }


def _run_worlds(settings: LabSettings, folder: Path, processes: int) -> Iterator[tuple[int, list[Row], list[str]]]:
    """(world, rows, names of those just made) as worlds are done; in this process where one is enough."""
    worlds = range(settings.first, settings.first + settings.worlds)
    threads = torch.get_num_threads()
    if min(processes, len(worlds)) <= 1:
        try:
            torch.set_num_threads(1)
            for world in worlds:
                yield world, *run_world(settings, folder, world)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        jobs = {pool.submit(run_world, settings, folder, world): world for world in worlds}
        for job in as_completed(jobs):
            yield jobs[job], *job.result()


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    return json.loads(json.dumps(value))
