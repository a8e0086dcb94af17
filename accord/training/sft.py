"""Supervised fine-tuning of a policy on completions, as token ids.

Implements the mean negative log-likelihood of the completions' tokens (the prompt's do not count), AdamW with a cosine
to zero. Leaves out packing several conversations into one row: rows are sorted by length instead, and padded little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from accord.distributed import gather_metrics, share_rounds
from accord.errors import DataError
from accord.functional import compute_warmup_cosine
from accord.losses import combine_metrics, compute_sft_loss
from accord.models import Base
from accord.training.checks import check_finite, check_tokens
from accord.training.job import MetricRow
from accord.training.optimization import (
    build_optimizer,
    check_reference,
    merge_means,
    pack_roles,
    take_step,
    unpack_roles,
)
from accord.training.sequences import TokenTree, build_batch, cache_trunk, encode_tree, shuffle_in_buckets
from accord.types import Checkpoint, Completion, Progress, Prompt, derive_seed

MAX_GRAD_NORM = 1.0
MICRO_BATCH_SIZE = 8
"""Sequences in a forward pass where nothing else is said; changes memory and speed only."""
WARMUP_FRACTION = 0.05


@runtime_checkable
class SftSettings(Protocol):
    """What supervised fine-tuning needs of a config section: [sft] and [rejection_sampling] both have it."""

    @property
    def epochs(self) -> int:
        """Passes over the examples."""
        ...

    @property
    def learning_rate(self) -> float:
        """AdamW's, at its highest."""
        ...

    @property
    def batch_size(self) -> int:
        """Sequences an optimiser step."""
        ...


@dataclass(frozen=True)
class SftResult:
    """history: a row an epoch (docs/sft.md, 'Metrics')."""

    history: list[MetricRow] = field(default_factory=list)


def train_sft(
    base: Base,
    role: str,
    examples: Sequence[tuple[Prompt, Completion]],
    cfg: SftSettings,
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint,
    micro_batch_size: int = MICRO_BATCH_SIZE,
) -> SftResult:
    """Fine-tune the policy `role` in place on (prompt, completion) examples; see `fit_sequences`.

    Raises:
        DataError: no examples.
        TrainingError: a loss or gradient is not finite, or the checkpoint was made on another base.
    """
    sequences = [encode_tree(base, prompt, [completion]) for prompt, completion in examples]
    return fit_sequences(
        base, role, sequences, cfg, seed=seed, progress=progress, checkpoint=checkpoint,
        micro_batch_size=micro_batch_size,
    )  # fmt: skip


def fit_sequences(
    base: Base,
    role: str,
    sequences: Sequence[TokenTree],
    cfg: SftSettings,
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint,
    after_epoch: EpochHook | None = None,
    stops: Callable[[], bool] | None = None,
    micro_batch_size: int = MICRO_BATCH_SIZE,
) -> SftResult:
    """Minimise -1/N sum_t log pi(y_t | x, y_<t) over the completions' tokens, `cfg.epochs` passes, `role` in place.

    `micro_batch_size` sequences make a forward pass; it changes memory and speed only.
    `after_epoch`, where given, adds its metrics to each epoch's row, as a trainer that picks the best epoch needs.
    `stops`, where given, is asked before each epoch whether those that are left should not be run.

    Raises:
        DataError: no sequences.
        TrainingError: a loss or gradient is not finite, or the checkpoint was made on another base.
    """
    check_tokens(base.tokens)
    kept = [s for s in sequences if sum(s.branch_tokens)]
    if not kept:
        raise DataError("no examples to fine-tune on", where="sft", mend="gather votes that prefer something")
    cached = cache_trunk(base, kept, progress) if base.describe(role).on_trunk else kept
    optimizer = build_optimizer(base, role, cfg.learning_rate)
    history = _resume(base, role, optimizer, checkpoint)
    steps_an_epoch = -(-len(cached) // cfg.batch_size)
    total = cfg.epochs * steps_an_epoch
    progress.begin(f"fine-tuning {role}", total, "steps")
    progress.advance(len(history) * steps_an_epoch)
    for epoch in range(len(history), cfg.epochs):
        if stops is not None and stops():
            break
        rows = []
        batches = shuffle_in_buckets([len(s) for s in cached], cfg.batch_size, derive_seed(seed, "epoch", epoch))
        for step, batch in enumerate(batches):
            factor = compute_warmup_cosine(epoch * steps_an_epoch + step, total, round(WARMUP_FRACTION * total))
            row = _accumulate_gradients(base, role, [cached[i] for i in batch], micro_batch_size)
            row["grad_norm"] = take_step([optimizer], [factor * cfg.learning_rate], max_grad_norm=MAX_GRAD_NORM)
            check_finite(row, where=f"fine-tuning {role}, epoch {epoch + 1}, step {step + 1}")
            rows.append(row)
            progress.advance()
        history.append({"update": epoch + 1, **merge_means(rows)})
        if after_epoch is not None:
            history[-1] |= after_epoch(history[-1])
        checkpoint.save(pack_roles(base, {role: optimizer}), {"history": history, "reference": base.fingerprint})
        progress.log(history[-1])
    return SftResult(history)


@runtime_checkable
class EpochHook(Protocol):
    """Called after each epoch with its row; returns more metrics for it."""

    def __call__(self, row: Mapping[str, float | int]) -> Mapping[str, float | int]:
        """More metrics."""
        ...


def _accumulate_gradients(base: Base, role: str, sequences: Sequence[TokenTree], size: int) -> dict[str, float]:
    """Add the gradient of one optimiser step's loss, micro-batch by micro-batch; its metrics."""
    tokens = sum(sum(s.branch_tokens) for s in sequences)
    parts = []
    for group, counts in share_rounds(sorted(sequences, key=len), size):
        batch = build_batch(base, group)
        mask = batch.completion_mask & counts
        last = mask.shape[1]
        logprobs, entropy = base.compute_logprobs(
            role, batch.input_ids, batch.attention_mask, last, 1.0, trunk=batch.trunk, entropy="constant"
        )
        loss = compute_sft_loss(logprobs, mask, denominator=tokens)
        torch.autograd.backward(loss.loss)
        parts.append(loss.metrics | {"entropy": (entropy.detach() * mask).sum() / tokens})
    return combine_metrics(gather_metrics(parts))


def _resume(base: Base, role: str, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> list[MetricRow]:
    """The history of the epochs already done, role and optimiser put back; empty where there is no checkpoint."""
    found = checkpoint.load()
    if found is None:
        return []
    tensors, state = found
    check_reference(state["reference"], base.fingerprint, where=f"fine-tuning {role} checkpoint")
    unpack_roles(base, {role: optimizer}, tensors)
    history: list[MetricRow] = state["history"]
    return history
