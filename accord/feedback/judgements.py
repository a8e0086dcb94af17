"""Every standing answer of the queue, turned to its item's own order, with what is known of the item.

Implements the one query behind gold accuracy, self-consistency, speed and disagreements. Leaves out flags, skips, and
votes that came in another way than through the queue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, select

from accord.feedback.queue_schema import answers, items, leases
from accord.feedback.schema import votes

RATING_TOLERANCE = 0.1
OTHER_SIDE = {"a": "b", "b": "a"}


@dataclass(frozen=True)
class Judgement:
    """One person's standing answer to one item; choice and ranks in the item's order, not in the order shown.

    first: of a comparison that prefers one, whether it is the completion that was shown first. seconds: how long they
    took, None where unknown. gold: the known answer. repeat_of: the item that this one repeats.
    """

    vote_id: str
    item_id: str
    annotator: str
    kind: str
    choice: str | None
    ranks: tuple[int, ...] | None
    rating: float | None
    first: bool | None
    seconds: float | None
    gold: dict[str, Any] | None
    repeat_of: str | None

    @property
    def answer(self) -> dict[str, Any]:
        """The judgement as a known answer would be written."""
        if self.kind == "comparison":
            return {"choice": self.choice}
        return {"ranks": list(self.ranks or ())} if self.kind == "ranking" else {"rating": self.rating}


def read_judgements(connection: Connection, round: int | None = None) -> list[Judgement]:
    """The standing answers on a round's items (None: all), by item, then annotator."""
    query = (
        select(
            leases.c.vote_id,
            leases.c.item_id,
            leases.c.annotator,
            leases.c.shown,
            items.c.kind,
            items.c.gold,
            items.c.repeat_of,
            votes.c.choice,
            votes.c.ranks,
            votes.c.rating,
            answers.c.seconds,
        )
        .join(items, items.c.id == leases.c.item_id)
        .join(votes, votes.c.id == leases.c.vote_id)
        .join(answers, answers.c.vote_id == leases.c.vote_id)
        .where(leases.c.status == "answered")
        .order_by(leases.c.item_id, leases.c.annotator)
    )
    if round is not None:
        query = query.where(items.c.round == round)
    return [_build_judgement(row) for row in connection.execute(query)]


def measure_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far two answers to one item are apart, in [0, 1].

    choice: 0 where equal, else 1. ranks: share of the pairs of completions that they do not order alike. rating: the
    absolute difference.
    """
    if "choice" in one:
        return float(one["choice"] != other["choice"])
    if "rating" in one:
        return abs(float(one["rating"]) - float(other["rating"]))
    first, second = _order_pairs(one["ranks"]), _order_pairs(other["ranks"])
    return sum(a != b for a, b in zip(first, second, strict=True)) / len(first)


def says_the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers to one item are the same: equal choices or orders, ratings at most 0.1 apart."""
    return measure_difference(one, other) <= (RATING_TOLERANCE + 1e-9 if "rating" in one else 0.0)


def _order_pairs(ranks: Sequence[int]) -> list[int]:
    """For each pair of completions -1, 0 or 1: which one is better."""
    return [(a > b) - (a < b) for a, b in combinations(ranks, 2)]


def _build_judgement(row: Any) -> Judgement:
    shown: list[int] = json.loads(row.shown)
    choice, ranks = row.choice, None
    if shown[0] != 0:
        choice = OTHER_SIDE.get(choice, choice)
    if row.ranks is not None:
        given = json.loads(row.ranks)
        ranks = tuple(given[shown.index(place)] for place in range(len(shown)))
    return Judgement(
        vote_id=row.vote_id,
        item_id=row.item_id,
        annotator=row.annotator,
        kind=row.kind,
        choice=choice,
        ranks=ranks,
        rating=row.rating,
        first=row.choice == "a" if row.choice in OTHER_SIDE else None,
        seconds=row.seconds,
        gold=None if row.gold is None else json.loads(row.gold),
        repeat_of=row.repeat_of,
    )
