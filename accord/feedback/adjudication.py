"""The owner's verdicts: what an item's answer is, where people disagree.

Implements verdicts as votes of their own with the source "adjudication", which the consensus takes as settled and
the agreement leaves out. People's votes stay as they are. Leaves out the list of what to decide (`disagreements`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from accord.errors import RefusedError
from accord.feedback.answering import Receipt, find_receipt, insert_receipt
from accord.feedback.database import Database
from accord.feedback.items import require_item
from accord.feedback.leasing import require_active
from accord.feedback.log import Transaction
from accord.feedback.queue_schema import adjudications, annotators
from accord.feedback.records import ADJUDICATION, require_text
from accord.feedback.schema import votes
from accord.feedback.store import VoteWriter
from accord.types import Choice, Vote, compute_content_id


@dataclass(frozen=True)
class Verdict:
    """What the owner says of an item, in the item's order: choice, ranks or rating, as its kind asks.

    client_id: a UUID that the client made, so that a verdict sent twice is one. note: why.
    """

    client_id: str
    owner: str
    item_id: str
    choice: Choice | None = None
    strength: int | None = None
    ranks: tuple[int, ...] | None = None
    rating: float | None = None
    note: str = ""


def adjudicate(database: Database, verdict: Verdict, *, now: datetime | None = None) -> Receipt:
    """Stores a verdict; the newest on an item counts. Sent again, it is acknowledged and stored once.

    Raises RefusedError for who is not an active owner, NotFoundError where there is no such item, DataError where the
    verdict is no answer to it, ConflictError where the client's id was used for something else.
    """
    digest = compute_content_id({"action": "adjudication", **asdict(verdict)})
    with database.write("adjudicated", verdict.owner, now) as transaction:
        _require_owner(transaction, verdict.owner)
        if before := find_receipt(transaction, verdict.client_id, verdict.owner, digest):
            return before
        item = require_item(transaction.connection, verdict.item_id)
        vote = Vote(
            id=verdict.client_id,
            kind=item.row.kind,
            prompt=item.prompt,
            completions=item.completions,
            annotator=verdict.owner,
            choice=verdict.choice,
            strength=verdict.strength,
            ranks=verdict.ranks,
            rating=verdict.rating,
            created_at=transaction.at,
            source=ADJUDICATION,
            supersedes=_find_own(transaction, verdict),
        )
        writer = VoteWriter(transaction, texts_stored=True)
        writer.add([vote])
        writer.check()
        row = {"vote_id": vote.id, "item_id": verdict.item_id, "note": require_text(verdict.note, "the note")}
        transaction.insert(adjudications, [row])
        receipt = Receipt(verdict.client_id, "adjudication", None, vote.id)
        insert_receipt(transaction, receipt, verdict.owner, digest)
        return receipt


def read_verdicts(connection: Connection) -> dict[str, Verdict]:
    """The newest verdict on each item that has one, by the item's id."""
    query = (
        select(adjudications, votes.c.annotator, votes.c.choice, votes.c.strength, votes.c.ranks, votes.c.rating)
        .join(votes, votes.c.id == adjudications.c.vote_id)
        .order_by(votes.c.created_at, votes.c.id)
    )
    return {
        row.item_id: Verdict(
            client_id=row.vote_id,
            owner=row.annotator,
            item_id=row.item_id,
            choice=row.choice,
            strength=row.strength,
            ranks=None if row.ranks is None else tuple(json.loads(row.ranks)),
            rating=row.rating,
            note=row.note,
        )
        for row in connection.execute(query)
    }


def _require_owner(transaction: Transaction, name: str) -> None:
    require_active(transaction, name)
    if transaction.execute(select(annotators.c.role).where(annotators.c.name == name)).scalar() != "owner":
        raise RefusedError(f"{name!r} is not an owner", mend="let an owner decide")


def _find_own(transaction: Transaction, verdict: Verdict) -> str | None:
    """The owner's last verdict on the item, which this one supersedes."""
    query = (
        select(adjudications.c.vote_id)
        .join(votes, votes.c.id == adjudications.c.vote_id)
        .where(adjudications.c.item_id == verdict.item_id, votes.c.annotator == verdict.owner)
        .order_by(votes.c.created_at.desc(), votes.c.id.desc())
        .limit(1)
    )
    return transaction.execute(query).scalar()
