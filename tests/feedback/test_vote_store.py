"""The store on SQLite and on a real PostgreSQL: nothing is lost or changes, and the order of arrival is no matter."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from accord.errors import DataError, WorkspaceError
from accord.feedback import schema
from accord.feedback.database import Database
from accord.feedback.records import build_vote
from accord.feedback.store import VoteStore
from accord.types import Prompt, Vote
from tests.feedback.vote_strategies import compare, votes

DURABLE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(store: VoteStore, *, current: bool = False) -> list[tuple[Vote, list[str]]]:
    """Votes with the origins of their completions, which equality leaves out."""
    return [(vote, [c.origin for c in vote.completions]) for vote in store.votes(current=current)]


@DURABLE
@given(cast=st.lists(votes(), max_size=8), order=st.randoms())
def test_what_is_stored_comes_back_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, cast: list[Vote], order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    shuffled = list(cast)
    order.shuffle(shuffled)
    with VoteStore(folder / "one.db") as one, VoteStore(folder / "other.db") as other:
        assert one.add(cast) == len({vote.id for vote in cast})
        for vote in shuffled:
            other.add([vote])
        assert one.add(cast) == 0
        assert everything(one) == everything(other)
        expected = sorted({vote.id: vote for vote in cast}.values(), key=lambda vote: (vote.created_at, vote.id))
        assert list(one.votes(current=False)) == expected
        assert one.count() == len(expected)


def test_a_vote_cannot_be_changed_or_deleted(store: VoteStore, tmp_path: Path) -> None:
    with store.writer() as writer:
        writer.add([compare()])
        writer.record_import(file="f", sha256="0", format="hh", read=0, added=0, rejected=0)
    connection = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    for statement in (
        "UPDATE votes SET choice = 'b'",
        "DELETE FROM votes",
        "UPDATE prompts SET body = ''",
        "UPDATE completions SET body = ''",
        "DELETE FROM vote_completions",
        "DELETE FROM imports",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_the_database_is_durable_and_strict(store: VoteStore) -> None:
    with store.database.read() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert pragmas == ["wal", 2, 1]


def test_a_change_of_mind_is_a_chain(any_store: VoteStore) -> None:
    first = compare(choice="a")
    second = compare(choice="b", supersedes=first.id)
    third = compare(choice="tie", supersedes=second.id)
    # A file may hold the newest first: the check is of the whole transaction.
    assert any_store.add([third, second, first]) == 3
    assert list(any_store.votes()) == [third]
    assert any_store.count() == 3
    assert any_store.count(current=True) == 1
    assert set(any_store.votes(current=False)) == {first, second, third}


def test_superseding_needs_an_own_living_vote(any_store: VoteStore) -> None:
    first = compare(choice="a")
    any_store.add([first])
    with pytest.raises(DataError, match="does not exist"):
        any_store.add([compare(choice="b", supersedes="nothing")])
    with pytest.raises(DataError, match="a vote of ann"):
        any_store.add([compare(choice="b", supersedes=first.id, annotator="bob")])
    any_store.add([compare(choice="b", supersedes=first.id)])
    with pytest.raises(DataError, match="superseded already"):
        any_store.add([compare(choice="tie", supersedes=first.id)])
    one, other = replace(compare(), id="x", supersedes="y"), replace(compare(), id="y", supersedes="x")
    with pytest.raises(DataError, match="supersedes itself"):
        any_store.add([one, other])
    assert any_store.count() == 2


def test_one_id_is_one_vote(any_store: VoteStore) -> None:
    vote = compare()
    any_store.add([vote])
    assert any_store.add([replace(vote, source="a renamed file")]) == 0
    with pytest.raises(DataError, match="taken by another vote"):
        any_store.add([compare("other"), replace(vote, choice="b")])
    assert list(any_store.votes()) == [vote]


def test_half_a_surrogate_pair_is_refused(any_store: VoteStore) -> None:
    with pytest.raises(DataError, match="surrogate"):
        any_store.add([compare("\ud800")])
    assert any_store.count() == 0


def test_filters_and_counts(any_store: VoteStore) -> None:
    mine, theirs = compare(source="web"), compare(annotator="bob", simulated=True, source="s")
    any_store.add([mine, theirs])
    assert list(any_store.votes(source="web")) == [mine]
    assert list(any_store.votes(annotator="bob")) == [theirs]
    assert list(any_store.votes(simulated=False)) == [mine]
    assert list(any_store.votes("rating")) == []
    assert any_store.annotators() == {"ann": 1, "bob": 1}


def test_a_store_of_a_newer_accord_is_refused(tmp_path: Path) -> None:
    VoteStore(tmp_path / "f.db").close()
    with sqlite3.connect(tmp_path / "f.db") as connection:
        connection.execute("INSERT INTO schema_version VALUES (99)")
    with pytest.raises(WorkspaceError, match="schema version 99"):
        VoteStore(tmp_path / "f.db")


@pytest.mark.parametrize("url", ["/nowhere/at/all/f.db", "nonsense://x", "sqlite:////proc/f.db"])
def test_an_unusable_database_says_so(url: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        VoteStore(url)
    assert caught.value.mend


def test_the_password_is_not_shown() -> None:
    with pytest.raises(WorkspaceError) as caught:
        VoteStore("nonsense://me:secret@host/db")
    assert "secret" not in str(caught.value)


WRITER = """
import sys
from tests.feedback.vote_strategies import compare
from accord.feedback.store import VoteStore
with VoteStore(sys.argv[1]) as store:
    print("ready", flush=True)
    for i in range(40):
        store.add([compare(f"question {sys.argv[2]} {i}"), compare(f"shared {i}")])
"""

SLOW_WRITER = """
import sys, time
from tests.feedback.vote_strategies import compare
from accord.feedback.store import VoteStore
store = VoteStore(sys.argv[1])
with store.writer() as writer:
    for i in range(10**6):
        writer.add([compare(f"question {i}")])
        if i == 300:
            print("ready", flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    writers = [start(WRITER, path, name) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    with VoteStore(path) as store:
        assert store.count() == 2 * 40 + 40
        prompts = {vote.prompt.messages[0].content for vote in store.votes()}
    assert prompts == {f"question {n} {i}" for n in "ab" for i in range(40)} | {f"shared {i}" for i in range(40)}


def test_a_second_writer_waits_for_the_first(database_url: str) -> None:
    with ThreadPoolExecutor(1) as pool, VoteStore(database_url) as store, VoteStore(database_url) as other:
        with store.writer() as writer:
            writer.add([compare("first")])
            waiting = pool.submit(other.add, [compare("second")])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=30) == 1
        assert store.count() == 2


def test_a_withdrawal_takes_a_vote_back_and_comes_back_itself(any_store: VoteStore) -> None:
    vote = compare()
    fields = {"prompt": vote.prompt, "completions": vote.completions, "annotator": "ann"}
    gone = build_vote(kind="withdrawal", supersedes=vote.id, **fields)
    any_store.add([vote, gone])
    assert list(any_store.votes()) == []
    assert (any_store.count(), any_store.count(current=True)) == (2, 0)
    assert set(any_store.votes(current=False)) == {vote, gone}
    again = compare(choice="b", supersedes=gone.id)
    any_store.add([again])
    assert list(any_store.votes()) == [again]
    assert (any_store.count(), any_store.count(current=True)) == (3, 1)
    with pytest.raises(DataError, match="lacks its judgement"):
        build_vote(kind="withdrawal", **fields)


def test_every_kind_of_vote_comes_back(any_store: VoteStore) -> None:
    shown = compare("né?\r\n👩‍👩‍👧", a="\x00 yes", b="\u2028").completions
    fields = {"prompt": Prompt(text="a\x00b"), "annotator": "zoë", "source": "é", "guideline_version": "2"}
    votes = [
        build_vote(kind="comparison", completions=shown, choice="tie", strength=3, **fields),
        build_vote(kind="ranking", completions=shown, ranks=(2, 1), created_at="2026-01-31T12:00:00Z", **fields),
        build_vote(kind="rating", completions=shown[:1], rating=1 / 3, simulated=True, **fields),
        build_vote(kind="flag", completions=shown[1:], flag="'\"; --", **fields),
    ]
    any_store.add(votes)
    assert sorted(any_store.votes(), key=lambda vote: vote.id) == sorted(votes, key=lambda vote: vote.id)


def test_a_value_that_the_database_cannot_hold_is_named(database: Database) -> None:
    with pytest.raises(DataError, match="cannot hold"), database.write("x", "x") as transaction:
        transaction.insert(schema.schema_version, [{"version": 10**30}])
    with pytest.raises(DataError, match="cannot hold"), database.read() as connection:
        connection.execute(text("SELECT * FROM votes WHERE id = :id"), {"id": "\ud800"}).all()
    with pytest.raises(DataError, match="cannot hold"), database.write("x", "x") as transaction:
        transaction.insert(schema.prompts, [{"id": "x", "body": "\ud800"}])
    if database.engine.dialect.name == "postgresql":
        with pytest.raises(DataError, match="cannot hold"):
            VoteStore(database).add([compare(source="a\0b")])
    assert VoteStore(database).count() == 0


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with VoteStore(path) as store:
        store.add([compare("before")])
    writer = start(SLOW_WRITER, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with VoteStore(path) as store:
        assert [vote.prompt.messages[0].content for vote in store.votes()] == ["before"]
        began = time.monotonic()
        assert store.add([compare("after")]) == 1  # the dead one's lock is gone
        assert time.monotonic() - began < 5
