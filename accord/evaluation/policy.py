"""Policy against reference on prompts nobody trained on: both sampled with the same seeds, every completion measured.

Implements sampling of policy, reference and best-of-n (n candidates of the reference, chosen by the proxy reward),
their scores, and KL and entropy with the trainer's logprobs. One row a prompt and sample comes out; `comparison`
turns rows into the numbers of report.json. Leaves out any judgement of whether the result is good enough.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accord.config.schema import EvaluationSection, SampleSection
from accord.errors import DataError
from accord.evaluation.comparison import SIDES, summarise_rows
from accord.functional import compute_sequence_kl
from accord.rewards import choose_best
from accord.types import Generator, Progress, Prompt, RewardSource, Rollout, TextReward, derive_seed

if TYPE_CHECKING:
    from accord.models.base import Base

MICRO_BATCH = 8  # sequences a forward pass; changes memory and speed only
WORST_EXAMPLES = 4

Row = dict[str, Any]
Item = tuple[Prompt, int]  # a prompt and the number of the sample


@dataclass(frozen=True)
class PolicyEvaluation:
    """What an evaluation found: `metrics` for report.json, `examples` side by side, and every row they rest on.

    A row: prompt, prompt_id, sample, seed, and for each of `reference`, `best_of_n` and `policy` a mapping with
    completion, proxy, heldout and gold (None where not measured), toxicity, length_tokens, finished, and for policy
    and reference entropy_nats (per token) and kl_nats (log pi(y) - log pi_ref(y) of the whole completion).
    """

    metrics: dict[str, Any]
    examples: list[Row]
    worst_examples: list[Row]
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """The `evaluation` part of report.json: the metrics and both lists of examples; the rows are kept apart."""
        return {**self.metrics, "examples": self.examples, "worst_examples": self.worst_examples}


@dataclass(frozen=True)
class Scorers:
    """What judges a completion; heldout is None without a second reward model, gold where nothing is simulated."""

    proxy: RewardSource
    heldout: RewardSource | None
    gold: TextReward | None
    toxicity: TextReward


def evaluate_policy(
    base: Base,
    generator: Generator,
    role: str,
    prompts: Sequence[Prompt],
    *,
    proxy: RewardSource,
    heldout: RewardSource | None,
    gold: TextReward | None,
    toxicity: TextReward,
    cfg: EvaluationSection,
    sample: SampleSection,
    seed: int,
    progress: Progress,
) -> PolicyEvaluation:
    """Sample `role` and the reference on `prompts` and compare them, and both with best-of-n.

    Sample s of a prompt has one seed, used by the policy and by the reference alike. Best-of-n sees n candidates of the
    reference, the reference's own sample first among them, and keeps the one with the highest *proxy* score.

    Raises: DataError where `prompts` is empty or a score is not finite.
    """
    if not prompts:
        raise DataError("no evaluation prompts", where="prompts.evaluation", mend="give at least one prompt")
    scorers = Scorers(proxy, heldout, gold, toxicity)
    items = [(prompt, s) for prompt in prompts for s in range(cfg.samples)]
    progress.begin("evaluate", len(items), "prompts")
    rows: list[Row] = []
    for start in range(0, len(items), sample.batch_size):
        batch = items[start : start + sample.batch_size]
        rows += _measure_batch(base, generator, role, batch, scorers, cfg.best_of, sample, seed)
        progress.advance(len(batch))
    metrics = summarise_rows(rows, best_of=cfg.best_of, seed=derive_seed(seed, "intervals"))
    metrics |= {"samples": cfg.samples, "temperature": sample.temperature, "max_new_tokens": sample.max_new_tokens}
    return PolicyEvaluation(metrics, choose_fair(rows, cfg.examples, seed), choose_worst(rows, WORST_EXAMPLES), rows)


def choose_fair(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows drawn at random by `seed`, one a prompt at most, in the order of the prompts."""
    first = list({row["prompt_id"]: row for row in reversed(rows)}.values())[::-1]
    rng = random.Random(derive_seed(seed, "examples"))
    return [first[i] for i in sorted(rng.sample(range(len(first)), min(count, len(first))))]


def choose_worst(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows where the policy lost most to the reference by held-out score (else gold, else proxy)."""
    judge = next((name for name in ("heldout", "gold") if rows and rows[0]["policy"][name] is not None), "proxy")
    losses = [(row["policy"][judge] - row["reference"][judge], i) for i, row in enumerate(rows)]
    return [rows[i] for loss, i in sorted(losses)[:count] if loss < 0]


@torch.no_grad()
def _measure_batch(
    base: Base,
    generator: Generator,
    role: str,
    items: Sequence[Item],
    scorers: Scorers,
    best_of: int,
    sample: SampleSection,
    seed: int,
) -> list[Row]:
    """Rows of one batch of prompts: sample, choose, score, and measure likelihoods."""
    prompts = [prompt for prompt, _ in items]
    seeds = [[derive_seed(seed, "evaluation", prompt.id, s, k) for prompt, s in items] for k in range(best_of)]

    def draw(author: str | None, own_seeds: Sequence[int]) -> Rollout:
        limit, temperature = sample.max_new_tokens, sample.temperature
        return generator.generate(author, prompts, seeds=own_seeds, max_new_tokens=limit, temperature=temperature)

    candidates = [draw(None, own_seeds) for own_seeds in seeds]
    rollouts = {
        "reference": candidates[0],
        "best_of_n": choose_best(candidates, torch.stack([scorers.proxy(rollout) for rollout in candidates])),
        "policy": draw(role, seeds[0]),
    }
    sides = {name: score_completions(rollout, scorers) for name, rollout in rollouts.items()}
    for name, author in (("policy", role), ("reference", None)):
        likelihoods = _measure_likelihood(base, author, rollouts[name], sample.temperature)
        for one, more in zip(sides[name], likelihoods, strict=True):
            one.update(more)
    return [
        {"prompt": prompt.to_dict(), "prompt_id": prompt.id, "sample": s, "seed": seeds[0][i]}
        | {name: sides[name][i] for name in SIDES}
        for i, (prompt, s) in enumerate(items)
    ]


def score_completions(rollout: Rollout, scorers: Scorers) -> list[Row]:
    """Every score of every completion, with its text and length."""
    pairs = list(zip(rollout.prompts, rollout.completions, strict=True))
    proxy = scorers.proxy(rollout).tolist()
    heldout = scorers.heldout(rollout).tolist() if scorers.heldout else [None] * len(pairs)
    lengths, finished = rollout.completion_mask.sum(dim=1).tolist(), rollout.finished.tolist()
    return [
        {
            "completion": completion.to_dict(),
            "proxy": proxy[i],
            "heldout": heldout[i],
            "gold": float(scorers.gold(prompt, completion)) if scorers.gold else None,
            "toxicity": float(scorers.toxicity(prompt, completion)),
            "length_tokens": lengths[i],
            "finished": finished[i],
        }
        for i, (prompt, completion) in enumerate(pairs)
    ]


def _measure_likelihood(base: Base, role: str | None, rollout: Rollout, temperature: float) -> list[Row]:
    """KL sample and entropy of each completion of `role`, computed as a trainer does: in one forward pass, no logits.

    kl_nats = sum over tokens of log pi(y_t) - log pi_ref(y_t), whose mean over samples of pi is KL(pi || pi_ref); it
    may be negative for one sample. entropy_nats: mean over tokens. sampler_gap: mean over tokens of exp |trainer -
    sampler|.
    """
    measured: list[Row] = []
    for start in range(0, len(rollout), MICRO_BATCH):
        part = select_rollout(rollout, range(start, min(start + MICRO_BATCH, len(rollout))))
        ids, attention, mask = part.input_ids, part.attention_mask, part.completion_mask
        width = part.completion_ids.shape[1]
        trunk = base.compute_trunk(ids, attention)
        own = base.compute_logprobs(role, ids, attention, width, temperature, trunk)
        kl = torch.zeros(len(part))
        if role is not None:
            reference = base.compute_logprobs(None, ids, attention, width, temperature, trunk, entropy="unread")
            kl = compute_sequence_kl(own.logprobs, reference.logprobs, mask)
        tokens = mask.sum(dim=1).clamp_min(1)
        entropy = (own.entropy * mask).sum(dim=1) / tokens
        gap = ((own.logprobs - part.logprobs).abs().exp() * mask).sum(dim=1) / tokens
        columns = (kl.tolist(), entropy.tolist(), gap.tolist())
        measured += [{"kl_nats": k, "entropy_nats": e, "sampler_gap": g} for k, e, g in zip(*columns, strict=True)]
    return measured


def select_rollout(rollout: Rollout, index: Sequence[int]) -> Rollout:
    """The rows of `rollout` named by `index`, in that order; every column stays where it is."""
    where = torch.as_tensor(list(index), device=rollout.completion_ids.device)
    tensors: dict[str, Tensor] = {
        field.name: getattr(rollout, field.name)[where]
        for field in fields(rollout)
        if torch.is_tensor(getattr(rollout, field.name))
    }
    prompts = tuple(rollout.prompts[i] for i in index)
    completions = tuple(rollout.completions[i] for i in index)
    return replace(rollout, prompts=prompts, completions=completions, **tensors)
