"""From the audit log alone to the whole state: the rows of every event, in order, into an empty database.

Implements replaying, and the audit: the log is whole, and replayed it gives the tables that are there. The texts, which
the log names by their hash, come along as they are; password hashes do not (see `log`), so after a restore people are
invited again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from accord.errors import WorkspaceError
from accord.feedback import schema
from accord.feedback.database import Database, open_database
from accord.feedback.digests import compute_table_digests
from accord.feedback.log import UNLOGGED, Event, Transaction, read_events
from accord.feedback.queue_schema import events
from accord.feedback.texts import BATCH_TEXTS

NOT_COMPARED = ("credentials", "schema_version")


def replay(source: Database, target: Database) -> int:
    """Rebuilds `source` in the empty database `target`; returns how many events that took. One transaction.

    Raises WorkspaceError where `target` is not empty, or the log is damaged.
    """
    with source.read() as reading:
        return _replay(reading, target)


def _replay(reading: Connection, target: Database) -> int:
    with target.write("replayed", "accord") as transaction:
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


def audit(database: Database) -> int:
    """Replays the log into a temporary database and compares every table; returns how many events the log has.

    Raises WorkspaceError where the log is damaged, or a table has rows that the log does not give.
    """
    compared = [table for table in schema.metadata.sorted_tables if table.name not in NOT_COMPARED]
    with tempfile.TemporaryDirectory() as folder, open_database(Path(folder) / "replayed.db") as target:
        with database.read() as here:  # one moment, whatever others write meanwhile
            count = _replay(here, target)
            stored = compute_table_digests(here, compared)
        with target.read() as there:
            replayed = compute_table_digests(there, compared)
    if different := sorted(name for name in stored if stored[name] != replayed[name]):
        raise WorkspaceError(
            f"the log does not give the rows of {', '.join(different)}",
            where=database.url_shown,
            mend="somebody changed the database by other means than Accord; restore a backup",
        )
    return count


def _apply(transaction: Transaction, event: Event) -> None:
    operations: dict[str, Any] = {"insert": transaction.insert, "update": transaction.update}
    for operation, name, rows in event.changes:
        if name in UNLOGGED:
            raise WorkspaceError(f"event {event.number} changes {name}, which is not logged", mend="restore a backup")
        operations[operation](schema.metadata.tables[name], rows)
    transaction.forget()
