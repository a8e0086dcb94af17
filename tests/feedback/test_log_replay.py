"""The audit log holds the whole state: replayed into an empty database it gives equal tables; tampering is found."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from accord.errors import DataError, WorkspaceError
from accord.feedback import schema
from accord.feedback.adjudication import Verdict, adjudicate
from accord.feedback.database import Database, open_database
from accord.feedback.digests import compute_table_digests
from accord.feedback.guidelines import Guidelines
from accord.feedback.items import Overlap
from accord.feedback.log import read_events
from accord.feedback.people import People
from accord.feedback.replay import NOT_COMPARED, audit, replay
from accord.feedback.store import VoteStore
from tests.feedback.labelling import NOON, later, new_id, open_queue, pair, vote
from tests.feedback.vote_strategies import compare

APPEND_ONLY = (
    "prompts",
    "completions",
    "votes",
    "vote_completions",
    "imports",
    "guidelines",
    "item_completions",
    "receipts",
    "answers",
    "demonstrations",
    "adjudications",
    "events",
)


def live_a_little(database: Database) -> None:
    """A bit of everything that can happen, so that no table stays empty."""
    queue, people = open_queue(database, "ann", "bob", "cyd"), People(database)
    with VoteStore(database).writer() as writer:
        writer.add([compare(f"question {i}") for i in range(900)])
        writer.record_import(file="f.jsonl", sha256="0", format="votes", read=900, added=900, rejected=0)
    Guidelines(database).publish("be fair", author="ann", now=NOON)
    people.change_password("ann", "a hash", keep_session="")
    people.invite("one", role="annotator", expires_at=later(60), actor="ann", now=NOON)
    people.accept("one", "dee", password_hash="a hash", now=NOON)
    people.invite("two", role="annotator", expires_at=later(60), actor="ann", now=NOON)
    people.revoke_invitation("two", actor="ann", now=NOON)
    people.open_session("token", "dee", expires_at=later(60), now=NOON)
    people.close_session("token", now=later(1))
    queue.add_items([pair(i) for i in range(20)], round=1, seed=0, overlap=Overlap(0.3, 2, 1), repeat_share=0.2)
    items = queue.lease("ann", 9, now=NOON)
    first = vote(queue, "ann", items[0], edit="better", edit_place=0, seconds=2.5)
    vote(queue, "ann", items[1], "tie")
    vote(queue, "ann", items[1], "b", strength=2)
    skip = queue.skip("ann", items[2].lease_id, new_id(), "too hard", now=NOON)
    queue.flag("ann", items[3].lease_id, new_id(), 0, "rude", now=NOON)
    queue.undo("ann", first.client_id, new_id(), now=later(1))
    queue.undo("ann", skip.client_id, new_id(), now=later(1))
    queue.release("ann", [items[4].lease_id], now=later(1))
    queue.renew("ann", [items[5].lease_id], now=later(1))
    for item in queue.lease("bob", 9, now=later(45)):  # ann's time is up
        vote(queue, "bob", item, now=later(46))
    vote(queue, "ann", items[6], now=later(50))
    queue.open_chat("cyd", pair("own"), round=2, now=later(51))
    people.pause("cyd", actor="ann")
    people.resume("cyd", actor="ann")
    people.set_role("bob", "owner", actor="ann")
    with database.read() as connection:
        item_id = connection.scalar(text("SELECT item_id FROM answers ORDER BY vote_id LIMIT 1"))
    adjudicate(database, Verdict(new_id(), "ann", item_id, choice="a", note="clear"), now=later(60))
    queue.close_round(2, "ann")
    people.delete("cyd", actor="ann")


def test_the_log_alone_gives_equal_tables(database: Database, tmp_path: Path) -> None:
    live_a_little(database)
    assert audit(database) > 40
    with open_database(tmp_path / "replayed.db") as target:  # from PostgreSQL too: rows are rows
        count = replay(database, target)
        with database.read() as here, target.read() as there:
            tables = [table for table in schema.metadata.sorted_tables if table.name not in NOT_COMPARED]
            expected, found = compute_table_digests(here, tables), compute_table_digests(there, tables)
            empty = {
                table.name for table in schema.metadata.sorted_tables if here.execute(table.select()).first() is None
            }
            assert empty == set()
            assert found == expected
            assert len(list(read_events(there))) == count > 40
            assert there.execute(text("SELECT count(*) FROM credentials")).scalar() == 0
        with pytest.raises(WorkspaceError, match="not empty"):
            replay(database, target)


@pytest.mark.parametrize(
    "statement", ["UPDATE items SET answered = answered + 1", "UPDATE leases SET surplus = NOT surplus"]
)
def test_an_audit_finds_rows_that_the_log_does_not_give(database: Database, statement: str) -> None:
    live_a_little(database)
    with database.engine.begin() as connection:
        connection.execute(text(statement))
    with pytest.raises(WorkspaceError, match=f"rows of {'items' if 'items' in statement else 'leases'}"):
        audit(database)


def test_every_kind_of_change_is_an_event_with_its_actor(database: Database) -> None:
    live_a_little(database)
    with database.read() as connection:
        events = list(read_events(connection))
        assert list(read_events(connection, after=events[-3].number)) == events[-2:]
        assert list(read_events(connection, limit=2)) == events[:2]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert {event.kind for event in events} == {
        "adjudicated",
        "annotator_added",
        "annotator_deleted",
        "annotator_paused",
        "annotator_resumed",
        "chat_opened",
        "flagged",
        "guidelines_published",
        "invitation_accepted",
        "invitation_revoked",
        "invited",
        "items_added",
        "leased",
        "leases_expired",
        "leases_released",
        "leases_renewed",
        "password_set",
        "role_set",
        "round_closed",
        "session_closed",
        "session_opened",
        "skipped",
        "undone",
        "voted",
        "votes",
    }
    assert {event.actor for event in events if event.kind == "voted"} == {"ann", "bob"}
    assert {event.actor for event in events if event.kind == "session_closed"} == {"dee"}


def test_what_is_refused_leaves_no_event(database: Database) -> None:
    queue = open_queue(database)
    with database.read() as connection:
        before = len(list(read_events(connection)))
    with pytest.raises(DataError):
        queue.lease("stranger", 1)
    assert queue.lease("ann", 1) == []
    assert queue.release("ann", []) == 0
    with database.read() as connection:
        assert len(list(read_events(connection))) == before


def test_history_cannot_be_changed(database: Database) -> None:
    live_a_little(database)
    for table in APPEND_ONLY:
        column = next(iter(schema.metadata.tables[table].c)).name
        for action in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with (
                pytest.raises(DBAPIError, match=f"{table} is append-only"),
                database.write("tampered", "test") as transaction,
            ):
                transaction.connection.execute(text(action))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET actor = 'bob' WHERE number = 5",
        "UPDATE events SET body = replace(body, 'tie', 'both_bad')",
        "UPDATE events SET at = '2026' WHERE number = 1",
        "DELETE FROM events WHERE number = 7",
    ],
)
def test_a_changed_log_is_found(tmp_path: Path, change: str) -> None:
    with open_database(tmp_path / "f.db") as database, open_database(tmp_path / "g.db") as target:
        live_a_little(database)
        with database.write("tampered", "test") as transaction:
            for name in ("events_refuse_update", "events_refuse_delete"):
                transaction.connection.execute(text(f"DROP TRIGGER {name}"))
            transaction.connection.execute(text(change))
        with pytest.raises(WorkspaceError, match="missing or was changed"):
            replay(database, target)
        assert VoteStore(target).count() == 0
