"""What is asked beside a round's own pairs: answers disputed in the round before, and anchor pairs, always the same.

Implements reading and choosing both. Leaves out casting the votes (`preparing`, `asking`), and what anchor votes say
(`evaluation.voting`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from accord.loop.context import RunContext
from accord.types import Completion, Prompt

if TYPE_CHECKING:
    from accord.loop.graph import Stage

Pair = tuple[Prompt, Completion, Completion]


def read_disputed(context: RunContext, stage: Stage) -> list[Pair]:
    """After an alarm in the round before: answers on which proxy and judge part, beside the start's, worst first."""
    if "disputed" not in stage.parents:
        return []
    rows = context.parent(stage, "disputed").read_jsonl("disputed.jsonl")
    pairs = [tuple(Completion.from_dict(row[side]) for side in ("completion", "before")) for row in rows]
    return [
        (Prompt.from_dict(row["prompt"]), a, b)
        for row, (a, b) in zip(rows, pairs, strict=True)
        if a.text.strip() and b.text.strip() and a.id != b.id
    ]


def choose_anchors(context: RunContext, stage: Stage) -> list[Pair]:
    """`rounds.anchor_pairs` of the pairs compared in round 1, drawn by a hash: the same pairs in every later round."""
    if "first_votes" not in stage.parents:
        return []
    seed, count = context.config.project.seed, context.config.rounds.anchor_pairs
    pairs = {
        name_pair(pair): pair for pair in _read_pairs(context.parent(stage, "first_votes").read_jsonl("votes.jsonl"))
    }

    def draw(name: tuple[str, frozenset[str]]) -> str:
        return hashlib.sha256(f"{seed}:anchor:{name[0]}:{sorted(name[1])}".encode()).hexdigest()

    return [pairs[name] for name in sorted(pairs, key=draw)[:count]]


def put_first(first: Sequence[Pair], rest: Sequence[Pair]) -> list[Pair]:
    """`first`, then those of `rest` that are not among them."""
    seen = {name_pair(pair) for pair in first}
    return [*first, *(pair for pair in rest if name_pair(pair) not in seen)]


def part_votes(
    rows: Iterable[dict[str, Any]], anchors: Sequence[Pair], asked: Sequence[Pair]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(votes to fit on, votes on anchor pairs); a pair that was asked for its own sake as well is fitted on."""
    apart = {name_pair(pair) for pair in anchors} - {name_pair(pair) for pair in asked}
    fitted: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for row in rows:
        names = {name_pair(pair) for pair in _read_pairs([row])}
        (held if names & apart else fitted).append(row)
    return fitted, held


def name_pair(pair: Pair) -> tuple[str, frozenset[str]]:
    """What tells a pair from another, whichever side comes first."""
    prompt, a, b = pair
    return prompt.id, frozenset((a.id, b.id))


def _read_pairs(rows: Iterable[dict[str, Any]]) -> Iterable[Pair]:
    """The pairs of those rows that are comparisons."""
    for row in rows:
        if row["kind"] == "comparison":
            a, b = (Completion.from_dict(c) for c in row["completions"])
            yield Prompt.from_dict(row["prompt"]), a, b
