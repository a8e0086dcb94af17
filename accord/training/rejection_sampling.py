"""Rejection sampling: best-of-n under the proxy reward, then supervised fine-tuning on the winners.

Implements one round of Touvron et al. 2023 (Llama 2, section 3.2.3), the baseline that every PPO must beat. The winners
are trained on as the very token ids that were sampled. The epoch with the best held-out score within the KL budget is
kept, and an alarm ends it, as in PPO. Leaves out further rounds: that is what the loop's rounds are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accord.looks import Alarm, Look
from accord.models.sharding import gather_tensors
from accord.rewards import choose_best
from accord.training.checks import check_finite, check_rollout
from accord.training.job import MetricRow, TrainingJob, TrainingResult
from accord.training.optimization import check_reference, compute_reference_hash, select
from accord.training.selection import Best, Judge, Record, summarise_look
from accord.training.sequences import TokenTree
from accord.training.sft import fit_sequences
from accord.types import Checkpoint, Rollout, derive_seed

PROMPTS_AT_ONCE = 64
"""Prompts whose candidates are sampled and scored together; changes memory and speed only."""
BEST = "best/"


def run_rejection_sampling(job: TrainingJob) -> TrainingResult:
    """Sample n candidates for each prompt, keep the one with the highest proxy score, fine-tune on those.

    history: update 0 has the held-out metrics before training, `score` (mean of all candidates) and `winner_score`;
    update e has those of `fit_sequences` and the held-out metrics after epoch e.

    Raises:
        TrainingError: a score, loss or gradient is not finite, or the checkpoint was made on another reference.
    """
    cfg, sample, base = job.config.rejection_sampling, job.config.sample, job.base
    judge = Judge(
        base, job.policy, job.reference, job.generator, job.heldout or job.proxy, job.proxy, job.validation_prompts,
        sample, job.config.policy.max_kl_nats, job.seed, job.gold, job.disagreement, job.watch,
    )  # fmt: skip
    store = _Store(job.checkpoint, compute_reference_hash(base, job.reference))
    if not store.resume():
        sequences, metrics = choose_winners(job)
        look = judge.take_look(0, "rejection sampling, before")
        first: MetricRow = {"update": 0, **metrics, **summarise_look(look)}
        store.record.add(look, judge)
        store.begin(sequences, first)

    def judge_epoch(row: Mapping[str, float | int]) -> MetricRow:
        found = judge.take_look(int(row["update"]), f"rejection sampling, epoch {row['update']}")
        store.record.add(found, judge)
        return summarise_look(found)

    result = fit_sequences(
        base, job.policy, store.winners, cfg, seed=job.seed, progress=job.progress, checkpoint=store,
        after_epoch=judge_epoch, stops=lambda: bool(store.record.alarms), micro_batch_size=job.micro_batch_size,
    )  # fmt: skip
    record = store.record
    record.best.restore(base, job.policy)
    history = [store.first, *result.history]
    best_update = record.best.update if record.best.weights else int(history[-1]["update"])
    return TrainingResult(history, best_update, record.stopped, record.looks, record.alarms)


def choose_winners(job: TrainingJob) -> tuple[list[TokenTree], dict[str, float]]:
    """The best of n candidates for each prompt under the proxy (the first, where scores tie), and two means.

    Metrics: score, the mean over all candidates; winner_score, the mean over the winners.
    """
    count, sample = job.config.rejection_sampling.candidates, job.config.sample
    winners: list[TokenTree] = []
    seen: list[Tensor] = []
    job.progress.begin(f"best of {count}", len(job.prompts), "prompts")
    for start in range(0, len(job.prompts), PROMPTS_AT_ONCE):
        chunk = job.prompts[start : start + PROMPTS_AT_ONCE]
        rollouts = [
            job.generator.generate(
                job.policy,
                chunk,
                seeds=[derive_seed(job.seed, "candidate", start + i, k) for i in range(len(chunk))],
                max_new_tokens=sample.max_new_tokens,
                temperature=sample.temperature,
            )
            for k in range(count)
        ]
        for rollout in rollouts:
            check_rollout(rollout, job.base.tokens)
        scores = torch.stack([job.proxy(rollout).float().cpu() for rollout in rollouts])
        check_finite({"score": scores}, where="rejection sampling")
        best = choose_best(rollouts, scores)
        winners += [take_sequence(best, row) for row in range(len(best))]
        seen.append(scores)
        job.progress.advance(len(chunk))
    scores = torch.cat(seen, dim=1)
    return winners, {"score": float(scores.mean()), "winner_score": float(scores.amax(dim=0).mean())}


def take_sequence(rollout: Rollout, row: int) -> TokenTree:
    """One row of a rollout as the token ids that were sampled, without padding."""
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]].tolist()
    completion = rollout.completion_ids[row][rollout.completion_mask[row]].tolist()
    return TokenTree((*prompt, *completion), (len(completion),))


class _Store:
    """The checkpoint of the whole method around that of its fine-tuning: winners, first row and best policy besides."""

    def __init__(self, inner: Checkpoint, reference: str) -> None:
        self.inner = inner
        self.reference = reference
        self.winners: list[TokenTree] = []
        self.first: MetricRow = {}
        self.record = Record()

    def begin(self, winners: Sequence[TokenTree], first: MetricRow) -> None:
        """Keep what sampling gave before fine-tuning starts."""
        self.winners, self.first = list(winners), first
        self.save({}, {})

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: fine-tuning's `tensors` and `state`, and our own."""
        ours = {
            "winners": [[list(s.ids), s.branch_tokens[0]] for s in self.winners],
            "first": self.first,
            "best": [self.record.best.update, self.record.best.score],
            "looks": [look.to_dict() for look in self.record.looks],
            "alarms": [alarm.to_dict() for alarm in self.record.alarms],
            "reference_role": self.reference,
        }
        best = {BEST + name: value for name, value in gather_tensors(self.record.best.weights).items()}
        self.inner.save({**tensors, **best}, {**state, **ours})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Fine-tuning's part; None where it has not finished an epoch."""
        found = self.inner.load()
        return found if found and "history" in found[1] else None

    def resume(self) -> bool:
        """Read our own part back; False where there is none."""
        found = self.inner.load()
        if found is None:
            return False
        tensors, state = found
        check_reference(state["reference_role"], self.reference, where="rejection sampling checkpoint")
        self.winners = [TokenTree(tuple(ids), (count,)) for ids, count in state["winners"]]
        self.first = state["first"]
        update, score = state["best"]
        looks, alarms = map(Look.from_dict, state["looks"]), [Alarm(**row) for row in state["alarms"]]
        self.record = Record(list(looks), alarms, Best(update, score, select(tensors, BEST)))
        return True
