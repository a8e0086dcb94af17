"""Our side of the PPO benchmarks: the base, its roles and `train_ppo`, as `accord run` puts them together.

Implements a Base with policy, critic and reward model, an observer that splits an update into its phases, and one run.
Nothing here computes anything of PPO: `accord.training.train_ppo` does, on `accord.rollout.Sampler` and
`accord.rewards.LearnedReward`. Leaves out how it compares (`ppo`, `time_to_reward`, `scaling`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from accord.config.schema import PpoSection, SampleSection
from accord.models import Base, LoraSettings, load_base
from accord.rewards import LearnedReward, score_in_parts
from accord.rollout import Sampler
from accord.training import train_ppo
from accord.training.selection import Judge, summarise_look
from accord.types import Prompt, RewardSource, Rollout
from accord.workspace import FolderCheckpoint
from benchmarks.counting import ModelShape, PhaseCounter, Work
from benchmarks.machine import synchronize
from benchmarks.prompts import build_prompts

PHASES = ("sample", "experience", "score", "optimise")
NEVER = -1
"""An EOS that no model samples: every completion runs to its full length, as the peer's does without a stop token."""

LORA = LoraSettings(rank=16, alpha=32)
MAX_KL_NATS = 1e6
"""No KL budget: both contestants do all the iterations they were asked for."""


@dataclass
class Observer:
    """Generator, reward source and progress at once: sees where each phase of an update starts and ends.

    The first `warm_up` updates are counted (`counter`), not timed. rows: one metric row an update, `ended_seconds` in
    it the wall clock since `start`. trl's phases are cut at the same places (`peers/trl_ppo.py`).
    """

    sampler: Sampler
    reward: RewardSource
    warm_up: int
    takes_trunk: ClassVar[bool] = True
    counter: PhaseCounter = field(default_factory=PhaseCounter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = 0.0

    def start(self) -> None:
        """Begin to watch."""
        if self.warm_up:
            self.counter.start()
        self.started = time.perf_counter()

    def generate(self, role: str | None, prompts: Sequence[Prompt], **options: Any) -> Rollout:
        """The sampler's own, uncounted: its work has a closed form."""
        with self.counter.paused():
            rollout = self.sampler.generate(role, prompts, **options)
        self.counter.lap("sample")
        return rollout

    def __call__(self, rollout: Rollout, trunk: Tensor | None = None) -> Tensor:
        """The reward source's own; what came before it is the experience."""
        self.counter.lap("experience")
        scores = score_in_parts(self.reward, rollout, trunk).total
        self.counter.lap("score")
        return scores

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """Of no interest here."""

    def begin(self, task: str, total: int, unit: str) -> None:
        """Of no interest here."""

    def advance(self, amount: int = 1) -> None:
        """Of no interest here."""

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """The end of an update."""
        synchronize(self.sampler.base.device.type)
        self.counter.lap("optimise")
        self.rows.append({**metrics, "ended_seconds": time.perf_counter() - self.started})
        if len(self.rows) == self.warm_up:
            self.counter.stop()

    @property
    def timed(self) -> list[dict[str, Any]]:
        """The rows after the warm-up."""
        return self.rows[self.warm_up :]


def build_base(work: Mapping[str, Any], split: int, *, scorers: Sequence[str] = ("reward",)) -> Base:
    """The base with roles `policy`, `critic` and `scorers`, LoRA r 16 on every linear layer above `split`.

    Where `work` asks for `policy_everywhere`, the policy's is on those below it too.

    Each scorer's head is `draw_head`'s, so that scores differ from text to text without a fit. A critic whose head
    alone learns stands on the first scorer, as `training.ppo.add_critic` has it.
    """
    torch.set_num_threads(int(work["threads"]))
    base = load_base(work["model"], dtype=work["dtype"], split=split)
    base.add_policy("policy", lora=LORA, seed=0, every_layer=bool(work.get("policy_everywhere")))
    for number, role in enumerate(scorers):
        base.add_scorer(role, lora=LORA, seed=2 + number)
        base.load_state(role, base.state(role) | {"head.weight": draw_head(base.hidden_size).to(base.device)})
    if scorers and work.get("critic") == "head":
        base.add_head("critic", on=scorers[0])
    else:
        base.add_scorer("critic", lora=LORA, seed=1)
    return base


def name_ours(base: Base, work: Mapping[str, Any]) -> str:
    """What a row of ours is called: by its split, whether the policy keeps to it, what learns of the critic, and whose
    logprobs are the old ones."""
    everywhere = "" if base.describe("policy").on_trunk or not base.split else ", policy on every layer"
    critic = ", whole critic learns" if work.get("critic") == "adapter" else ""
    anew = ", old logprobs anew" if work.get("old_logprobs") == "trainer" else ""
    return f"accord, split {base.split}{everywhere}{critic}{anew}"


def draw_head(hidden_size: int) -> Tensor:
    """(H,) float32: the score head that both contestants use, of a size that makes scores of about 1."""
    return torch.randn(hidden_size, generator=torch.Generator().manual_seed(7)) / hidden_size**0.5


@contextmanager
def never_stopping(base: Base) -> Iterator[None]:
    """No completion ends before its limit while open."""
    eos_id, base.tokens.eos_id = base.tokens.eos_id, NEVER
    try:
        yield
    finally:
        base.tokens.eos_id = eos_id


def run_ppo(
    base: Base, prompts: Sequence[Prompt], reward: RewardSource, work: Mapping[str, Any], *, warm_up: int
) -> Observer:
    """`warm_up` + `work["iterations"]` updates of PPO, with as many optimiser steps an epoch as the peer takes."""
    updates = warm_up + int(work["iterations"])
    cfg = PpoSection(
        updates=updates,
        prompts_per_update=work["prompts"],
        epochs=work["epochs"],
        minibatches=work["minibatches"],
        micro_batch_size=work.get("micro_batch_size")
        or work["prompts"] // max(work["micro_batches"], work["minibatches"]),
        learning_rate=work["learning_rate"],
        critic=work.get("critic", "adapter"),
        old_logprobs=work.get("old_logprobs", "trainer"),
        critic_learning_rate=work["learning_rate"],
        vf_coef=work["vf_coef"],
        kl_coef=work["kl_coef"],
        kl_controller="fixed",
        missing_eos_penalty=0.0,
        evaluate_every=updates,
        checkpoint_every=updates + 1,
    )
    sample = SampleSection(
        max_new_tokens=work["new_tokens"], temperature=work["temperature"], batch_size=work.get("decoding_rows", 64)
    )
    observer = Observer(Sampler(base, sample.batch_size, keep_trunk=True), reward, warm_up)
    with tempfile.TemporaryDirectory() as folder:
        observer.start()
        train_ppo(
            base, prompts, observer, observer, cfg,
            sample=sample, max_kl_nats=MAX_KL_NATS, seed=work["seed"],
            progress=observer, checkpoint=FolderCheckpoint(Path(folder)),
        )  # fmt: skip
    observer.counter.stop()
    return observer


def evaluate_policy(
    base: Base, prompts: Sequence[Prompt], reward: RewardSource, work: Mapping[str, Any]
) -> dict[str, float]:
    """Mean reward and KL (nats a sequence) of `evaluation_answers` answers of the policy, the same draws every time."""
    asked = [prompts[i % len(prompts)] for i in range(work["evaluation_answers"])]
    sample = SampleSection(max_new_tokens=work["new_tokens"], temperature=work["temperature"])
    judge = Judge(base, "policy", None, Sampler(base), reward, reward, asked, sample, MAX_KL_NATS, seed=0)
    found = summarise_look(judge.take_look(0, "afterwards"))
    return {"reward_afterwards": found["heldout_score"], "kl_nats_afterwards": found["heldout_kl_nats"]}


def run_fixed_work(work: Mapping[str, Any], split: int, *, scorers: Sequence[str] = ("reward",)) -> dict[str, Any]:
    """The fixed work of `benchmarks.ppo` in this process: seconds and counted work by phase; memory is the caller's.

    The reward is the mean of the scores of all `scorers`.
    """
    base = build_base(work, split, scorers=scorers)
    prompts = build_prompts(base.tokens, work["prompts"] * (work["iterations"] + 1), work["prompt_tokens"], 0)
    sources = [LearnedReward(base, role) for role in scorers]

    def reward(rollout: Rollout, trunk: Tensor | None = None) -> Tensor:
        return torch.stack([source(rollout, trunk) for source in sources]).mean(dim=0)

    reward.takes_trunk = True  # type: ignore[attr-defined]

    with never_stopping(base):
        observer = run_ppo(base, prompts, reward, work, warm_up=1)
    counted = dict(observer.counter.phases)
    counted["sample"] = count_sampling(base.model.config, work)
    return {
        "name": name_ours(base, work),
        "contestant": "ours",
        "matrix_weights": ModelShape.from_config(base.model.config).matrix_weights,
        "split": base.split,
        "layers": base.layers,
        "phases": [{p: row.get(f"{p}_seconds", 0.0) for p in PHASES} for row in observer.timed],
        "seconds": [sum(v for k, v in row.items() if k.endswith("_seconds") and k != "ended_seconds")
                    for row in observer.timed],
        "scores": [row["score"] for row in observer.rows],
        "kl_nats": [row["kl_nats"] for row in observer.rows],
        "tokens": [round(row["length_tokens"] * work["prompts"]) for row in observer.timed],
        "work": {phase: amount.to_dict() for phase, amount in counted.items()},
    }  # fmt: skip


def count_sampling(config: Any, work: Mapping[str, Any]) -> Work:
    """The least work of the fixed work's sampling (`ModelShape.count_decoding`): no row stops early."""
    rows, size = work["prompts"], 2 if work["dtype"] == "bfloat16" else 4
    shape = ModelShape.from_config(config)
    return shape.count_decoding([work["prompt_tokens"]] * rows, [work["new_tokens"]] * rows, size)
