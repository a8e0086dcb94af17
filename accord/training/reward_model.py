"""A reward model: LoRA and a scalar head on the base, fitted to preferences.

Implements the fit of Ouyang et al. 2022 (section 3.4) to soft labels, weights and strength margins, with early stopping
by validation loss; scoring of pairs; and normalisation on the reference's own samples. An ensemble is fitted in the
same loop: its members read the same batches and differ in the weights that a bootstrap over prompts gives each pair. A
completion is scored at its last real token, under the same template in training and in PPO; EOS stands there exactly
where it was finished. Leaves out the split of the data (the caller parts prompts), and the report card (`evaluation`).
"""

from __future__ import annotations

import random
from collections import Counter
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
from accord.losses import PREFERENCE_OBJECTIVES, PreferenceLoss, PreferenceObjective, combine_metrics
from accord.models import Base
from accord.models.checkpoints import pack_optimizer, unpack_optimizer
from accord.models.ensemble import Ensemble
from accord.training.checks import check_finite, check_tokens
from accord.training.job import MetricRow
from accord.training.optimization import (
    build_adamw,
    check_reference,
    merge_means,
    select,
    take_step,
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
    `counts`: how often the pair's prompt is in each ensemble member's bootstrap sample.
    """

    trees: tuple[TokenTree, ...]
    probability: float
    weight: float
    strength: float
    prompt_id: str = ""
    counts: tuple[int, ...] = (1,)

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
    """Labels of n pairs: P(a is better), weight for each of K members, margin in the units of the scores."""

    probability: Float[Tensor, " n"]
    weight: Float[Tensor, "K n"]
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
            labels = preference.probability, preference.weight, preference.strength or 0.0
            pairs.append(TokenPair(trees, *labels, preference.prompt.id))
    return pairs, left_out


def train_reward_model(
    base: Base,
    role: str | Ensemble,
    train: Sequence[Preference],
    validation: Sequence[Preference],
    cfg: RewardModelSection,
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint,
) -> RewardModelResult:
    """Fit the scorer `role`, or each member of an ensemble, in place: minimise -p log s(d - m) - (1 - p) log s(-d - m).

    d = score_a - score_b. A pair's prompt is read once for both answers where the model can branch; the frozen trunk is
    computed once for all epochs; micro-batches change nothing. In an ensemble of K member k weighs a pair by how often
    its prompt is in the k-th bootstrap sample (`draw_bootstrap`), and the loss is the members' mean.

    Each epoch is followed by the validation loss (the members' mean, unweighted); the run ends after `patience` epochs
    in a row that do not lower it, and the best epoch's weights are kept.

    Raises:
        DataError: no training or validation pair is left.
        TrainingError: a loss or gradient is not finite, or the checkpoint was made on another base.
    """
    check_tokens(base.tokens)
    ensemble = role if isinstance(role, Ensemble) else Ensemble(base, (role,), base.split)
    name = ensemble.roles[0]
    objective = PREFERENCE_OBJECTIVES[cfg.objective]
    pairs, left_out = _prepare_pairs(base, train, cfg.max_tokens, progress)
    pairs = draw_bootstrap(pairs, len(ensemble), derive_seed(seed, "bootstrap"))
    unseen, unseen_left_out = _prepare_pairs(base, validation, cfg.max_tokens, progress)
    unseen = [replace(pair, counts=(1,) * len(ensemble)) for pair in unseen]
    lengths = [len(pair) for pair in pairs]
    optimizer = build_adamw(ensemble.parameters().values(), cfg.learning_rate, base.optimizer)
    state = _resume(ensemble, optimizer, checkpoint) or _FitState(base.fingerprint)
    steps_an_epoch = -(-len(pairs) // cfg.batch_size)
    total = cfg.epochs * steps_an_epoch
    progress.begin(f"reward model {name}", total, "steps")
    progress.advance(state.epoch * steps_an_epoch + state.step)
    while state.epoch < cfg.epochs and state.epoch - state.best_epoch < cfg.patience:
        batches = shuffle_in_buckets(lengths, cfg.batch_size, derive_seed(seed, "epoch", state.epoch))
        for batch in batches[state.step :]:
            where = f"reward model {name}, epoch {state.epoch + 1}, step {state.step + 1}"
            parts = []
            for loss in _iterate_losses(ensemble, objective, [pairs[i] for i in batch], cfg):
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
                state.save(ensemble, optimizer, checkpoint)
            progress.advance()
        metrics = {**merge_means(state.steps), **_validate(ensemble, unseen, cfg)}
        state.finish_epoch(metrics, ensemble)
        state.save(ensemble, optimizer, checkpoint)
        progress.log(state.history[-1])
    ensemble.load_state(state.best)
    return RewardModelResult(state.history, state.best_epoch, left_out + unseen_left_out)


def draw_bootstrap(pairs: Sequence[TokenPair], members: int, seed: int) -> list[TokenPair]:
    """The pairs with `counts`: for each member as many prompts as there are, drawn with replacement (Efron 1979).

    Prompts are drawn, not pairs: the pairs of one prompt are not independent. One member is fitted on everything once.
    """
    if members == 1:
        return [replace(pair, counts=(1,)) for pair in pairs]
    prompts = list(dict.fromkeys(pair.prompt_id for pair in pairs))
    drawn = [
        Counter(random.Random(derive_seed(seed, member)).choices(prompts, k=len(prompts))) for member in range(members)
    ]
    return [replace(pair, counts=tuple(sample[pair.prompt_id] for sample in drawn)) for pair in pairs]


@torch.no_grad()
def score_preferences(
    base: Base, role: str, preferences: Sequence[Preference]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Scores of both sides of N preferences, (N,) float32 each, on the CPU."""
    both = score_preferences_by_member(Ensemble(base, (role,), base.split), preferences)[0]
    return both[:, 0], both[:, 1]


@torch.no_grad()
def score_preferences_by_member(ensemble: Ensemble, preferences: Sequence[Preference]) -> Float[Tensor, "K N 2"]:
    """Each member's scores of both sides of N preferences, float32, on the CPU."""
    base = ensemble.base
    trees = [tree for preference in preferences for tree in _encode_sides(base, preference)]
    scores = torch.zeros(len(ensemble), len(trees), 2 * len(preferences) // max(len(trees), 1))
    for group in share(list(iterate_buckets([len(tree) for tree in trees], SCORE_BATCH_TOKENS))):
        batch = build_batch(base, [trees[i] for i in group])
        scores[:, group] = ensemble.compute_branch_scores(batch.input_ids, batch.branches).cpu()
    sum_tensors(scores)
    return scores.view(len(ensemble), -1, 2)


@torch.no_grad()
def normalize_reward_model(base: Base, role: str | Ensemble, rollouts: Sequence[Rollout]) -> tuple[float, float]:
    """Fold (score - mean) / std into the head of `role`: mean 0, variance 1 on these rollouts, the reference's own.

    Each member of an ensemble is normalised by itself. Returns (mean, std) of the scores as they were, the members'
    mean; std is the population's, divided by n.

    Raises:
        TrainingError: the scores do not vary, so there is nothing to normalise by.
    """
    ensemble = role if isinstance(role, Ensemble) else Ensemble(base, (role,), base.split)
    scores = torch.cat([ensemble.compute_scores(r.input_ids, r.attention_mask).float() for r in rollouts], dim=1)
    means, stds = scores.mean(dim=1), scores.std(dim=1, correction=0)
    for name, mean, std in zip(ensemble.roles, means.tolist(), stds.tolist(), strict=True):
        if not std > 0:
            raise TrainingError(
                "every sample of the reference has the same score",
                where=f"reward model {name}",
                mend="train it for longer, on more preferences; or sample more prompts to normalise on",
            )
        base.normalize_head(name, mean, std)
    return float(means.mean()), float(stds.mean())


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

    def finish_epoch(self, metrics: Mapping[str, float], ensemble: Ensemble) -> None:
        """Count the epoch; keep the weights where validation improved."""
        self.epoch, self.step, self.steps = self.epoch + 1, 0, []
        self.history.append({"epoch": self.epoch, **metrics})
        if metrics["validation_loss"] < self.best_loss:
            self.best_epoch, self.best_loss, self.best = self.epoch, metrics["validation_loss"], ensemble.state()

    def save(self, ensemble: Ensemble, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        tensors = {f"weights/{name}": value for name, value in ensemble.state().items()}
        tensors |= {f"optimizer/{name}": value for name, value in pack_optimizer(optimizer).items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        counters: dict[str, Any] = {
            name: getattr(self, name) for name in ("reference", "epoch", "step", "best_epoch", "steps", "history")
        }
        checkpoint.save(tensors, counters | {"best_loss": self.best_loss if self.best else None})


def _resume(ensemble: Ensemble, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> _FitState | None:
    """Put the members and their optimiser back as the checkpoint has them; None where there is none."""
    found = checkpoint.load()
    if found is None:
        return None
    tensors, saved = found
    where = f"reward model {ensemble.roles[0]} checkpoint"
    check_reference(saved["reference"], ensemble.base.fingerprint, where=where)
    ensemble.load_state(select(tensors, "weights/"))
    unpack_optimizer(optimizer, select(tensors, "optimizer/"))
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


def _iterate_losses(
    ensemble: Ensemble, objective: PreferenceObjective, pairs: Sequence[TokenPair], cfg: RewardModelSection
) -> Iterator[PreferenceLoss]:
    """The loss of each micro-batch of one optimiser step, the mean over members, each over its own global denominator.

    A member whose bootstrap sample holds none of the step's pairs is left out of that mean.
    """
    weights = [sum(pair.weight * pair.counts[k] for pair in pairs) for k in range(len(ensemble))]
    present = [k for k, weight in enumerate(weights) if weight > 0]
    ordered = share(sorted(pairs, key=len))
    for start in range(0, len(ordered), cfg.micro_batch_size):
        chunk = ordered[start : start + cfg.micro_batch_size]
        batch = build_batch(ensemble.base, [tree for pair in chunk for tree in pair.trees])
        scores = ensemble.compute_branch_scores(batch.input_ids, batch.branches, batch.trunk)
        scores = scores.reshape(len(ensemble), -1, 2)
        labels = _build_labels(chunk, cfg.margin, scores.device)
        losses = [
            objective(
                scores[k, :, 0], scores[k, :, 1], probability=labels.probability, weight=labels.weight[k],
                margin=labels.margin, denominator=weights[k],
            )
            for k in present
        ]  # fmt: skip
        yield _average_losses(losses)


def _build_labels(pairs: Sequence[TokenPair], margin: float, device: torch.device) -> PairTensors:
    return PairTensors(
        torch.tensor([pair.probability for pair in pairs], device=device),
        torch.tensor([[pair.weight * count for count in pair.counts] for pair in pairs], device=device).t(),
        torch.tensor([margin * pair.strength for pair in pairs], device=device),
    )


def _average_losses(losses: Sequence[PreferenceLoss]) -> PreferenceLoss:
    """The mean of the members' losses and metrics."""
    metrics = {name: torch.stack([loss.metrics[name] for loss in losses]).mean() for name in losses[0].metrics}
    return PreferenceLoss(torch.stack([loss.loss for loss in losses]).mean(), metrics)


@torch.no_grad()
def _validate(ensemble: Ensemble, pairs: Sequence[TokenPair], cfg: RewardModelSection) -> MetricRow:
    """`validation_` metrics of the members as they are now, over all validation pairs."""
    losses = _iterate_losses(ensemble, PREFERENCE_OBJECTIVES[cfg.objective], pairs, cfg)
    parts = [{"loss": loss.loss, **loss.metrics} for loss in losses]
    return {f"validation_{name}": value for name, value in combine_metrics(gather_metrics(parts)).items()}
