"""Items and people for the tests of the queue."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from accord.feedback.answering import Answer, Receipt
from accord.feedback.database import Database
from accord.feedback.items import LeasedItem, NewItem, Overlap
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.types import Completion, Prompt

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ALONE = Overlap(0.0, 1, 1)


def later(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def new_id() -> str:
    return str(uuid.uuid4())


def pair(name: object = 0, **fields: Any) -> NewItem:
    """A comparison whose completions say who they are, but only in their origins and texts."""
    answers = tuple(Completion.from_text(f"{name} {side}", origin=f"model {side}") for side in ("good", "bad"))
    return NewItem("comparison", Prompt.from_user(f"question {name}"), answers, **fields)


def open_queue(database: Database, *names: str) -> Queue:
    """A queue with these annotators; the first is the owner."""
    people = People(database)
    for place, name in enumerate(names or ("ann", "bob")):
        people.add(name, "annotator" if place else "owner", actor="test", now=NOON)
    return Queue(database)


def vote(queue: Queue, annotator: str, item: LeasedItem, choice: Any = "a", **fields: Any) -> Receipt:
    now = fields.pop("now", NOON)
    answer = Answer(fields.pop("client_id", None) or new_id(), annotator, item.lease_id, choice=choice, **fields)
    return queue.submit(answer, now=now)


def side_of(item: LeasedItem, word: str) -> str:
    """The choice that means the completion in which `word` stands."""
    return "a" if word in item.completions[0].text else "b"
