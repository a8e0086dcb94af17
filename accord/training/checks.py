"""Run-time checks that stop a run which has gone wrong, saying what, why and the mend.

Implements the silent-correctness rules that can be seen while a run is under way: each has bitten a published library
without a crash. A check is a function that returns nothing or raises `TrainingError`. Leaves out the checks that need
to be made once for a model (`accord doctor`) and everything a setting's schema already refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.config.schema import PpoSection
from accord.errors import TrainingError
from accord.models import Base, ChatTokenizer
from accord.types import Rollout

SAMPLER_GAP_LIMIT = {torch.float32: 1.001, torch.bfloat16: 1.05, torch.float16: 1.05}
"""Largest mean exp|log pi_sampler - log pi_trainer|: float noise in float32, 1.05 in low precision."""

RATIO_NOISE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Largest mean |log ratio| of the first pass over a fresh rollout, before any step."""

KL_EXPLOSION = 10.0
"""A rollout whose KL is beyond so many budgets is wreckage, not learning."""

ENTROPY_COLLAPSE = 0.01
"""Share of the first rollout's entropy below which the policy no longer explores."""

DEAD_REWARD_UPDATES = 3
"""So many updates in a row with one and the same score for every completion: there is nothing to learn from."""


def check_critic(base: Base, critic: str, cfg: PpoSection) -> None:
    """A critic that is to learn whole needs an adapter of its own.

    Raises:
        TrainingError: it is a head on another role.
    """
    adapter = base.describe(critic).adapter
    if cfg.critic == "adapter" and adapter != critic:
        raise TrainingError(
            f"the critic {critic!r} is a head on {adapter!r}, and ppo.critic asks for one that learns whole",
            where="ppo",
            mend='add it with training.ppo.add_critic, or set ppo.critic = "head"',
        )


def check_tokens(tokens: ChatTokenizer) -> None:
    """PAD is not EOS: else the EOS is masked away and the reward model reads the token before it."""
    if tokens.pad_id == tokens.eos_id:
        raise TrainingError(
            f"the padding token is the end-of-sequence token (id {tokens.eos_id}), so every EOS would be masked",
            where="tokenizer",
            mend="give the tokenizer a padding token of its own",
        )


def check_rollout(rollout: Rollout, tokens: ChatTokenizer) -> None:
    """The masks mean what they say: the score lands on a sampled token, never on padding; truncated is not finished.

    Completion masks are prefixes with at least one token; EOS stands on the last token of the finished ones and nowhere
    else; prompt masks are suffixes. (A policy may well *sample* the PAD token: masks say what is padding, not ids.)
    """
    mask, ids = rollout.completion_mask, rollout.completion_ids
    lengths = mask.sum(1)
    problem = None
    if bool((lengths == 0).any()):
        problem = "a completion has no token, so its score would land on padding"
    elif bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        problem = "a completion's mask has a hole or starts late"
    elif bool((rollout.prompt_mask[:, :-1] & ~rollout.prompt_mask[:, 1:]).any()):
        problem = "a prompt is not padded on the left"
    else:
        eos = mask & (ids == tokens.eos_id)
        last = torch.zeros_like(mask).scatter_(1, (lengths - 1)[:, None], True)
        if bool((eos & ~last).any()):
            problem = "a completion goes on after its EOS"
        elif bool(((eos & last).any(1) != rollout.finished).any()):
            problem = "`finished` does not say where EOS was sampled"
    if problem:
        raise TrainingError(
            problem, where="rollout", mend="the generator must keep the layout of docs/design.md, 'Rollout layout'"
        )


def compute_sampler_gap(
    sampled: Float[Tensor, "B C"], logprobs: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> float:
    """mean over the mask of exp|log pi_sampler - log pi_trainer|; 1 where they agree, and where nothing is unmasked."""
    gaps = (sampled - logprobs).abs()[mask].exp()
    return float(gaps.mean()) if len(gaps) else 1.0


def check_sampler_gap(gap: float, dtype: torch.dtype, *, where: str) -> None:
    """The sampler and the trainer see the same policy (`compute_sampler_gap` within the limit of `dtype`)."""
    limit = SAMPLER_GAP_LIMIT[dtype]
    if not gap <= limit:
        raise TrainingError(
            f"the sampler's logprobs and the trainer's differ: mean exp|difference| is {gap:.4f}, limit {limit}",
            where=where,
            mend="one temperature everywhere, no top-p or top-k; `accord doctor --model` shows which part differs",
        )


def check_first_pass(
    log_ratio: Float[Tensor, "b c"], mask: Bool[Tensor, "b c"], dtype: torch.dtype, *, where: str
) -> None:
    """Before the first step on a fresh rollout the policy is still the one that sampled it: ratio 1, KL 0."""
    drift = float(log_ratio.detach()[mask].abs().sum()) / max(1, int(mask.sum()))
    if not drift <= RATIO_NOISE[dtype]:
        raise TrainingError(
            f"the ratio is not 1 before any update: mean |log ratio| is {drift:.4g} nats a token",
            where=where,
            mend="something but the update moves the policy: dropout, a stale rollout, or another temperature",
        )


def check_finite(values: Mapping[str, float | Tensor], *, where: str) -> None:
    """No loss, score, value or gradient norm is NaN or infinite."""
    for name, value in values.items():
        finite = math.isfinite(value) if isinstance(value, float) else bool(torch.isfinite(value).all())
        if not finite:
            raise TrainingError(
                f"{name} is not finite", where=where, mend="lower the learning rate, or look at the reward source"
            )


def check_kl(kl: Float[Tensor, " B"], *, budget_nats: float, where: str) -> None:
    """The mean of log pi - log pi_ref over sequences sampled from pi is a KL: not negative beyond noise, not exploding.

    `kl` holds one sum per sequence, in nats. Single sequences may be negative; their mean may be so only by chance.
    """
    mean = float(kl.mean())
    noise = 0.05 + 5.0 * float(kl.std(correction=0)) / math.sqrt(len(kl))
    if mean < -noise:
        raise TrainingError(
            f"KL(policy || reference) is {mean:.3f} nats a sequence, negative beyond noise ({noise:.3f})",
            where=where,
            mend="the completions do not come from this policy: the wrong adapter samples, or one of two temperatures",
        )
    if mean > KL_EXPLOSION * budget_nats:
        raise TrainingError(
            f"KL(policy || reference) is {mean:.1f} nats a sequence, over {KL_EXPLOSION:.0f} times the budget",
            where=where,
            mend="lower ppo.learning_rate or raise ppo.kl_coef",
        )


def check_history(history: Sequence[Mapping[str, float | int]], updates: int) -> None:
    """Over the updates so far: the scores tell completions apart, and the policy still explores.

    Raises TrainingError where every score of the first `DEAD_REWARD_UPDATES` updates (or of a shorter run) was the same
    within its rollout, or where entropy fell below `ENTROPY_COLLAPSE` of the first rollout's.
    """
    rows = [row for row in history if "score_std" in row]
    if not rows:
        return
    where = f"ppo, update {int(rows[-1]['update'])}"
    if len(rows) == min(DEAD_REWARD_UPDATES, updates) and all(row["score_std"] == 0.0 for row in rows):
        raise TrainingError(
            "the reward gives every completion the same score",
            where=where,
            mend="look at the reward model's report card; a constant reward teaches nothing",
        )
    if rows[-1]["entropy"] < ENTROPY_COLLAPSE * rows[0]["entropy"]:
        raise TrainingError(
            f"the policy's entropy collapsed from {rows[0]['entropy']:.3g} to {rows[-1]['entropy']:.3g} nats a token",
            where=where,
            mend="raise ppo.kl_coef or ppo.ent_coef, or lower ppo.learning_rate",
        )


def find_warnings(row: Mapping[str, float | int]) -> dict[str, str]:
    """What a person should look at but need not stop for, as `{"warning": ...}`; nothing where all is well.

    That no completion finishes is no error: a small model under a small `max_new_tokens` may learn all the same.
    """
    found = []
    if row["finished_share"] == 0.0:
        found.append("no completion finished: sample.max_new_tokens may be too small for this model")
    if row["clip_fraction"] > 0.5:
        found.append("more than half of the tokens were clipped: ppo.learning_rate may be too high")
    return {"warning": "; ".join(found)} if found else {}
