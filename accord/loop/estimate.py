"""What a stage is expected to cost on this machine, before it starts: tokens, seconds, memory.

Implements a count of the tokens that each stage reads and writes, and a measured matmul rate that turns them into
seconds. Leaves out exactness: the factors below were fitted to SmolLM2-135M on two CPU cores, and batching, length and
the other users of the machine move the truth by half in either direction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from accord.config import Config
from accord.loop.context import resolve_model
from accord.models.size import measure_size
from accord.starter import load_starter_prompts
from accord.workspace import Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage

PROMPT_TOKENS = 64
"""Tokens of a prompt under its chat template, where the prompts were not read yet."""
FORWARD_SHARE, BACKWARD_SHARE, DECODE_SHARE = 0.45, 0.35, 0.2
"""Shares of the machine's matmul rate that a forward pass, a backward pass and decoding reach."""
OVERHEAD_SECONDS = 1.0
"""What a stage costs however small it is: loading, hashing, writing."""


class Estimate(NamedTuple):
    """Tokens read and written, expected seconds, expected peak bytes."""

    tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Machine:
    """What was measured of the machine and the model. flops_a_second: of a matmul in the base's dtype."""

    flops_a_second: float
    parameters: int
    layers: int
    vocabulary: int
    train_prompts: int
    evaluation_prompts: int
    pairs: int


def measure_machine(workspace: Workspace, config: Config, votes: int) -> Machine:
    """Time one matmul (0.2 s), read the model's size from its configuration, count the prompts. Loads no weights."""
    size = measure_size(resolve_model(workspace, config))
    train, evaluation = _count_prompts(workspace, config, votes)
    pairs = (
        votes
        if config.feedback.source == "votes"
        else train * config.sample.completions * (config.sample.completions - 1) // 2
    )
    rate = _measure_matmul(getattr(torch, config.model.dtype))
    return Machine(rate, size.parameters, size.layers, size.vocabulary, train, evaluation, pairs)


def _measure_matmul(dtype: torch.dtype) -> float:
    x, w = torch.ones(1024, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    torch.mm(x, w)
    best, until = float("inf"), time.perf_counter() + 0.2
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(x, w)
        best = min(best, time.perf_counter() - started)
    return float(2 * 1024**3 / best)


def _count_prompts(workspace: Workspace, config: Config, votes: int) -> tuple[int, int]:
    """(training, evaluation) prompts that the settings ask for."""
    section = config.prompts

    def count(source: str, part: str) -> int:
        if source == "starter":
            return len(load_starter_prompts(part))
        if source == "votes":
            return votes
        path = workspace.root / source
        return sum(1 for line in path.open(encoding="utf-8") if line.strip()) if path.is_file() else 0

    train = count(section.train, "train")
    if section.evaluation == "split":
        evaluation = round(train * section.evaluation_fraction)
        train -= evaluation
    else:
        evaluation = count(section.evaluation, "evaluation")
    return min(train, section.limit or train), min(evaluation, section.evaluation_limit or evaluation)


def estimate_stage(stage: Stage, config: Config, machine: Machine) -> Estimate:
    """Expected cost of a stage that is not done."""
    sample, rm, ppo = config.sample, config.reward_model, config.ppo
    row = PROMPT_TOKENS + sample.max_new_tokens
    pair_tokens = 2 * min(row, rm.max_tokens)
    decoded = read = trained = 0
    if stage.kind == "doctor":
        read = 4096
    elif stage.kind == "samples":
        decoded = machine.train_prompts * sample.completions * sample.max_new_tokens
    elif stage.kind in ("reward_model", "heldout_reward_model"):
        share = config.feedback.heldout_fraction
        pairs = machine.pairs * (share if stage.kind.startswith("heldout") else 1 - share)
        read = round(pairs * pair_tokens)
        trained = round(pairs * pair_tokens * rm.epochs)
        decoded = 48 * sample.max_new_tokens
    elif stage.kind == "sft":
        trained = config.sft.epochs * machine.pairs * row
    elif stage.kind == "policy":
        validations = ppo.updates // ppo.evaluate_every + 2
        decoded = (ppo.updates * ppo.prompts_per_update + validations * ppo.validation_prompts) * sample.max_new_tokens
        read = 3 * ppo.updates * ppo.prompts_per_update * row
        trained = 2 * ppo.epochs * ppo.updates * ppo.prompts_per_update * row
    elif stage.kind == "evaluation":
        decoded = (
            machine.evaluation_prompts
            * (2 * config.evaluation.samples + config.evaluation.best_of)
            * sample.max_new_tokens
        )
        read = 4 * machine.evaluation_prompts * (2 + config.evaluation.best_of) * row
    return _cost(config, machine, decoded, read, trained)


def _cost(config: Config, machine: Machine, decoded: int, read: int, trained: int) -> Estimate:
    """Seconds from floating-point operations: 2 a parameter and token forward, 4 more backward above the split."""
    split = round(2 / 3 * machine.layers) if config.model.split == -1 else config.model.split
    above = 1.0 if config.model.adapter == "full" else 1 - split / machine.layers
    forward, rate = 2 * machine.parameters, machine.flops_a_second
    seconds = (
        decoded * forward / (rate * DECODE_SHARE)
        + read * forward / (rate * FORWARD_SHARE)
        + trained * above * (forward / (rate * FORWARD_SHARE) + 2 * forward / (rate * BACKWARD_SHARE))
    )
    weights = machine.parameters * (2 if config.model.dtype == "bfloat16" else 4)
    if config.model.adapter == "full" and trained:
        weights += 16 * machine.parameters  # float32 copy, gradient and two moments
    batch = (
        max(config.ppo.micro_batch_size, config.reward_model.micro_batch_size) if trained else config.sample.batch_size
    )
    logits = 4 * 3 * batch * (config.sample.max_new_tokens if trained else 1) * machine.vocabulary
    return Estimate(decoded + read + trained, OVERHEAD_SECONDS + seconds, 500_000_000 + 2 * weights + logits)
