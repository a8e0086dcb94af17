"""What people send back: votes, edits, skips, flags and their undoing, each stored once however often it is sent.

Implements idempotence by the client's UUID, the way from the order shown to a vote, late and surplus answers (kept, all
of them), and undoing by superseding. Leaves out who gets which item (`leasing`) and the owner's verdicts
(`adjudication`).
"""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, select

from accord.errors import ConflictError, DataError, NotFoundError, RefusedError
from accord.feedback.items import Item, LeasedItem, move_places, require_item
from accord.feedback.leasing import has_room, require_lease
from accord.feedback.log import Transaction, write_moment
from accord.feedback.queue_schema import answers, demonstrations, items, leases, receipts
from accord.feedback.records import require_text
from accord.feedback.store import VoteWriter, read_vote
from accord.feedback.texts import insert_texts
from accord.types import Choice, Completion, Vote, compute_content_id

MAX_REASON_CHARACTERS = 2_000
_RECEIPT = select(receipts).where(receipts.c.client_id == bindparam("client_id"))


@dataclass(frozen=True)
class Answer:
    """A judgement of a leased item, in the order shown: choice "a" is the completion at place 0, ranks go by place.

    client_id: a UUID that the client made; sending the same answer again stores nothing more. edit: what completion
    `edit_place` should have said; it becomes a demonstration. seconds: how long the annotator took.
    """

    client_id: str
    annotator: str
    lease_id: str
    choice: Choice | None = None
    strength: int | None = None
    ranks: tuple[int, ...] | None = None
    rating: float | None = None
    edit: str | None = None
    edit_place: int | None = None
    seconds: float | None = None
    guideline_version: str | None = None


@dataclass(frozen=True)
class Receipt:
    """That something is stored. repeated: it was before. late: its lease had run out or been given back.

    surplus: all places of the item were taken by then; the vote is kept beyond the overlap, and counts once a place
    becomes free.
    """

    client_id: str
    action: str
    lease_id: str | None
    vote_id: str | None
    repeated: bool = False
    late: bool = False
    surplus: bool = False


@dataclass(frozen=True)
class Undone:
    """What undoing gave: a receipt, and the item to judge again (None after a flag was taken back)."""

    receipt: Receipt
    item: LeasedItem | None


def find_receipt(transaction: Transaction, client_id: str, annotator: str, digest: str) -> Receipt | None:
    """What was stored under this id before, if anything.

    Raises DataError where the id is no UUID, ConflictError where it was used for something else.
    """
    require_client_id(client_id)
    row = transaction.execute(_RECEIPT, {"client_id": client_id}).first()
    if row is None:
        return None
    if row.annotator != annotator or row.digest != digest:
        raise ConflictError(f"the id {client_id} was used for something else", mend="make a new UUID for each action")
    return Receipt(client_id, row.action, row.lease_id, row.vote_id, True, row.late, row.surplus)


def require_client_id(client_id: str) -> str:
    """`client_id`, if it is a UUID in its usual form. Raises DataError otherwise."""
    try:
        usual = str(uuid.UUID(client_id)) if isinstance(client_id, str) else ""
    except ValueError:
        usual = ""
    if not usual or usual != client_id:
        raise DataError(f"{client_id!r} is not a UUID", mend="send a UUID with lower-case digits and hyphens")
    return usual


def store_answer(transaction: Transaction, answer: Answer) -> Receipt:
    """Stores a vote. See `queue.Queue.submit`."""
    digest = compute_content_id({"action": "vote", **asdict(answer)})
    if before := find_receipt(transaction, answer.client_id, answer.annotator, digest):
        return before
    lease = require_lease(transaction, answer.lease_id, answer.annotator)
    item = require_item(transaction.connection, lease.item_id)
    vote = _build_vote(answer, lease, item, transaction.at)
    late, surplus = _take_place(transaction, lease)
    _add_vote(transaction, vote)
    _insert_answer(transaction, vote.id, lease, item, answer.seconds)
    if answer.edit is not None:
        _insert_demonstration(transaction, answer, vote)
    transaction.update(leases, [{"id": lease.id, "status": "answered", "surplus": surplus, "vote_id": vote.id}])
    receipt = Receipt(answer.client_id, "vote", lease.id, vote.id, False, late, surplus)
    insert_receipt(transaction, receipt, answer.annotator, digest)
    return receipt


def store_skip(transaction: Transaction, annotator: str, lease_id: str, client_id: str, reason: str) -> Receipt:
    """Stores that `annotator` will not judge the item. See `queue.Queue.skip`."""
    require_reason(reason)
    digest = compute_content_id(["skip", lease_id, reason])
    if before := find_receipt(transaction, client_id, annotator, digest):
        return before
    lease = require_lease(transaction, lease_id, annotator)
    if lease.status == "answered":
        raise ConflictError("the item is answered already", mend="undo the answer, then skip")
    if lease.status == "live":
        move_places(transaction, {lease.item_id: (0, -1)})
    transaction.update(leases, [{"id": lease.id, "status": "skipped"}])
    receipt = Receipt(client_id, "skip", lease.id, None, late=_is_late(lease, transaction.at))
    insert_receipt(transaction, receipt, annotator, digest, reason=reason)
    return receipt


def store_flag(
    transaction: Transaction, annotator: str, lease_id: str, client_id: str, place: int, reason: str
) -> Receipt:
    """Stores a flag on the completion shown at `place`. See `queue.Queue.flag`."""
    require_reason(reason)
    digest = compute_content_id(["flag", lease_id, place, reason])
    if before := find_receipt(transaction, client_id, annotator, digest):
        return before
    lease = require_lease(transaction, lease_id, annotator)
    item = require_item(transaction.connection, lease.item_id)
    vote = Vote(
        id=client_id,
        kind="flag",
        prompt=item.prompt,
        completions=(_shown_completions(lease, item)[_require_place(place, item)],),
        annotator=annotator,
        flag=reason,
        created_at=transaction.at,
        source=item.row.source,
    )
    _add_vote(transaction, vote)
    _insert_answer(transaction, vote.id, lease, item, None)
    receipt = Receipt(client_id, "flag", lease.id, vote.id, late=_is_late(lease, transaction.at))
    insert_receipt(transaction, receipt, annotator, digest)
    return receipt


def undo_action(
    transaction: Transaction, annotator: str, action_id: str, client_id: str, *, lease_seconds: float, now: datetime
) -> Undone:
    """Takes back one vote, skip or flag. See `queue.Queue.undo`."""
    digest = compute_content_id(["undo", action_id])
    before = find_receipt(transaction, client_id, annotator, digest)
    if before:
        return Undone(before, _show_again(transaction, before.lease_id, action_id))
    row = transaction.execute(_RECEIPT, {"client_id": action_id}).first()
    if row is None:
        raise NotFoundError(f"there is no action {action_id}", mend="name the id of a vote, skip or flag")
    if row.annotator != annotator:
        raise RefusedError(f"the action {action_id} is somebody else's", mend="undo your own")
    lease = require_lease(transaction, row.lease_id, annotator) if row.lease_id else None
    if lease is None or row.action not in ("vote", "skip", "flag"):
        raise ConflictError(f"an {row.action} cannot be undone", mend="undo a vote, a skip or a flag")
    _require_standing(transaction, row, lease)
    withdrawal_id = None
    if row.vote_id is not None:
        withdrawal_id = _withdraw(transaction, row.vote_id, client_id)
    if row.action != "flag":
        _reopen(transaction, lease, withdrawal_id, write_moment(now + timedelta(seconds=lease_seconds)))
    receipt = Receipt(client_id, "undo", lease.id, withdrawal_id)
    insert_receipt(transaction, receipt, annotator, digest, undoes=action_id)
    return Undone(receipt, _show_again(transaction, lease.id, action_id))


def insert_receipt(
    transaction: Transaction,
    receipt: Receipt,
    annotator: str,
    digest: str,
    *,
    reason: str | None = None,
    undoes: str | None = None,
) -> None:
    """Remembers that the client's id is used up."""
    row = {
        "client_id": receipt.client_id,
        "annotator": annotator,
        "action": receipt.action,
        "digest": digest,
        "lease_id": receipt.lease_id,
        "vote_id": receipt.vote_id,
        "undoes": undoes,
        "reason": reason,
        "late": receipt.late,
        "surplus": receipt.surplus,
        "created_at": transaction.at,
    }
    transaction.insert(receipts, [row])


def require_reason(reason: str) -> str:
    """`reason`, if it says something and is not too long. Raises DataError otherwise."""
    text = require_text(reason, "the reason")
    if not text.strip() or len(text) > MAX_REASON_CHARACTERS or "\0" in text:
        raise DataError("the reason is empty or too long", mend=f"write up to {MAX_REASON_CHARACTERS} characters")
    return text


def _build_vote(answer: Answer, lease: Row[Any], item: Item, at: str) -> Vote:
    """The vote that an answer means. Raises DataError where it is no answer to this kind of item."""
    given = {"comparison": answer.choice, "ranking": answer.ranks, "rating": answer.rating}
    extra = [kind for kind, value in given.items() if value is not None and kind != item.row.kind]
    if given[item.row.kind] is None or extra or (answer.strength is not None and item.row.kind != "comparison"):
        raise DataError(f"this is no answer to a {item.row.kind}", mend="give choice, ranks or rating, as was asked")
    if answer.seconds is not None and not (math.isfinite(answer.seconds) and answer.seconds >= 0):
        raise DataError(f"seconds {answer.seconds} is not a duration", mend="give a number from 0 up")
    if (answer.edit is None) != (answer.edit_place is None):
        raise DataError("an edit needs its place, and a place its edit", mend="give both or neither")
    if answer.edit is not None and not require_text(answer.edit, "the edit").strip():
        raise DataError("the edit is empty", mend="leave it out")
    if answer.edit_place is not None:
        _require_place(answer.edit_place, item)
    if answer.guideline_version is not None:
        require_text(answer.guideline_version, "guideline_version")
    return Vote(
        id=answer.client_id,
        kind=item.row.kind,
        prompt=item.prompt,
        completions=_shown_completions(lease, item),
        annotator=answer.annotator,
        choice=answer.choice,
        strength=answer.strength,
        ranks=None if answer.ranks is None else tuple(answer.ranks),
        rating=answer.rating,
        created_at=at,
        guideline_version=answer.guideline_version,
        source=item.row.source,
        supersedes=lease.vote_id,
    )


def _take_place(transaction: Transaction, lease: Row[Any]) -> tuple[bool, bool]:
    """Has the answer fill a place of its item, if one is left. Returns whether it is late, and beyond the overlap."""
    if lease.status == "answered":  # a change of mind: the place is theirs already
        return False, lease.surplus
    if lease.status == "live":
        move_places(transaction, {lease.item_id: (1, -1)})
        return _is_late(lease, transaction.at), False
    if has_room(transaction, lease.item_id):
        move_places(transaction, {lease.item_id: (1, 0)})
        return True, False
    return True, True


def _is_late(lease: Row[Any], at: str) -> bool:
    return lease.status in ("expired", "released") or (lease.status == "live" and lease.expires_at <= at)


def _add_vote(transaction: Transaction, vote: Vote) -> None:
    writer = VoteWriter(transaction, texts_stored=True)
    if writer.add([vote]) != 1:
        raise ConflictError(f"the id {vote.id} is a vote's already", mend="make a new UUID for each action")
    writer.check()


def _insert_answer(transaction: Transaction, vote_id: str, lease: Row[Any], item: Item, seconds: float | None) -> None:
    row = {
        "vote_id": vote_id,
        "item_id": item.row.id,
        "lease_id": lease.id,
        "annotator": lease.annotator,
        "shown": lease.shown,
        "arm": item.row.arm,
        "propensity": item.row.propensity,
        "seconds": seconds,
    }
    transaction.insert(answers, [row])


def _insert_demonstration(transaction: Transaction, answer: Answer, vote: Vote) -> None:
    before = vote.completions[answer.edit_place or 0]
    *head, last = before.messages
    better = Completion((*head, replace(last, content=answer.edit or "")))
    insert_texts(transaction, (), (better,))
    row = {
        "vote_id": vote.id,
        "prompt_id": vote.prompt.id,
        "completion_id": better.id,
        "edited_from": before.id,
        "annotator": vote.annotator,
        "created_at": transaction.at,
    }
    transaction.insert(demonstrations, [row])


def _require_standing(transaction: Transaction, action: Row[Any], lease: Row[Any]) -> None:
    """Raises ConflictError where the action was undone or overtaken already."""
    standing = {
        "vote": lease.status == "answered" and lease.vote_id == action.vote_id,
        "skip": lease.status == "skipped",
        "flag": True,
    }[action.action]
    undone = select(receipts.c.client_id).where(receipts.c.undoes == action.client_id)
    if not standing or transaction.execute(undone).first() is not None:
        raise ConflictError("this was undone or changed already", mend="undo the newest action on the item")


def _withdraw(transaction: Transaction, vote_id: str, client_id: str) -> str:
    vote = read_vote(transaction, vote_id)
    withdrawal = Vote(
        id=client_id,
        kind="withdrawal",
        prompt=vote.prompt,
        completions=vote.completions,
        annotator=vote.annotator,
        created_at=transaction.at,
        source=vote.source,
        supersedes=vote.id,
    )
    _add_vote(transaction, withdrawal)
    return withdrawal.id


def _reopen(transaction: Transaction, lease: Row[Any], withdrawal_id: str | None, expires_at: str) -> None:
    """Gives the item back to its annotator: live where a place is left, else released (their answer is still kept).

    Who held a place keeps it, unless the item is closed by now.
    """
    counted = lease.status == "answered" and not lease.surplus
    closed = transaction.execute(select(items.c.closed).where(items.c.id == lease.item_id)).scalar()
    room = not closed if counted else has_room(transaction, lease.item_id)
    move_places(transaction, {lease.item_id: (-counted, int(room))})
    row = {"id": lease.id, "status": "live" if room else "released", "surplus": False, "expires_at": expires_at}
    transaction.update(leases, [row | {"vote_id": withdrawal_id or lease.vote_id}])


def _show_again(transaction: Transaction, lease_id: str | None, action_id: str) -> LeasedItem | None:
    action = transaction.execute(select(receipts.c.action).where(receipts.c.client_id == action_id)).scalar()
    lease = transaction.execute(select(leases).where(leases.c.id == lease_id)).first()
    if action == "flag" or lease is None:
        return None
    return require_item(transaction.connection, lease.item_id).show(lease._mapping)


def _shown_completions(lease: Row[Any], item: Item) -> tuple[Completion, ...]:
    return tuple(item.completions[place] for place in json.loads(lease.shown))


def _require_place(place: int, item: Item) -> int:
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(item.completions):
        raise DataError(f"there is no completion at place {place!r}", mend="count from 0, in the order shown")
    return place
