"""Who gets which item: leases that are given, held, renewed, given back and run out.

Implements one lease for each item and person, for good: a lease that ran out or was given back is taken up again with
the same order of completions, and who has answered or skipped an item does not get it again. A pair that is asked anew
in a later round goes first to those who have not judged it. At every moment answered + leased <= overlap for each item.
Leaves out what comes back (`answering`).
"""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, select

from accord.errors import ConflictError, NotFoundError, RefusedError
from accord.feedback.items import Item, LeasedItem, move_places, read_items
from accord.feedback.log import Transaction, write_moment
from accord.feedback.queue_schema import annotators, items, leases

MAX_LEASE = 100  # items in one request


def require_active(transaction: Transaction, name: str) -> None:
    """Raises NotFoundError for a stranger and RefusedError for who is paused or deleted."""
    status = transaction.execute(select(annotators.c.status).where(annotators.c.name == name)).scalar()
    if status is None:
        raise NotFoundError(f"there is no annotator {name!r}", mend="add or invite them first")
    if status != "active":
        raise RefusedError(f"the annotator {name!r} is {status}", mend="ask the owner of the project")


def lease_items(
    transaction: Transaction,
    annotator: str,
    count: int,
    *,
    round: int | None,
    lease_seconds: float,
    now: datetime | None,
    stream: random.Random,
    holder: str | None = None,
) -> list[LeasedItem]:
    """Gives the next `count` items that are open and that `annotator` has not had. See `queue.Queue.lease`."""
    require_active(transaction, annotator)
    expire_leases(transaction)
    if _has_left(transaction, annotator, holder):
        return []
    chosen = _choose_items(transaction, annotator, min(count, MAX_LEASE), round)
    if not chosen:
        return []
    query = select(leases).where(leases.c.annotator == annotator, leases.c.item_id.in_(chosen))
    lapsed = {row.item_id: row for row in transaction.execute(query).all()}
    found = read_items(transaction.connection, chosen)
    expires_at = write_moment(_add(now, lease_seconds))
    given, again = [], []
    for item_id in chosen:
        if item_id in lapsed:
            again.append({"id": lapsed[item_id].id, "status": "live", "expires_at": expires_at, "holder": holder})
        else:
            given.append(_build_lease(transaction, found[item_id], annotator, expires_at, stream, holder))
    transaction.insert(leases, given)
    transaction.update(leases, again)
    move_places(transaction, dict.fromkeys(chosen, (0, 1)))
    shown = {row["item_id"]: row for row in given}
    shown |= {key: {**row._mapping, "expires_at": expires_at} for key, row in lapsed.items()}
    return [found[item_id].show(shown[item_id]) for item_id in chosen]


def lease_one(
    transaction: Transaction,
    annotator: str,
    item_id: str,
    *,
    lease_seconds: float,
    now: datetime | None,
    stream: random.Random,
) -> LeasedItem:
    """Gives a certain item to `annotator`. Raises ConflictError where they have had it, or it has no room left."""
    item = read_items(transaction.connection, [item_id])[item_id]
    query = select(leases).where(leases.c.item_id == item_id, leases.c.annotator == annotator)
    before = transaction.execute(query).first()
    if before is not None and before.status == "live":
        return item.show(before._mapping)
    if not has_room(transaction, item_id) or (before is not None and before.status in ("answered", "skipped")):
        raise ConflictError("this prompt was judged already", mend="write another one")
    expires_at = write_moment(_add(now, lease_seconds))
    if before is None:
        row = _build_lease(transaction, item, annotator, expires_at, stream)
        transaction.insert(leases, [row])
    else:
        row = {**before._mapping, "status": "live", "expires_at": expires_at}
        transaction.update(leases, [{"id": before.id, "status": "live", "expires_at": expires_at}])
    move_places(transaction, {item_id: (0, 1)})
    return item.show(row)


def read_held(connection: Connection, annotator: str, now: datetime | None) -> list[LeasedItem]:
    """The items that are leased to `annotator` and not yet answered, oldest lease first."""
    query = select(leases).where(
        leases.c.annotator == annotator, leases.c.status == "live", leases.c.expires_at > write_moment(now)
    )
    rows = connection.execute(query.order_by(leases.c.created_at, leases.c.item_id)).all()
    found = read_items(connection, [row.item_id for row in rows])
    return [found[row.item_id].show(row._mapping) for row in rows]


def renew_leases(
    transaction: Transaction,
    annotator: str,
    lease_ids: Sequence[str],
    *,
    lease_seconds: float,
    now: datetime | None,
    holder: str | None = None,
) -> list[str]:
    """Moves the end of leases; takes lapsed ones up again where there is still a place. Returns those now live.

    A page that has said goodbye renews nothing: its last request may be handled after its release.
    """
    require_active(transaction, annotator)
    if _has_left(transaction, annotator, holder):
        return []
    rows = _own_leases(transaction, annotator, lease_ids)
    live = {row.id for row in rows if row.status == "live"}
    for row in rows:
        if row.status in ("expired", "released") and has_room(transaction, row.item_id):
            move_places(transaction, {row.item_id: (0, 1)})
            live.add(row.id)
    renewed = {"status": "live", "expires_at": write_moment(_add(now, lease_seconds)), "holder": holder}
    transaction.update(leases, [{"id": key, **renewed} for key in sorted(live)])
    return [key for key in lease_ids if key in live]


def release_leases(
    transaction: Transaction, annotator: str, lease_ids: Sequence[str] | None, holder: str | None = None
) -> int:
    """Gives live leases back (None: all of them), those of `holder` only where one is named. Returns how many were."""
    query = select(leases).where(leases.c.annotator == annotator, leases.c.status == "live")
    if lease_ids is not None:
        query = query.where(leases.c.id.in_(list(lease_ids)))
    if holder is not None:
        query = query.where(leases.c.holder == holder)
    rows = transaction.execute(query).all()
    _end(transaction, rows, "released")
    return len(rows)


def expire_leases(transaction: Transaction) -> int:
    """Takes back every lease whose time has run out. Returns how many. It is an event of its own."""
    query = select(leases).where(leases.c.status == "live", leases.c.expires_at <= transaction.at)
    rows = transaction.execute(query).all()
    if rows:
        _end(transaction, rows, "expired")
        transaction.record("leases_expired", "accord")
    return len(rows)


def has_room(transaction: Transaction, item_id: str) -> bool:
    """Whether the item still asks for a person."""
    return bool(transaction.execute(select(items.c.is_open).where(items.c.id == item_id)).scalar())


def require_lease(transaction: Transaction, lease_id: str, annotator: str) -> Any:
    """The row of a lease, for its annotator to answer it; they may be paused, for what they made is kept.

    Raises NotFoundError where there is none, RefusedError where it is somebody else's or the annotator is deleted.
    """
    row = transaction.execute(_LEASE, {"lease_id": lease_id}).first()
    if row is None:
        raise NotFoundError(f"there is no lease {lease_id!r}", mend="ask for the next item")
    if row.annotator != annotator:
        raise RefusedError(f"the lease {lease_id} belongs to somebody else", mend="answer your own items")
    if row.annotator_status == "deleted":
        raise RefusedError(f"the annotator {annotator!r} is deleted", mend="ask the owner of the project")
    return row


_LEASE = (
    select(leases, annotators.c.status.label("annotator_status"))
    .join(annotators, annotators.c.name == leases.c.annotator)
    .where(leases.c.id == bindparam("lease_id"))
)


def _choose_items(transaction: Transaction, annotator: str, count: int, round: int | None) -> list[str]:
    """Ids of the first open items that `annotator` has neither live, answered nor skipped.

    Those whose pair they have judged under another item come when nothing else is left for them, nor in their hands.
    """
    had = select(leases.c.id).where(
        leases.c.item_id == items.c.id,
        leases.c.annotator == annotator,
        leases.c.status.in_(("live", "answered", "skipped")),
    )
    before = leases.alias("before")
    answered = select(before.c.id).where(
        before.c.item_id == items.c.repeat_of, before.c.annotator == annotator, before.c.status == "answered"
    )
    query = (
        select(items.c.id, items.c.pair, items.c.gold, items.c.repeat_of)
        .where(items.c.is_open.is_(True), ~had.exists(), items.c.repeat_of.is_(None) | answered.exists())
        .order_by(items.c.position)
    )
    if round is not None:
        query = query.where(items.c.round == round)
    fresh: list[str] = []
    known: list[str] = []
    while len(fresh) < count:
        rows = transaction.execute(query.where(items.c.id.not_in(fresh + known)).limit(count)).all()
        if not rows:
            break
        judged = _find_judged_pairs(transaction, annotator, [row.pair for row in rows])
        for row in rows:
            again = row.pair in judged and row.gold is None and row.repeat_of is None  # checks are asked for that
            (known if again else fresh).append(row.id)
    held = select(leases.c.id).where(leases.c.annotator == annotator, leases.c.status == "live").limit(1)
    if fresh or transaction.execute(held).first() is not None:
        return fresh[:count]
    return known[:count]


def _find_judged_pairs(transaction: Transaction, annotator: str, pairs: Sequence[str | None]) -> set[str]:
    """Those of `pairs` that `annotator` has judged, under whichever item. Two look-ups by key: of one query with both
    tables a database without statistics may read the whole of either."""
    named = [pair for pair in pairs if pair is not None]
    twins = transaction.execute(select(items.c.id, items.c.pair).where(items.c.pair.in_(named)))
    pair_of: dict[str, str] = {row.id: row.pair for row in twins}
    judged = select(leases.c.item_id).where(
        leases.c.item_id.in_(list(pair_of)), leases.c.annotator == annotator, leases.c.status == "answered"
    )
    return {pair_of[item_id] for item_id in transaction.execute(judged).scalars()}


def _build_lease(
    transaction: Transaction,
    item: Item,
    annotator: str,
    expires_at: str,
    stream: random.Random,
    holder: str | None = None,
) -> dict[str, Any]:
    shown = list(range(len(item.completions)))
    stream.shuffle(shown)
    return {
        "id": uuid.uuid4().hex,
        "item_id": item.row.id,
        "annotator": annotator,
        "shown": json.dumps(shown),
        "status": "live",
        "surplus": False,
        "vote_id": None,
        "created_at": transaction.at,
        "expires_at": expires_at,
        "holder": holder,
    }


def _has_left(transaction: Transaction, annotator: str, holder: str | None) -> bool:
    """Whether the page `holder` has given leases back, which it does only when it closes."""
    left = select(leases.c.id).where(
        leases.c.annotator == annotator, leases.c.status == "released", leases.c.holder == holder
    )
    return holder is not None and transaction.execute(left.limit(1)).first() is not None


def _own_leases(transaction: Transaction, annotator: str, lease_ids: Sequence[str]) -> list[Any]:
    query = select(leases).where(leases.c.annotator == annotator, leases.c.id.in_(list(lease_ids)))
    return list(transaction.execute(query.order_by(leases.c.id)))


def _end(transaction: Transaction, rows: Sequence[Any], status: str) -> None:
    transaction.update(leases, [{"id": row.id, "status": status} for row in rows])
    held = Counter(row.item_id for row in rows)
    move_places(transaction, {item_id: (0, -number) for item_id, number in held.items()})


def _add(now: datetime | None, seconds: float) -> datetime:
    return (now or datetime.now(UTC)) + timedelta(seconds=seconds)
