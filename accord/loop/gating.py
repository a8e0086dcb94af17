"""The stage that ends a round: the new policy takes the place of the one before, or is rolled back.

Implements measuring the policy before on the prompts and seeds of the evaluation, every guarded measure of both, and
the record of the decision: the artifact names the policy that the next round starts from. Leaves out the decision
itself (`evaluation.gate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accord.evaluation import decide
from accord.evaluation.gate import compare_rows
from accord.evaluation.policy import Scorers, score_completions
from accord.loop.context import RunContext
from accord.loop.serving import load_served
from accord.rewards import find_text_reward, measure_answers
from accord.types import Completion, Prompt, derive_seed
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

Row = dict[str, Any]


def pass_gate(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Promote the round's policy where it beats the one before by the held-out judge and no guard is broken."""
    rows = context.parent(stage, "evaluation").read_jsonl("completions.jsonl")
    prompts = [Prompt.from_dict(row["prompt"]) for row in rows]
    champion = context.parent(stage, "champion") if "champion" in stage.parents else None
    before_address = str(champion.summary["promoted_policy"]) if champion else ""
    if champion is None or not before_address:
        before = [dict(row["reference"]) for row in rows]
    else:
        before = measure_champion(context, stage, rows)
        draft.write_jsonl("champion.jsonl", before)
    after = [dict(row["policy"]) for row in rows]
    names = ("refusal", *(reward.name for reward in context.config.guard.rewards))
    for side in (before, after):
        add_measures(side, prompts, names)
    ids = [row["prompt_id"] for row in rows]
    decision = decide(after, before, ids, margins=list_margins(context, before), seed=stage.seed)
    gold = compare_rows(after, before, ids, "gold", derive_seed(stage.seed, "gold"))
    promoted = stage.parents["policy"] if decision.promoted else before_address
    told = {"against": before_address or "reference", "gold_gain": gold.to_dict() if gold else None}
    draft.write_json("gate.json", decision.to_dict() | told)
    gain = None if decision.gain is None else decision.gain.value
    draft.summary.update(promoted=decision.promoted, promoted_policy=promoted, result=decision.result, gain=gain)


def measure_champion(context: RunContext, stage: Stage, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Completions and scores of the policy before, one for each row of the evaluation, on its prompt and seed."""
    cfg = context.config
    role = context.load_standing("champion", context.parent(stage, "champion"))
    scorers = Scorers(
        load_served(context, stage, "proxy"),
        load_served(context, stage, "heldout"),
        find_text_reward(cfg.simulation.utility) if cfg.feedback.source == "simulated" else None,
        find_text_reward(cfg.evaluation.toxicity),
    )
    sampler, sample = context.sampler(), cfg.sample
    context.progress.begin("the policy before", len(rows), "prompts")

    def measure(chunk: Sequence[Mapping[str, Any]]) -> list[Row]:
        rollout = sampler.generate(
            role,
            [Prompt.from_dict(row["prompt"]) for row in chunk],
            seeds=[row["seed"] for row in chunk],
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
        )
        context.progress.advance(len(chunk))
        return score_completions(rollout, scorers)

    found = context.in_chunks(stage, rows, sample.batch_size, measure)
    for name in ("champion", "proxy", "heldout"):
        context.forget(name)
    return found


def add_measures(rows: Sequence[Row], prompts: Sequence[Prompt], names: Sequence[str]) -> None:
    """Add the rewards `names` to rows that hold a completion; None where a reward says nothing of the prompt."""
    completions = [Completion.from_dict(row["completion"]) for row in rows]
    for name in names:
        for row, value in zip(rows, measure_answers(name, prompts, completions), strict=True):
            row[name] = value


def list_margins(context: RunContext, before: Sequence[Row]) -> dict[str, float]:
    """Each guarded measure with the worsening that is borne, in its own unit; length as a share of what it was."""
    guard = context.config.guard
    mean_tokens = sum(row["length_tokens"] for row in before) / len(before)
    margins = {"toxicity": guard.toxicity, "refusal": guard.refusal, "length_tokens": guard.length * mean_tokens}
    return margins | {reward.name: reward.margin for reward in guard.rewards}
