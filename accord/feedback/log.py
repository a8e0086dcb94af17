"""The audit log: each change to feedback.db is an event of the rows it wrote, in the same transaction, hash-chained.

Implements `Transaction`, the only way to change a logged table, reading of the log, and the check of its chain. An
event holds rows, not intentions, so that replaying it needs no knowledge of what an older Accord meant. Leaves out
texts (prompts and completions are named by their hash) and password hashes, which must be forgettable; `replay`
rebuilds a database from the log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, Table, Update, bindparam, insert, select, update

from accord.errors import WorkspaceError
from accord.feedback.queue_schema import credentials, events
from accord.feedback.schema import completions, metadata, prompts

UNLOGGED = (prompts.name, completions.name, credentials.name)
READ_EVENTS = 500


def write_moment(now: datetime | None = None) -> str:
    """`now` (by default the clock) as ISO 8601 in UTC, microseconds and a trailing Z: texts that sort as moments."""
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Event:
    """One entry of the log. changes: (operation "insert" or "update", table, rows); an update's rows name their key.

    details: what was done beside rows that the log keeps, such as whose password was set.
    """

    number: int
    at: str
    actor: str
    kind: str
    changes: tuple[tuple[str, str, list[dict[str, Any]]], ...]
    details: Mapping[str, Any]
    digest: str


def compute_event_digest(before: str, number: int, at: str, actor: str, kind: str, body: str) -> str:
    """SHA-256 of the digest before and of every field, as JSON: whoever changes an entry must change all after it."""
    text = json.dumps([before, number, at, actor, kind, body], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Transaction:
    """A writing transaction. What `insert` and `update` change becomes one event at the next `record`."""

    def __init__(self, connection: Connection, now: datetime | None = None) -> None:
        self.connection = connection
        self.at = write_moment(now)
        self._changes: list[tuple[str, str, list[dict[str, Any]]]] = []

    def execute(self, query: Executable, values: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        """Runs a query. Changes go through `insert` and `update`."""
        return self.connection.execute(query, values)

    def insert(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts `rows`, all with the same columns."""
        if not rows:
            return
        self.connection.execute(insert(table), _one_or_many([dict(row) for row in rows]))
        self._note("insert", table, rows)

    def update(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sets the columns of each row that has the row's primary key (of one column)."""
        if not rows:
            return
        key, statement = _build_update(table.name)
        values = [{("key_" if name == key else name): value for name, value in row.items()} for row in rows]
        self.connection.execute(statement, _one_or_many(values))
        self._note("update", table, rows)

    def record(self, kind: str, actor: str, **details: Any) -> None:
        """Writes the event of all that changed since the last one. Writes nothing where nothing changed."""
        if not self._changes and not details:
            return
        last = self.connection.execute(_LAST_EVENT).first()
        number, before = (last.number + 1, last.digest) if last else (1, "")
        body = json.dumps({"changes": self._changes, **details}, ensure_ascii=False, separators=(",", ":"))
        digest = compute_event_digest(before, number, self.at, actor, kind, body)
        row = {"number": number, "at": self.at, "actor": actor, "kind": kind, "body": body, "digest": digest}
        self.connection.execute(insert(events), row)
        self._changes = []

    def forget(self) -> None:
        """Leaves what changed out of the log: `replay` copies the events that say it."""
        self._changes = []

    @property
    def unrecorded(self) -> bool:
        """Whether something changed since the last event."""
        return bool(self._changes)

    def _note(self, operation: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if table.name not in UNLOGGED:
            self._changes.append((operation, table.name, [dict(row) for row in rows]))


def _one_or_many(rows: list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    """A single row by itself: drivers take a longer way for lists."""
    return rows[0] if len(rows) == 1 else rows


_LAST_EVENT = select(events.c.number, events.c.digest).order_by(events.c.number.desc()).limit(1)


@lru_cache
def _build_update(name: str) -> tuple[str, Update]:
    """The name of a table's primary key, and the statement that changes the row with a given key."""
    table = metadata.tables[name]
    (key,) = table.primary_key.columns
    return key.name, update(table).where(key == bindparam("key_"))


def read_events(connection: Connection, *, after: int = 0, limit: int | None = None) -> Iterator[Event]:
    """The events with a number above `after`, oldest first, at most `limit`.

    Raises WorkspaceError where one is missing, or was changed after it was written.
    """
    before = ""
    if after:
        before = connection.scalar(select(events.c.digest).where(events.c.number == after)) or ""
    expected = after + 1
    query = select(events).where(events.c.number > after).order_by(events.c.number).limit(limit)
    for row in connection.execute(query.execution_options(yield_per=READ_EVENTS)):
        digest = compute_event_digest(before, row.number, row.at, row.actor, row.kind, row.body)
        if row.number != expected or row.digest != digest:
            raise WorkspaceError(
                f"event {expected} of the audit log is missing or was changed",
                where="table events",
                mend="restore the database from a backup; the log before this event is sound",
            )
        body = json.loads(row.body)
        changes = tuple((operation, table, rows) for operation, table, rows in body.pop("changes"))
        yield Event(row.number, row.at, row.actor, row.kind, changes, body, row.digest)
        before, expected = row.digest, expected + 1
