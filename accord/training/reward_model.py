"""A reward model: LoRA and a scalar head on the base, fitted to preferences.

Implements the fit of Ouyang et al. 2022 (section 3.4) to soft labels, weights and strength margins, with early stopping
by validation loss; scoring of pairs; and normalisation on the reference's own samples. A completion is scored at its
last real token, under the same template in training and in PPO; EOS stands there exactly where it was finished. Leaves
out the split of the data (the caller parts prompts), and the report card (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from accord.config.schema import RewardModelSection
from accord.distributed import gather_metrics, share, sum_tensors
from accord.errors import DataError, TrainingError
from accord.functional import compute_warmup_cosine
from accord.losses import PREFERENCE_OBJECTIVES, combine_metrics
from accord.models import Base
from accord.models.branches import compute_branch_scores
from accord.training.checks import check_finite, check_tokens
from accord.training.job import MetricRow
from accord.training.optimization import (
    build_optimizer,
    check_reference,
    merge_means,
    pack_roles,
    select,
    take_step,
    unpack_roles,
)
from accord.training.sequences import (
    TokenTree,
    build_batch,
    cache_trunk,
    encode_tree,
    iterate_buckets,
    shuffle_in_buckets,
)
from accord.types import Checkpoint, Preference, Progress, Rollout, derive_seed

MAX_GRAD_NORM = 1.0
WARMUP_FRACTION = 0.05
CHECKPOINT_STEPS = 32
"""Optimiser steps between checkpoints: they change nothing but what a kill costs."""
SCORE_BATCH_TOKENS = 4096
"""Padded tokens in one pass that only scores."""


@dataclass(frozen=True)
class TokenPair:
    """A preference as tokens: its answers, P(a is better), its weight, its strength in [0, 1].

    `trees` is one tree with both answers behind one prompt where the model can branch, else one tree for each answer.
    """

    trees: tuple[TokenTree, ...]
    probability: float
    weight: float
    strength: float

    def __len__(self) -> int:
        return sum(map(len, self.trees))


@dataclass(frozen=True)
class RewardModelResult:
    """history: a row an epoch (docs/reward-model.md, 'Metrics'). best_epoch: the one whose weights the role now holds.

    left_out: training and validation pairs that were too long for `max_tokens`.
    """

    history: list[MetricRow]
    best_epoch: int
    left_out: int


class PairTensors(NamedTuple):
    """Labels of n pairs as (n,) tensors: P(a is better), weight, margin in the units of the scores."""

    probability: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]


def fits_in(base: Base, preference: Preference, max_tokens: int) -> bool:
    """Whether both sides, prompt and EOS included, have at most `max_tokens` tokens."""
    return encode_tree(base, preference.prompt, (preference.a, preference.b)).longest_tokens <= max_tokens


def encode_pairs(base: Base, preferences: Sequence[Preference], max_tokens: int) -> tuple[list[TokenPair], int]:
    """The pairs that fit in `max_tokens` and count (weight above 0), and how many were left out as too long."""
    pairs = []
    left_out = 0
    for preference in preferences:
        trees = _encode_sides(base, preference)
        if max(tree.longest_tokens for tree in trees) > max_tokens:
            left_out += 1
        elif preference.weight > 0:
            pairs.append(TokenPair(trees, preference.probability, preference.weight, preference.strength or 0.0))
    return pairs, left_out


def train_reward_model(
    base: Base,
    role: str,
    train: Sequence[Preference],
    validation: Sequence[Preference],
    cfg: RewardModelSection,
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint,
) -> RewardModelResult:
    """Fit the scorer `role` in place by minimising -p log s(d - m) - (1 - p) log s(-d - m), d = score_a - score_b.

    Each epoch is followed by the validation loss; the run ends after `patience` epochs in a row that do not lower it,
    and the role keeps the best epoch's weights. A pair's prompt is read once for both answers where the model can
    branch; the frozen trunk is computed once for all epochs; micro-batches change nothing.

    Raises:
        DataError: no training or validation pair is left.
        TrainingError: a loss or gradient is not finite, or the checkpoint was made on another base.
    """
    check_tokens(base.tokens)
    objective = PREFERENCE_OBJECTIVES[cfg.objective]
    pairs, left_out = _prepare_pairs(base, train, cfg.max_tokens, progress)
    unseen, unseen_left_out = _prepare_pairs(base, validation, cfg.max_tokens, progress)
    lengths = [len(pair) for pair in pairs]
    optimizer = build_optimizer(base, role, cfg.learning_rate)
    state = _resume(base, role, optimizer, checkpoint) or _FitState(base.fingerprint)
    steps_an_epoch = -(-len(pairs) // cfg.batch_size)
    total = cfg.epochs * steps_an_epoch
    progress.begin(f"reward model {role}", total, "steps")
    progress.advance(state.epoch * steps_an_epoch + state.step)
    while state.epoch < cfg.epochs and state.epoch - state.best_epoch < cfg.patience:
        batches = shuffle_in_buckets(lengths, cfg.batch_size, derive_seed(seed, "epoch", state.epoch))
        for batch in batches[state.step :]:
            where = f"reward model {role}, epoch {state.epoch + 1}, step {state.step + 1}"
            parts = []
            for labels, score_a, score_b, denominator in _iterate_scores(base, role, [pairs[i] for i in batch], cfg):
                loss = objective(score_a, score_b, **labels._asdict(), denominator=denominator)
                torch.autograd.backward(loss.loss)
                parts.append({"loss": loss.loss.detach(), **loss.metrics})
            done = state.epoch * steps_an_epoch + state.step
            factor = compute_warmup_cosine(done, total, round(WARMUP_FRACTION * total))
            row = combine_metrics(gather_metrics(parts))
            row["grad_norm"] = take_step([optimizer], [factor * cfg.learning_rate], max_grad_norm=MAX_GRAD_NORM)
            check_finite(row, where=where)
            state.steps.append(row)
            state.step += 1
            if state.step % CHECKPOINT_STEPS == 0:
                state.save(base, role, optimizer, checkpoint)
            progress.advance()
        metrics = {**merge_means(state.steps), **_validate(base, role, unseen, cfg)}
        state.finish_epoch(metrics, base, role)
        state.save(base, role, optimizer, checkpoint)
        progress.log(state.history[-1])
    base.load_state(role, state.best)
    return RewardModelResult(state.history, state.best_epoch, left_out + unseen_left_out)


@torch.no_grad()
def score_preferences(
    base: Base, role: str, preferences: Sequence[Preference]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Scores of both sides of N preferences, (N,) float32 each, on the CPU."""
    trees = [tree for preference in preferences for tree in _encode_sides(base, preference)]
    scores = torch.zeros(len(trees), 2 * len(preferences) // max(len(trees), 1))
    for group in share(list(iterate_buckets([len(tree) for tree in trees], SCORE_BATCH_TOKENS))):
        batch = build_batch(base, [trees[i] for i in group])
        scores[group] = compute_branch_scores(base, role, batch.input_ids, batch.branches).cpu()
    sum_tensors(scores)
    both = scores.view(-1, 2)
    return both[:, 0], both[:, 1]


@torch.no_grad()
def normalize_reward_model(base: Base, role: str, rollouts: Sequence[Rollout]) -> tuple[float, float]:
    """Fold (score - mean) / std into the head of `role`: mean 0, variance 1 on these rollouts, the reference's own.

    Returns (mean, std) of the scores as they were; std is the population's, divided by n.

    Raises:
        TrainingError: the scores do not vary, so there is nothing to normalise by.
    """
    scores = torch.cat([base.compute_scores(role, r.input_ids, r.attention_mask).float() for r in rollouts])
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not std > 0:
        raise TrainingError(
            "every sample of the reference has the same score",
            where=f"reward model {role}",
            mend="train it for longer, on more preferences; or sample more prompts to normalise on",
        )
    base.normalize_head(role, mean, std)
    return mean, std


@dataclass
class _FitState:
    """All that a fit carries between steps: counters, metrics of the epoch so far, history, and the best epoch."""

    reference: str
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")

    def __post_init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.history: list[MetricRow] = []
        self.best: dict[str, Tensor] = {}

    def finish_epoch(self, metrics: Mapping[str, float], base: Base, role: str) -> None:
        """Count the epoch; keep the weights where validation improved."""
        self.epoch, self.step, self.steps = self.epoch + 1, 0, []
        self.history.append({"epoch": self.epoch, **metrics})
        if metrics["validation_loss"] < self.best_loss:
            self.best_epoch, self.best_loss, self.best = self.epoch, metrics["validation_loss"], base.state(role)

    def save(self, base: Base, role: str, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        tensors = pack_roles(base, {role: optimizer}) | {f"best/{name}": value for name, value in self.best.items()}
        counters: dict[str, Any] = {
            name: getattr(self, name) for name in ("reference", "epoch", "step", "best_epoch", "steps", "history")
        }
        checkpoint.save(tensors, counters | {"best_loss": self.best_loss if self.best else None})


def _resume(base: Base, role: str, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> _FitState | None:
    """Put the role and its optimiser back as the checkpoint has them; None where there is none."""
    found = checkpoint.load()
    if found is None:
        return None
    tensors, saved = found
    check_reference(saved["reference"], base.fingerprint, where=f"reward model {role} checkpoint")
    unpack_roles(base, {role: optimizer}, tensors)
    best_loss = float("inf") if saved["best_loss"] is None else saved["best_loss"]
    state = _FitState(saved["reference"], saved["epoch"], saved["step"], saved["best_epoch"], best_loss)
    state.steps, state.history, state.best = saved["steps"], saved["history"], select(tensors, "best/")
    return state


def _prepare_pairs(
    base: Base, preferences: Sequence[Preference], max_tokens: int, progress: Progress
) -> tuple[list[TokenPair], int]:
    """Encoded pairs with their trunk states, and the number left out.

    Raises:
        DataError: none is left.
    """
    pairs, left_out = encode_pairs(base, preferences, max_tokens)
    if not pairs:
        raise DataError(
            f"no pair left of {len(preferences)}: {left_out} are longer than {max_tokens} tokens",
            where="reward_model",
            mend="raise reward_model.max_tokens, or gather votes that prefer something",
        )
    cached = iter(cache_trunk(base, [tree for pair in pairs for tree in pair.trees], progress))
    return [replace(pair, trees=tuple(next(cached) for _ in pair.trees)) for pair in pairs], left_out


def _encode_sides(base: Base, preference: Preference) -> tuple[TokenTree, ...]:
    """Both answers behind one prompt where the model can branch, else one tree for each: scores come as a, b."""
    shares_row, _ = base.branching
    if shares_row:
        return (encode_tree(base, preference.prompt, (preference.a, preference.b)),)
    return tuple(encode_tree(base, preference.prompt, (side,)) for side in (preference.a, preference.b))


def _iterate_scores(
    base: Base, role: str, pairs: Sequence[TokenPair], cfg: RewardModelSection
) -> Iterator[tuple[PairTensors, Tensor, Tensor, float]]:
    """Micro-batches of one optimiser step: labels, score_a, score_b, and the step's global denominator."""
    denominator = sum(pair.weight for pair in pairs)
    ordered = share(sorted(pairs, key=len))
    for start in range(0, len(ordered), cfg.micro_batch_size):
        chunk = ordered[start : start + cfg.micro_batch_size]
        batch = build_batch(base, [tree for pair in chunk for tree in pair.trees])
        scores = compute_branch_scores(base, role, batch.input_ids, batch.branches, batch.trunk).view(-1, 2)
        labels = PairTensors(
            torch.tensor([pair.probability for pair in chunk], device=scores.device),
            torch.tensor([pair.weight for pair in chunk], device=scores.device),
            torch.tensor([cfg.margin * pair.strength for pair in chunk], device=scores.device),
        )
        yield labels, scores[:, 0], scores[:, 1], denominator


@torch.no_grad()
def _validate(base: Base, role: str, pairs: Sequence[TokenPair], cfg: RewardModelSection) -> MetricRow:
    """`validation_` metrics of the role as it is now, over all validation pairs."""
    objective = PREFERENCE_OBJECTIVES[cfg.objective]
    parts = []
    for labels, score_a, score_b, denominator in _iterate_scores(base, role, pairs, cfg):
        loss = objective(score_a, score_b, **labels._asdict(), denominator=denominator)
        parts.append({"loss": loss.loss, **loss.metrics})
    return {f"validation_{name}": value for name, value in combine_metrics(gather_metrics(parts)).items()}
