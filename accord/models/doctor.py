"""doctor: proof, on one very model, of what an optimiser relies on.

Implements eleven checks, each of which has once bitten a published library without an error (padding that shifts
positions, a cache that disagrees, dropout left on, PAD that is EOS, a template without EOS, an adapter that leaks into
the reference). Leaves out checks of a running optimisation (`training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from accord.errors import ModelError
from accord.models.adapters import LoraSettings
from accord.models.base import Base
from accord.models.probes import (
    Layout,
    Row,
    build_rows,
    compute_layout_logprobs,
    decode_cached,
    lay_out,
)
from accord.models.tokenizer import ChatTokenizer
from accord.types import Completion, Message, Prompt

POLICY, SCORER = "doctor-policy", "doctor-scorer"
"""Roles that the doctor adds and removes again."""

GAP_LIMITS = {torch.float32: 1.0001}
"""Largest mean of exp|difference of logprobs| by dtype; elsewhere `LOW_PRECISION_GAP`."""
LOW_PRECISION_GAP = 1.05

HEAD_LIMITS = {torch.float32: 1e-3}
"""Largest root mean square difference of values or scores, as a share of their own; elsewhere `LOW_PRECISION_HEAD`."""
LOW_PRECISION_HEAD = 0.1

SPARE = 5
"""Columns of padding beyond what the longest row needs."""


@dataclass(frozen=True)
class CheckResult:
    """One check: `passed` says whether `measured` is within `limit`; `explanation` says what it means."""

    name: str
    passed: bool
    measured: float
    limit: float
    explanation: str

    @property
    def detail(self) -> str:
        """Explanation and numbers in one line."""
        return f"{self.explanation} [{self.measured:.6g}, limit {self.limit:.6g}]"


class Outputs(NamedTuple):
    """What roles say of a layout: logprobs and values (B, C), scores (B,)."""

    logprobs: Float[Tensor, "B C"]
    values: Float[Tensor, "B C"]
    scores: Float[Tensor, " B"]


def run_doctor(base: Base) -> list[CheckResult]:
    """Every check on `base`, in a fixed order. Its roles and weights are as before afterwards.

    Takes a few short forward passes and one backward pass over the adapted layers.
    """
    results = [check_pad(base.tokens), check_template(base.tokens)]
    rows = build_rows(base.tokens)
    layout = lay_out(base, rows)
    with torch.no_grad():
        before = _compute_logits(base, None, layout)
    with _temporary_roles(base):
        with torch.no_grad():
            fresh = _compute_logits(base, POLICY, layout)
            results += [check_repeatable(fresh, _compute_logits(base, POLICY, layout)), check_ratio(fresh, before)]
        _take_step(base, layout)
        with torch.no_grad():
            alone = compute_alone(base, rows)
            results += [
                check_adapter_off(base, layout, before),
                check_split(base, layout),
                *check_padding(base, rows, alone),
                check_cache(base, rows, alone),
                check_sampler(base, rows),
            ]
    return results


def require_healthy(results: Sequence[CheckResult]) -> None:
    """Refuse a model that failed a check.

    Raises:
        ModelError: naming every failed check with its reason.
    """
    failed = [result for result in results if not result.passed]
    if failed:
        raise ModelError(
            "the model is not fit to be optimised: " + "; ".join(f"{r.name}: {r.detail}" for r in failed),
            mend="use another model, or mend its tokenizer, template or configuration (docs/models.md, 'Doctor')",
        )


def check_pad(tokens: ChatTokenizer) -> CheckResult:
    """PAD and EOS are different tokens of the model."""
    wrong = tokens.pad_id == tokens.eos_id or not 0 <= tokens.pad_id < tokens.vocabulary
    return CheckResult(
        "pad_is_not_eos",
        not wrong,
        float(wrong),
        0.0,
        f"PAD is {tokens.pad_id}, EOS is {tokens.eos_id}: were they one, an answer's end would be masked as padding",
    )


def check_template(tokens: ChatTokenizer) -> CheckResult:
    """The template ends an answer with EOS; prompt and completion ids are exactly the template's own, with one BOS."""
    name = "chat_template"
    if not tokens.has_template:
        return CheckResult(name, True, 0.0, 0.0, "the model has no chat template: text prompts only")
    question, answer = Message("user", "Name a colour."), Message("assistant", "Green, like moss.")
    try:
        text = tokens.render([question, answer], generation_prompt=False)
        prompt = tokens.encode_prompt(Prompt(messages=(question,)))
    except ModelError as error:
        return CheckResult(
            name, False, 1.0, 0.0, f"the template cannot render a question and its answer: {error.message}"
        )
    whole = list(tokens.inner(text, add_special_tokens=False)["input_ids"])
    completion = tokens.encode_completion(Completion((answer,)))
    eos = str(tokens.inner.convert_ids_to_tokens(tokens.eos_id))
    faults = []
    if not text.rpartition(answer.content)[2].lstrip().startswith(eos):
        faults.append(f"it does not close an answer with EOS ({eos!r}), so a model under it never learns to stop")
    elif whole[: len(prompt) + len(completion)] != prompt + completion:
        faults.append("prompt and completion encoded apart are not the ids of the whole chat")
    bos = tokens.bos_id
    if bos is not None and prompt[:2] == [bos, bos]:
        faults.append("a prompt starts with two BOS")
    if bos is not None and bos != tokens.eos_id and bos in completion:
        faults.append("a completion holds a BOS")
    good = "an answer ends with EOS; prompt and completion ids are the template's own, with one BOS"
    return CheckResult(name, not faults, float(len(faults)), 0.0, "; ".join(faults) or good)


def check_repeatable(first: Tensor, second: Tensor) -> CheckResult:
    """The same forward pass twice gives the same bits: dropout is off."""
    gap = _largest_gap(first, second)
    return CheckResult(
        "repeatable", gap == 0.0, gap, 0.0, "the same pass twice gives the same logits: no dropout, no other randomness"
    )


def check_ratio(fresh: Tensor, before: Tensor) -> CheckResult:
    """A fresh policy equals the reference bit for bit, so pi / pi_ref = 1 before the first update."""
    gap = _largest_gap(fresh, before)
    return CheckResult(
        "ratio_before_update",
        gap == 0.0,
        gap,
        0.0,
        "a fresh policy's logits are the reference's: the ratio starts at 1",
    )


def check_adapter_off(base: Base, layout: Layout, before: Tensor) -> CheckResult:
    """After a training step the policy has moved, and the base without its adapter is what it was, bit for bit."""
    name = "adapter_off_is_base"
    with base.activate(POLICY):  # so that an adapter that stays on is the trained one
        moved = _largest_gap(_compute_logits(base, POLICY, layout), before)
        gap = _largest_gap(_compute_logits(base, None, layout), before)
    if not moved > 0.0:
        return CheckResult(name, False, gap, 0.0, "a training step on the adapter changes nothing: it cannot learn")
    return CheckResult(
        name, gap == 0.0, gap, 0.0, "with a trained adapter switched off, the reference is bit for bit the base"
    )


def check_split(base: Base, layout: Layout) -> CheckResult:
    """Logprobs of a trained policy from the shared trunk equal those of the whole model."""
    limit = GAP_LIMITS.get(base.dtype, LOW_PRECISION_GAP)
    whole = compute_layout_logprobs(base, POLICY, layout)
    resumed = compute_layout_logprobs(base, POLICY, layout, trunk=True)
    measured = _mean_gap(whole, resumed, layout.completion_mask)
    return CheckResult("split_equals_unsplit", measured <= limit, measured, limit, base.split_reason)


def compute_alone(base: Base, rows: Sequence[Row]) -> Outputs:
    """Each row by itself, without any padding: what every other way of computing is held to."""
    columns = max(len(row.completion_ids) for row in rows)
    parts = [_compute_outputs(base, lay_out(base, [row])) for row in rows]
    logprobs, values = (
        torch.stack([pad(part[i][0], (0, columns - part[i].shape[1])) for part in parts]) for i in (0, 1)
    )
    return Outputs(logprobs, values, torch.cat([part.scores for part in parts]))


def check_padding(base: Base, rows: Sequence[Row], alone: Outputs) -> list[CheckResult]:
    """All rows together, padded on both sides, against each row alone: logprobs, values and scores."""
    layout = lay_out(base, rows, spare=SPARE)
    together = _compute_outputs(base, layout)
    columns = alone.logprobs.shape[1]
    mask = layout.completion_mask[:, :columns]
    gap = _mean_gap(together.logprobs[:, :columns], alone.logprobs, mask)
    value_gap = _relative_gap(together.values[:, :columns][mask], alone.values[mask])
    score_gap = _relative_gap(together.scores, alone.scores)
    gap_limit = GAP_LIMITS.get(base.dtype, LOW_PRECISION_GAP)
    head_limit = HEAD_LIMITS.get(base.dtype, LOW_PRECISION_HEAD)
    meaning = "padding and batch neighbours change nothing"
    return [
        CheckResult("padding_logprobs", gap <= gap_limit, gap, gap_limit, f"{meaning} in the logprobs"),
        CheckResult(
            "padding_values", value_gap <= head_limit, value_gap, head_limit, f"{meaning} in a critic's values"
        ),
        CheckResult(
            "padding_scores", score_gap <= head_limit, score_gap, head_limit, f"{meaning} in a reward's scores"
        ),
    ]


def check_cache(base: Base, rows: Sequence[Row], alone: Outputs) -> CheckResult:
    """Decoding given completions with a key-value cache against recomputing each row alone."""
    limit = GAP_LIMITS.get(base.dtype, LOW_PRECISION_GAP)
    _, cached = decode_cached(base, POLICY, rows, sample=False)
    measured = _mean_gap(cached, alone.logprobs, lay_out(base, rows).completion_mask)
    return CheckResult(
        "cached_decoding",
        measured <= limit,
        measured,
        limit,
        "decoding with a cache gives the logprobs of recomputation",
    )


def check_sampler(base: Base, rows: Sequence[Row]) -> CheckResult:
    """Logprobs taken while sampling with a cache against the trainer's full pass over those tokens from the trunk."""
    limit = GAP_LIMITS.get(base.dtype, LOW_PRECISION_GAP)
    sampled, logprobs = decode_cached(base, POLICY, rows, sample=True)
    layout = lay_out(base, sampled)
    trained = compute_layout_logprobs(base, POLICY, layout, trunk=True)
    measured = _mean_gap(logprobs, trained, layout.completion_mask)
    return CheckResult(
        "sampler_equals_trainer", measured <= limit, measured, limit, "the sampler's logprobs are the trainer's"
    )


@contextmanager
def _temporary_roles(base: Base) -> Iterator[None]:
    """A policy and a scorer with a random head, gone afterwards."""
    lora = LoraSettings(rank=4, alpha=8)
    base.add_policy(POLICY, lora=lora, seed=0)
    try:
        base.add_scorer(SCORER, lora=lora, seed=0)
        weight = base.parameters(SCORER)["head.weight"]
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        yield
    finally:
        for role in (SCORER, POLICY):
            if role in base.roles():
                base.remove(role)


def _take_step(base: Base, layout: Layout) -> None:
    """One step of Adam on the policy's adapter towards the layout's completions, large enough to show in bfloat16."""
    with torch.enable_grad():
        loss = -compute_layout_logprobs(base, POLICY, layout).sum() / layout.completion_mask.sum()
        loss.backward()
    optimizer = torch.optim.Adam(base.parameters(POLICY).values(), lr=1e-2)
    optimizer.step()
    optimizer.zero_grad()


def _compute_outputs(base: Base, layout: Layout) -> Outputs:
    ids, mask = layout.input_ids, layout.attention_mask
    return Outputs(
        compute_layout_logprobs(base, POLICY, layout),
        base.compute_values(SCORER, ids, mask, layout.columns),
        base.compute_scores(SCORER, ids, mask),
    )


def _compute_logits(base: Base, role: str | None, layout: Layout) -> Tensor:
    logits = base.compute_logits(role, layout.input_ids, layout.attention_mask, layout.columns)
    return logits[layout.completion_mask]


def _largest_gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _mean_gap(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean of exp|a - b| over the mask: 1 where two logprobs agree (the sampler gap of the literature)."""
    return float((a - b)[mask].abs().exp().mean())


def _relative_gap(a: Tensor, b: Tensor) -> float:
    """Root mean square of a - b as a share of that of b."""
    return float(((a - b).square().mean() / b.square().mean()).sqrt())
