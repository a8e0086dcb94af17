"""From the audit log alone to the whole state: the rows of every event, in order, into an empty database.

Implements replaying, and a digest of each table to compare with. The texts, which the log names by their hash, come
along as they are; password hashes do not (see `log`), so after a restore people are invited again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, insert, select

from accord.errors import WorkspaceError
from accord.feedback import schema
from accord.feedback.database import Database
from accord.feedback.log import UNLOGGED, Event, Transaction, read_events
from accord.feedback.queue_schema import events
from accord.feedback.texts import BATCH_TEXTS

NOT_COMPARED = ("credentials", "schema_version")


def replay(source: Database, target: Database) -> int:
    """Rebuilds `source` in the empty database `target`; returns how many events that took. One transaction.

    Raises WorkspaceError where `target` is not empty, or the log is damaged.
    """
    with source.read() as reading, target.write("replayed", "accord") as transaction:
        if transaction.execute(select(events.c.number).limit(1)).first() is not None:
            raise WorkspaceError("the database to replay into is not empty", mend="give a new one")
        for table in (schema.prompts, schema.completions):
            for rows in reading.execute(select(table)).mappings().partitions(BATCH_TEXTS):
                transaction.insert(table, [dict(row) for row in rows])
        count = 0
        for event in read_events(reading):
            _apply(transaction, event)
            count += 1
        for rows in reading.execute(select(events).order_by(events.c.number)).mappings().partitions(BATCH_TEXTS):
            transaction.execute(insert(events).values([dict(row) for row in rows]))
    return count


def compute_table_digests(connection: Connection) -> dict[str, str]:
    """SHA-256 of the rows of each table in the order of its key, by the table's name; password hashes are left out."""
    digests = {}
    for table in schema.metadata.sorted_tables:
        if table.name not in NOT_COMPARED:
            digest = hashlib.sha256()
            for row in connection.execute(select(table).order_by(*table.primary_key.columns)):
                digest.update(json.dumps(list(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            digests[table.name] = digest.hexdigest()
    return digests


def _apply(transaction: Transaction, event: Event) -> None:
    operations: dict[str, Any] = {"insert": transaction.insert, "update": transaction.update}
    for operation, name, rows in event.changes:
        if name in UNLOGGED:
            raise WorkspaceError(f"event {event.number} changes {name}, which is not logged", mend="restore a backup")
        operations[operation](schema.metadata.tables[name], rows)
    transaction.forget()
