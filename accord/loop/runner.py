"""Running the stages: every one that is not done, in order; live metrics and the ledger beside them.

Implements resume (a finished artifact is never made again), what `accord status` and the plan show, and the preflight.
Leaves out what the stages are (`graph`) and the report (`reporting`).
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import torch

from accord import distributed
from accord.config import Config
from accord.config.rewarding import PROXY
from accord.errors import AccordError, ConfigError
from accord.feedback.consensus import CONSENSUS
from accord.feedback.selection import SELECTORS
from accord.loop.budget import check_budget
from accord.loop.context import RunContext
from accord.loop.estimate import Estimate, estimate_stage, measure_machine
from accord.loop.graph import Stage, build_stages
from accord.loop.reporting import build_report
from accord.loop.rounds import find_end
from accord.loop.selecting import explain_choice
from accord.loop.serving import check_served
from accord.losses import POLICY_OBJECTIVES, PREFERENCE_OBJECTIVES
from accord.models.loading import choose_device
from accord.rewards import SOURCES, find_text_reward
from accord.training import TRAINERS
from accord.training.optimization import check_optimizer
from accord.types import Progress
from accord.workspace import Workspace, append_line

TOLD = {"votes": ("votes",), "policy": ("votes",), "tournament": ("votes",), "gate": ("promoted", "gain")}
"""What the ledger says of a stage beside its cost: votes spent, and what the round gained by the held-out judge."""

SHARED = {
    "samples", "sft", "reward_model", "heldout_reward_model", "people", "heldout_people", "policy", "tournament",
    "evaluation", "gate",
}  # fmt: skip
"""Kinds that all processes make together. Any other is made by the first one alone, while the others wait."""


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan: a stage, whether it is done, what it is expected to cost, and what else is to be said."""

    name: str
    kind: str
    key: str
    round: int
    done: bool
    tokens: int
    expected_seconds: float
    expected_bytes: int
    note: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: the folder of the last round, and how many stages it made."""

    report: str
    made: int
    already_done: int


def check_names(config: Config) -> None:
    """Refuse a name that no registry has, or an optimiser that cannot work here, before any work.

    Raises:
        ConfigError: a method, objective, consensus or reward source is unknown, and the nearest valid name is given; or
            the optimiser's package is missing, or does not support the device.
    """
    import difflib

    if config.model.optimizer != "adamw":
        check_optimizer(config.model.optimizer, choose_device(config.compute.device))
    for setting, name, known in (
        ("policy.method", config.policy.method, TRAINERS),
        ("ppo.objective", config.ppo.objective, POLICY_OBJECTIVES),
        ("reward_model.objective", config.reward_model.objective, PREFERENCE_OBJECTIVES),
        ("feedback.consensus", config.feedback.consensus, CONSENSUS),
        ("selection.strategy", config.selection.strategy, SELECTORS),
    ):
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise ConfigError(f"unknown name {name!r}", where=setting, mend=mend)
    for setting, name in (
        ("simulation.utility", config.simulation.utility),
        ("evaluation.toxicity", config.evaluation.toxicity),
        *((f"reward.sources {s.name!r}", s.name) for s in config.reward.sources if s.name not in (PROXY, *SOURCES)),
        *(("guard.rewards", reward.name) for reward in config.guard.rewards if reward.name not in SOURCES),
    ):
        try:
            find_text_reward(name)
        except AccordError as error:
            raise ConfigError(error.message, where=setting, mend=error.mend) from error


def plan(workspace: Workspace, config: Config) -> list[PlannedStage]:
    """Every stage with its expected cost on this machine; those that are done cost nothing.

    Raises:
        AccordError: a setting, prompt file or the votes would stop the run.
    """
    check_names(config)
    check_served(workspace, config)
    stages = build_stages(workspace, config)
    votes = next((stage.section["votes"] for stage in stages if "snapshot" in stage.section), 0)
    waiting = {stage.key for stage in stages if workspace.find(stage.kind, stage.key) is None}
    machine = measure_machine(workspace, config, votes) if waiting else None
    planned = []
    for stage in stages:
        done = stage.key not in waiting
        cost = Estimate(0, 0.0, 0) if machine is None or done else estimate_stage(stage, config, machine)
        name = f"{stage.round:03d}/{stage.kind}"
        note = explain_choice(stage, config) if stage.kind == "selection" else ""
        planned.append(PlannedStage(name, stage.kind, stage.key, stage.round, done, *cost, note=note))
    return planned


class _RoundProgress:
    """Forwards progress and keeps each row of live metrics in the round's metrics.jsonl."""

    def __init__(self, inner: Progress, workspace: Workspace, number: int, kind: str) -> None:
        self.inner = inner
        self.path = workspace.round_folder(number) / "metrics.jsonl"
        self.kind = kind

    def stage(self, name: str, state: Literal["started", "finished", "already done"], seconds: float = 0.0) -> None:
        self.inner.stage(name, state, seconds)

    def begin(self, task: str, total: int, unit: str) -> None:
        self.inner.begin(task, total, unit)

    def advance(self, amount: int = 1) -> None:
        self.inner.advance(amount)

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        if distributed.is_first():
            append_line(self.path, {"stage": self.kind, **metrics})
        self.inner.log(metrics)


def run(workspace: Workspace, config: Config, progress: Progress, *, wait: bool = True) -> RunResult:
    """Take the loop from wherever it is to the end of its rounds, and write each round's report.

    wait: for people's votes, where `feedback.source` is "people"; without, the run ends when it would begin to wait.

    Raises:
        VotesMissing: people's votes are missing, and `wait` is false.
        AccordError: a stage cannot be made; what is finished stays finished.
    """
    check_names(config)
    check_served(workspace, config)
    threads = distributed.find_threads(config.compute.threads)
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    made = already = last = 0
    with workspace.lock() if distributed.is_first() else nullcontext():
        stages = distributed.agree(build_stages(workspace, config))
        context = RunContext(workspace, config, progress, wait=wait)
        for stage in stages:
            if stage.round > 1 and stage.round != last and find_end(workspace, config, stages, stage.round):
                break
            last = stage.round
            name = f"{stage.round:03d}/{stage.kind}"
            if distributed.agree(workspace.find(stage.kind, stage.key)):
                if distributed.is_first():  # of two that do this at once, one falls over the other
                    shutil.rmtree(workspace.scratch_folder(stage.kind, stage.key), ignore_errors=True)
                already += 1
                progress.stage(name, "already done")
                continue
            if not made and config.compute.memory_gb:
                check_budget(context.base, config, context.lora)
            progress.stage(name, "started")
            context.progress = _RoundProgress(progress, workspace, stage.round, stage.kind)
            seconds = _make(context, stage)
            progress.stage(name, "finished", seconds)
            made += 1
        written = distributed.agree(build_report(workspace, config) if distributed.is_first() else [])
    return RunResult(str(written[-1]), made, already)


def _make(context: RunContext, stage: Stage) -> float:
    """Make one artifact, all processes together or the first one alone; returns the seconds that it took."""
    started = time.perf_counter()
    if stage.kind in SHARED:
        _write(context, stage)
        distributed.wait()
    else:
        with distributed.first_alone() as working:
            if working:
                _write(context, stage)
    return time.perf_counter() - started


def _write(context: RunContext, stage: Stage) -> None:
    """Make one artifact and write its line of the ledger."""
    started, tokens = time.perf_counter(), context.sampled_tokens
    context.stand_on(stage)
    with context.workspace.create(
        stage.kind,
        stage.key,
        stage=stage.kind,
        version=stage.version,
        section=stage.section,
        parents=stage.parents,
        seed=stage.seed,
    ) as draft:
        stage.work(context, stage, draft)
    seconds = time.perf_counter() - started
    if not distributed.is_first():
        return
    context.workspace.append_ledger(
        stage.round,
        {
            "stage": stage.kind,
            "key": stage.key,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "sampled_tokens": context.sampled_tokens - tokens,
            "peak_rss_bytes": measure_peak_rss(),
            **{name: draft.summary[name] for name in TOLD.get(stage.kind, ()) if name in draft.summary},
        },
    )


def measure_peak_rss() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
