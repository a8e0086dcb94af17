"""The stage in which the pairs of a round are chosen: which of all that could be asked are put before annotators.

Implements the candidates, what is known of each (votes so far, scores of the last round's reward models) and the record
of the choice with its propensities. Leaves out the rules and the draw (`feedback.selection`) and asking (`asking`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from accord.config import Config
from accord.feedback.selection import Candidate, select_pairs
from accord.loop.context import RunContext
from accord.rewards import EnsembleReward
from accord.rewards.personal import People
from accord.training.personal import compute_answer_features, place_pairs
from accord.types import Completion, Prompt
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

MODELS = ("proxy", "heldout")
"""The reward models of a round, as stages call them: with each member of an ensemble they are the committee that the
rules `uncertain` and `conflict` read. They choose what is asked and nothing else; both are fitted anew on what is then
answered."""
NEEDS = {"uncertain": MODELS, "conflict": (*MODELS, "preferences"), "taste": ("proxy", "people")}
"""What a strategy reads of the round before; the others need nothing of it."""


def describe_choice(
    config: Config, voted: Mapping[str, str], judged: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a round's choice, and what it reads: artifacts of the round before (`judged`, by name) or the
    votes so far. Where the strategy needs a round before and there is none, it is "random"."""
    section = config.selection.model_dump(mode="json")
    strategy: str = section["strategy"]
    if strategy in NEEDS and not judged:
        section["strategy"] = "random"
        return section, {}
    if strategy in NEEDS and config.reward_model.members > 1:
        section["members"] = config.reward_model.members
    known = {name: judged[name] for name in NEEDS.get(strategy, ())}
    return section, dict(voted) if strategy == "coverage" else known


def explain_choice(stage: Stage, config: Config) -> str:
    """What the plan says of the stage: how many pairs by which strategy, and why it is not yet the one that is set."""
    strategy, wanted = stage.section["strategy"], config.selection.strategy
    if strategy != wanted:
        return f"{config.selection.pairs} pairs at random: {wanted} needs reward models, and round 1 has none yet"
    return f"{config.selection.pairs} pairs, strategy {strategy}"


def choose_pairs(context: RunContext, stage: Stage, draft: Draft) -> None:
    """`selection.pairs` of the round's pairs, with the arm that chose each and its propensity."""
    pairs, share, strategy = (stage.section[name] for name in ("pairs", "random_share", "strategy"))
    candidates = _describe(context, stage, list_candidates(context, stage))
    chosen = select_pairs(candidates, pairs, selector=strategy, seed=stage.seed, random_share=share)
    draft.write_jsonl(
        "pairs.jsonl",
        [
            {
                "prompt": (candidate := candidates[one.index]).prompt.to_dict(),
                "a": candidate.a.to_dict(),
                "b": candidate.b.to_dict(),
                "arm": one.arm,
                "propensity": one.propensity,
                "margins": list(candidate.margins),
                "human": candidate.human,
            }
            for one in chosen
        ],
    )
    draft.summary.update(
        strategy=strategy, candidates=len(candidates), pairs=len(chosen), random=sum(o.arm == "random" for o in chosen)
    )


def list_candidates(context: RunContext, stage: Stage) -> list[Candidate]:
    """Every pair of different answers of the round's samples; under `conflict` also each pair that people have judged,
    with what they say of it, since only there can a reward model contradict them."""
    fresh = [
        Candidate(Prompt.from_dict(row["prompt"]), a, b)
        for row in context.parent(stage, "samples").read_jsonl("samples.jsonl")
        for a, b in combinations(list_answers(row), 2)
    ]
    if "preferences" not in stage.parents:
        return fresh
    judged = context.parent(stage, "preferences").read_jsonl("preferences.jsonl")
    again = [
        Candidate(
            Prompt.from_dict(row["prompt"]), Completion.from_dict(row["a"]), Completion.from_dict(row["b"]),
            human=row["probability"],
        )
        for row in judged
        if row["weight"] > 0
    ]  # fmt: skip
    seen = {_name(candidate) for candidate in again}
    return [candidate for candidate in fresh if _name(candidate) not in seen] + again


def list_answers(row: Mapping[str, Any]) -> tuple[Completion, ...]:
    """The different answers of a row of samples that say anything."""
    different = {answer.id: answer for answer in (Completion.from_dict(c) for c in row["completions"])}
    return tuple(answer for answer in different.values() if answer.text.strip())


def read_pairs(context: RunContext, stage: Stage) -> list[dict[str, Any]]:
    """The rows of the pairs that the stage's `selection` chose."""
    return context.parent(stage, "selection").read_jsonl("pairs.jsonl")


def trace_votes(rows: Iterable[Mapping[str, Any]], pairs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Why each comparison among the votes `rows` was asked: {"vote", "arm", "propensity"}."""
    chosen = {
        (Prompt.from_dict(p["prompt"]).id, frozenset(Completion.from_dict(p[side]).id for side in "ab")): p
        for p in pairs
    }
    for row in rows:
        sides = frozenset(Completion.from_dict(c).id for c in row["completions"])
        pair = chosen.get((Prompt.from_dict(row["prompt"]).id, sides))
        if pair is not None:
            yield {"vote": row["id"], "arm": pair["arm"], "propensity": pair["propensity"]}


def _describe(context: RunContext, stage: Stage, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with what the stage's strategy reads: votes of their prompts, margins under each reward model."""
    voted: Counter[str] = Counter(
        Prompt.from_dict(row["prompt"]).id
        for name in stage.parents
        if name.startswith("votes")
        for row in context.parent(stage, name).read_jsonl("votes.jsonl")
    )
    candidates = [replace(candidate, prompt_votes=voted[candidate.prompt.id]) for candidate in candidates]
    margins: list[list[float]] = [[] for _ in candidates]
    for name in MODELS:
        if name in stage.parents:
            for own, added in zip(margins, _compute_margins(context, stage, name, candidates), strict=True):
                own.extend(added)
    candidates = [replace(candidate, margins=tuple(own)) for candidate, own in zip(candidates, margins, strict=True)]
    return _place_on_tastes(context, stage, candidates) if "people" in stage.parents else candidates


def _place_on_tastes(context: RunContext, stage: Stage, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with where their answers differ in taste, and margins in logits, by the last round's people."""
    people = People.load(context.parent(stage, "people").folder)
    a, b = (compute_answer_features(context.base, [(c.prompt, getattr(c, side)) for c in candidates]) for side in "ab")
    places = place_pairs(people, a - b)
    return [
        replace(candidate, margins=tuple(people.slope * m for m in candidate.margins), places=tuple(row))
        for candidate, row in zip(candidates, places.tolist(), strict=True)
    ]


def _compute_margins(context: RunContext, stage: Stage, name: str, candidates: list[Candidate]) -> list[list[float]]:
    """score(a) - score(b) of each candidate under each member of one reward model of the round before.

    Each text is scored once.
    """
    texts = dict.fromkeys((c.prompt, answer) for c in candidates for answer in (c.a, c.b))
    context.progress.begin(f"scoring with the last {name} reward model", len(texts), "answers")
    reward = context.load_reward(name, context.parent(stage, name))
    answers = [prompt for prompt, _ in texts], [answer for _, answer in texts]
    if isinstance(reward, EnsembleReward):
        members = reward.score_texts_by_member(*answers)
    else:
        members = reward.score_texts(*answers)[None]
    context.forget(name)
    context.progress.advance(len(texts))
    found = dict(zip(texts, members.T.double().tolist(), strict=True))
    return [[a - b for a, b in zip(found[c.prompt, c.a], found[c.prompt, c.b], strict=True)] for c in candidates]


def _name(candidate: Candidate) -> tuple[str, frozenset[str]]:
    return candidate.prompt.id, frozenset((candidate.a.id, candidate.b.id))
