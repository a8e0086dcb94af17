"""How far labelling is: what was asked for, what is in, what is still missing and whether anybody is left to give it.

Implements counts over the tables of the queue. Leaves out what the votes say (`worth`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, func, select

from accord.feedback.log import write_moment
from accord.feedback.queue_schema import annotators, items, leases


@dataclass(frozen=True)
class Progress:
    """Counts of a round, or of everything. Items with a known answer and repeats are counted apart: nothing waits.

    items: to be judged. wanted: their overlaps added up. cast: votes that stand and fill a place. missing: wanted -
    cast, of items that are not closed. leased: places given out now. skipped: skips that stand. unreachable: the
    missing places for which no active annotator is left, because all have answered or skipped the item; more people
    are needed, or the round is closed as it is. checks: votes on known answers and repeats. surplus: late answers that
    stand beyond their item's overlap, kept and not counted.
    """

    items: int
    wanted: int
    cast: int
    missing: int
    leased: int
    skipped: int
    unreachable: int
    checks: int
    surplus: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that somebody could still give."""
        return self.items > 0 and self.missing <= self.unreachable

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, keys as the fields, and `complete`."""
        return {**asdict(self), "complete": self.complete}


def read_progress(
    connection: Connection, round: int | None, now: datetime | None, source: str | None = None
) -> Progress:
    """The counts now. A lease whose time has run out does not count, whether or not it was taken back yet."""
    plain = items.c.gold.is_(None) & items.c.repeat_of.is_(None)
    scope = items.c.round == round if round is not None else items.c.id.is_not(None)
    if source is not None:
        scope &= items.c.source == source
    places = items.c.overlap - items.c.answered
    sums = connection.execute(
        select(
            func.count(),
            func.sum(items.c.overlap),
            func.sum(items.c.answered),
            func.sum(case((items.c.closed, 0), else_=places)),
        ).where(plain, scope)
    ).one()
    checks = connection.scalar(select(func.sum(items.c.answered)).where(~plain, scope))
    held = (
        select(leases.c.status, leases.c.surplus, func.count())
        .join(items, items.c.id == leases.c.item_id)
        .where(plain, scope)
        .group_by(leases.c.status, leases.c.surplus)
    )
    live = (leases.c.status == "live") & (leases.c.expires_at > write_moment(now))
    late = (leases.c.status == "answered") & leases.c.surplus
    statuses = connection.execute(held.where(live | late | (leases.c.status == "skipped")))
    by_status: dict[str, int] = {row[0]: row[2] for row in statuses}
    total, wanted, cast, missing = (int(value or 0) for value in sums)
    return Progress(
        items=total,
        wanted=wanted,
        cast=cast,
        missing=missing,
        leased=by_status.get("live", 0),
        skipped=by_status.get("skipped", 0),
        unreachable=_count_unreachable(connection, plain & scope),
        checks=int(checks or 0),
        surplus=by_status.get("answered", 0),
    )


def count_done(connection: Connection, annotator: str) -> int:
    """How many items the annotator has answered."""
    query = select(func.count()).where(leases.c.annotator == annotator, leases.c.status == "answered")
    return connection.scalar(query) or 0


def _count_unreachable(connection: Connection, scope: Any) -> int:
    """sum over unfinished items of max(0, places left - active annotators who have neither answered nor skipped)."""
    active = connection.scalar(select(func.count()).where(annotators.c.status == "active")) or 0
    unfinished = items.c.closed.is_(False) & (items.c.answered < items.c.overlap) & scope
    done = (
        select(leases.c.item_id)
        .join(items, items.c.id == leases.c.item_id)
        .join(annotators, annotators.c.name == leases.c.annotator)
        .where(unfinished, leases.c.status.in_(("answered", "skipped")), annotators.c.status == "active")
    )
    finished_with = Counter(connection.execute(done).scalars())
    left = connection.execute(select(items.c.id, items.c.overlap - items.c.answered).where(unfinished)).tuples()
    return sum(max(0, places - (active - finished_with[item_id])) for item_id, places in left)
