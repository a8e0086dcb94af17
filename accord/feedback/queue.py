"""The labelling queue: what is to be judged, who judges it, what came back, and how far a round is.

Implements `Queue`, the seam that the app and the loop hold; the work is in `items`, `leasing`, `answering` and
`progress`. Leaves out accounts (`people`), the worth of votes (`worth`) and choosing pairs (`selection`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import select

from accord.errors import DataError
from accord.feedback import answering, leasing
from accord.feedback.answering import Answer, Receipt, Undone
from accord.feedback.database import Database
from accord.feedback.items import LeasedItem, NewItem, Overlap, compute_item_id, insert_items, refresh_open
from accord.feedback.log import Transaction
from accord.feedback.progress import Progress, count_done, read_progress
from accord.feedback.queue_schema import items
from accord.feedback.store import read_round_votes
from accord.feedback.texts import BATCH_TEXTS
from accord.types import Vote

LEASE_SECONDS = 1800.0


class Queue:
    """The items of a project. Every method is one transaction; what returned is stored.

    stream: where the order of completions is drawn from; by default the operating system's randomness.
    """

    def __init__(self, database: Database, *, stream: random.Random | None = None) -> None:
        self.database = database
        self._stream = stream or random.SystemRandom()

    def add_items(
        self,
        new: Sequence[NewItem],
        *,
        round: int,
        seed: int,
        actor: str = "loop",
        overlap: Overlap | None = None,
        repeat_share: float = 0.0,
    ) -> int:
        """Stores those items that are not there yet; returns how many, their repeats left out.

        Order and overlap are drawn from `seed`. Of the new comparisons without a known answer, `repeat_share` get a
        repeat: the same pair, asked once more of one person who has answered it, half the items later. Raises DataError
        where an item is impossible, and NotFoundError where it repeats one that is not there.
        """
        if not 0.0 <= repeat_share <= 1.0:
            raise DataError(f"a repeat share of {repeat_share}", mend="give a share from 0 to 1")
        with self.database.write("items_added", actor) as transaction:
            drawn = overlap or Overlap()
            fresh = insert_items(transaction, new, round=round, seed=seed, overlap=drawn)
            plain = [
                key for key, item in fresh.items() if item.kind == "comparison" and not item.gold and not item.repeat_of
            ]
            chosen = plain[: int(repeat_share * len(plain) + 0.5)]  # the first, and so a draw: the order is one
            places = _place_repeats(transaction, list(fresh), chosen)
            again = [_repeat(fresh[key], key) for key in chosen]
            insert_items(transaction, again, round=round, seed=seed, overlap=drawn, places=places)
            return len(fresh)

    def lease(
        self,
        annotator: str,
        count: int,
        *,
        now: datetime | None = None,
        round: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
        holder: str | None = None,
    ) -> list[LeasedItem]:
        """Gives `annotator` the next items that are open, at most `count` (and 100), each in its own order of
        completions; fewer or none where there are no more for them. What they hold already is not among them (`held`).

        An item is given to no more people than its overlap asks for, and never twice to one person. `holder` names the
        open page that asks (see `release`); one that has said goodbye gets nothing more. Raises NotFoundError for a
        stranger, RefusedError for who is paused or deleted.
        """
        with self.database.write("leased", annotator, now) as transaction:
            return leasing.lease_items(
                transaction,
                annotator,
                count,
                round=round,
                lease_seconds=lease_seconds,
                now=now,
                stream=self._stream,
                holder=holder,
            )

    def held(self, annotator: str, *, now: datetime | None = None) -> list[LeasedItem]:
        """What `annotator` has been given and not answered, oldest first, the completions in the order of before."""
        with self.database.read() as connection:
            return leasing.read_held(connection, annotator, now)

    def renew(
        self,
        annotator: str,
        lease_ids: Sequence[str],
        *,
        now: datetime | None = None,
        lease_seconds: float = LEASE_SECONDS,
        holder: str | None = None,
    ) -> list[str]:
        """Moves the end of leases, also of lapsed ones whose item still has room, and gives them to the page `holder`;
        what that very page has released it does not get back. Returns the ids that are now live.
        """
        with self.database.write("leases_renewed", annotator, now) as transaction:
            return leasing.renew_leases(
                transaction, annotator, lease_ids, lease_seconds=lease_seconds, now=now, holder=holder
            )

    def release(
        self, annotator: str, lease_ids: Sequence[str], *, now: datetime | None = None, holder: str | None = None
    ) -> int:
        """Gives items back unanswered, so that others get them at once. Returns how many.

        With a `holder` only what that page still holds: the goodbye of a page can come after its reload has taken the
        items over.
        """
        with self.database.write("leases_released", annotator, now) as transaction:
            return leasing.release_leases(transaction, annotator, lease_ids, holder)

    def submit(self, answer: Answer, *, now: datetime | None = None) -> Receipt:
        """Stores a judgement; when this returns, it is on disk. Sent again, it is acknowledged and stored once.

        Another answer to the same lease supersedes the first. What comes after the lease ran out is kept all the same:
        it fills a place where one is left or becomes free, and is `surplus` until then. Raises DataError where it is no
        answer to this item, ConflictError where the client's id was used for something else, NotFoundError and
        RefusedError as to the lease.
        """
        with self.database.write("voted", answer.annotator, now) as transaction:
            return answering.store_answer(transaction, answer)

    def skip(
        self, annotator: str, lease_id: str, client_id: str, reason: str, *, now: datetime | None = None
    ) -> Receipt:
        """Stores that the annotator does not judge the item, and why. It goes to others. Raises as `submit`."""
        with self.database.write("skipped", annotator, now) as transaction:
            return answering.store_skip(transaction, annotator, lease_id, client_id, reason)

    def flag(
        self, annotator: str, lease_id: str, client_id: str, place: int, reason: str, *, now: datetime | None = None
    ) -> Receipt:
        """Stores that the completion shown at `place` (from 0) is harmful or broken, as a vote of its own. The item is
        still to be judged or skipped. Raises as `submit`.
        """
        with self.database.write("flagged", annotator, now) as transaction:
            return answering.store_flag(transaction, annotator, lease_id, client_id, place, reason)

    def undo(
        self,
        annotator: str,
        action_id: str,
        client_id: str,
        *,
        now: datetime | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Undone:
        """Takes back the vote, skip or flag whose client_id is `action_id`: a vote is superseded by a withdrawal, and
        the item is the annotator's to judge again. Nothing is deleted. Raises ConflictError where it was undone or
        changed already, else as `submit`.
        """
        moment = now or datetime.now(UTC)
        with self.database.write("undone", annotator, moment) as transaction:
            return answering.undo_action(
                transaction, annotator, action_id, client_id, lease_seconds=lease_seconds, now=moment
            )

    def open_chat(
        self,
        annotator: str,
        item: NewItem,
        *,
        round: int = 0,
        now: datetime | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> LeasedItem:
        """Stores an item that `annotator` has asked for, their own prompt, and leases it to them at once.

        Asked again with the same texts in the same round, it gives a new lease of the same item where they have not
        answered it. Raises ConflictError where they have.
        """
        with self.database.write("chat_opened", annotator, now) as transaction:
            leasing.require_active(transaction, annotator)
            insert_items(transaction, [item], round=round, seed=0, overlap=Overlap(0.0, 1, 1))
            return leasing.lease_one(
                transaction,
                annotator,
                compute_item_id(item, round),
                lease_seconds=lease_seconds,
                now=now,
                stream=self._stream,
            )

    def progress(self, *, round: int | None = None, source: str | None = None, now: datetime | None = None) -> Progress:
        """How far a round (None: everything) is, or the part of it whose items came from `source`. See `Progress`."""
        with self.database.read() as connection:
            return read_progress(connection, round, now, source)

    def done_by(self, annotator: str) -> int:
        """How many of the annotator's answers stand."""
        with self.database.read() as connection:
            return count_done(connection, annotator)

    def votes(self, round: int) -> Iterator[Vote]:
        """The standing votes on the round's items that count, flags too, by created_at, then id.

        Left out are checks (known answers, repeats), which say something of people and not of completions, and late
        answers beyond an item's overlap: an item never has more votes here than were asked for.
        """
        return read_round_votes(self.database, round)

    def close_round(self, round: int, actor: str) -> int:
        """No item of the round is given out any more; what is still out is kept when it comes. Returns how many."""
        with self.database.write("round_closed", actor) as transaction:
            return _set_closed(transaction, round, True)

    def reopen_round(self, round: int, actor: str) -> int:
        """Takes back `close_round`. Returns how many items are asked again."""
        with self.database.write("round_reopened", actor) as transaction:
            return _set_closed(transaction, round, False)


def _set_closed(transaction: Transaction, round: int, closed: bool) -> int:
    query = select(items.c.id).where(items.c.round == round, items.c.closed.is_(not closed))
    ids = list(transaction.execute(query).scalars())
    transaction.update(items, [{"id": key, "closed": closed} for key in ids])
    refresh_open(transaction, ids)
    return len(ids)


def _place_repeats(transaction: Transaction, order: Sequence[str], chosen: Sequence[str]) -> dict[str, int]:
    """The position of each chosen item's repeat: that of the item half of all behind it, where there is one."""
    half = (len(order) + 1) // 2
    behind = dict(zip(order, order[half:], strict=False))
    later = {key: behind[key] for key in chosen if key in behind}
    positions: dict[str, int] = {}
    for start in range(0, len(order), BATCH_TEXTS):
        query = select(items.c.id, items.c.position).where(items.c.id.in_(order[start : start + BATCH_TEXTS]))
        positions |= {row.id: row.position for row in transaction.execute(query)}
    return {key: positions[other] for key, other in later.items()}


def _repeat(item: NewItem, item_id: str) -> NewItem:
    return NewItem(
        item.kind,
        item.prompt,
        item.completions,
        repeat_of=item_id,
        arm=item.arm,
        propensity=item.propensity,
        source=item.source,
    )
