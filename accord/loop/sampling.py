"""The stage that samples what annotators will see: completions of the standing policy, some beside an earlier one's.

Implements who answers which prompt, and sampling in chunks that a killed run need not make again. Leaves out which
pairs are then asked about (`selecting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accord.feedback.splits import split_by_prompt
from accord.loop.context import RunContext
from accord.loop.preparing import load_prompts
from accord.types import Completion, Prompt, derive_seed
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

SAMPLE_CHUNK = 64
"""Prompts sampled between two chunk files: what a kill costs while sampling."""

Item = tuple[Prompt, int]
"""A prompt and the number of its completion."""


def sample_completions(context: RunContext, stage: Stage, draft: Draft) -> None:
    """K completions of each training prompt from the policy that the round starts from.

    From round 2 on, on a share `earlier_share` of the prompts every second completion is that of an earlier policy (the
    reference or any round's candidate, promoted or not, in turn), so that votes compare the two.
    """
    sample = context.config.sample
    prompts = load_prompts(context, stage, "train")
    context.progress.begin("sampling", len(prompts) * sample.completions * sample.max_new_tokens, "tokens")
    answers: dict[tuple[str, int], Any] = {}
    for author, items in assign_authors(context, stage, prompts).items():
        found = _sample(context, stage, author, items)
        answers |= {(prompt.id, k): answer for (prompt, k), answer in zip(items, found, strict=True)}
    rows = [
        {"prompt": p.to_dict(), "completions": [answers[p.id, k] for k in range(sample.completions)]} for p in prompts
    ]
    draft.write_jsonl("samples.jsonl", rows)
    finished = [c["finished"] for c in answers.values()]
    draft.summary["completions"] = len(finished)
    draft.summary["finished_share"] = sum(finished) / len(finished)


def assign_authors(context: RunContext, stage: Stage, prompts: Sequence[Prompt]) -> dict[str, list[Item]]:
    """Address of each author -> the completions that it writes, in the order of the prompts."""
    standing = stage.parents.get("policy", stage.parents["reference"])
    earlier = list_earlier(context, stage)
    share = stage.section.get("earlier_share", 0.0) if earlier else 0.0
    mixed = split_by_prompt([p.id for p in prompts], share, seed=stage.seed, label="earlier")
    found: dict[str, list[Item]] = {standing: []}
    for prompt in prompts:
        other = earlier[derive_seed(stage.seed, "earlier", prompt.id) % len(earlier)] if prompt.id in mixed else ""
        for k in range(context.config.sample.completions):
            found.setdefault(other if other and k % 2 else standing, []).append((prompt, k))
    return found


def list_earlier(context: RunContext, stage: Stage) -> list[str]:
    """Addresses of the reference and of every earlier round's policy, without the one that stands now."""
    if "policy" not in stage.parents:
        return []
    standing = context.find_policy(context.parent(stage, "policy"))
    now = f"{standing.kind}/{standing.key}" if standing else stage.parents["reference"]
    candidates = [address for name, address in stage.parents.items() if name.startswith("policy_")]
    return [address for address in (stage.parents["reference"], *candidates) if address != now]


def _sample(context: RunContext, stage: Stage, author: str, items: Sequence[Item]) -> list[Any]:
    """One completion for each item, as JSON, by the policy at the address `author`."""
    sample = context.config.sample
    name = next(n for n, address in stage.parents.items() if address == author)
    role = None if name == "reference" else context.load_standing("sampled", context.parent(stage, name))
    sampler = context.sampler(on_tokens=context.progress.advance)

    def sample_chunk(chunk: Sequence[Item]) -> list[Any]:
        rollout = sampler.generate(
            role,
            [prompt for prompt, _ in chunk],
            seeds=[derive_seed(stage.seed, prompt.id, k) for prompt, k in chunk],
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
        )
        return [replace(c, origin=author).to_dict() for c in rollout.completions]

    found = context.in_chunks(stage, items, SAMPLE_CHUNK * sample.completions, sample_chunk, label=name)
    context.forget("sampled")
    return found


def list_rivals(rows: Sequence[Mapping[str, Any]], standing: str) -> Iterator[tuple[Prompt, Completion, Completion]]:
    """(prompt, the standing policy's answer, an earlier policy's) of every row of samples that has both."""
    for row in rows:
        answers = [Completion.from_dict(c) for c in row["completions"]]
        own = [a for a in answers if a.origin == standing]
        for ours, theirs in zip(own, [a for a in answers if a.origin != standing], strict=False):
            yield Prompt.from_dict(row["prompt"]), ours, theirs
