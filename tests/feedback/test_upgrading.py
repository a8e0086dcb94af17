"""Schemas of older releases, on both databases: a backup first, the same votes after, the tables of a new database."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, inspect, text

from accord.errors import WorkspaceError
from accord.feedback import schema, upgrading
from accord.feedback.database import open_database
from accord.feedback.log import read_events
from accord.feedback.queue import Queue
from accord.feedback.records import compute_vote_hash
from accord.feedback.replay import audit, replay
from accord.feedback.store import VoteStore, _build_showing_rows, _build_vote_row
from accord.types import Vote
from tests.feedback.labelling import pair
from tests.feedback.vote_strategies import compare

VOTES = [compare(f"question {i}", choice=c) for i in range(250) for c in ("a", "tie", "both_bad")]


@pytest.fixture(params=["0001", "0002", "0003"])
def old_url(database_url: str, request: pytest.FixtureRequest) -> str:
    """A database as an older version left it: version 1 had no table of Alembic's; version 2 has upgraded from it."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        command.upgrade(upgrading.build_alembic_config(connection), "0001")
        fill(connection, VOTES)
        if request.param == "0001":
            connection.execute(text("DROP TABLE alembic_version"))
        else:
            command.upgrade(upgrading.build_alembic_config(connection), request.param)
    engine.dispose()
    return database_url


def fill(connection: Connection, votes: list[Vote]) -> None:
    """Rows as version 1 wrote them."""
    for vote in votes:
        body = json.dumps(vote.prompt.to_dict(), ensure_ascii=False, separators=(",", ":"))
        values = {"id": vote.prompt.id, "body": body}
        connection.execute(text("INSERT INTO prompts VALUES (:id, :body) ON CONFLICT DO NOTHING"), values)
        for answer in vote.completions:
            messages = json.dumps([m.to_dict() for m in answer.messages], separators=(",", ":"))
            values = {"id": answer.id, "body": messages, "finished": answer.finished}
            statement = "INSERT INTO completions VALUES (:id, :body, :finished) ON CONFLICT DO NOTHING"
            connection.execute(text(statement), values)
        connection.execute(schema.votes.insert(), [_build_vote_row(vote, compute_vote_hash(vote))])
        connection.execute(schema.vote_completions.insert(), list(_build_showing_rows(vote)))
    connection.execute(text("INSERT INTO imports VALUES (1, 'f', '0', 'votes', 750, 750, 0, '2026-01-31T12:00:00Z')"))


@pytest.fixture
def engine(old_url: str) -> Iterator[Engine]:
    engine = create_engine(old_url)
    yield engine
    engine.dispose()


@pytest.fixture
def version(engine: Engine) -> int:
    return read_version(engine)


def read_rows(connection: Connection) -> list[object]:
    """Everything that version 1 held."""
    tables = {
        "votes": "id",
        "vote_completions": "vote_id, position",
        "prompts": "id",
        "completions": "id",
        "imports": "id",
    }
    found: list[object] = []
    for table, order in tables.items():
        found += connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}")).tuples().all()
    return found


def read_version(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT max(version) FROM schema_version")).scalar_one())


def test_an_old_version_is_upgraded_with_a_backup_and_equal_rows(
    engine: Engine, version: int, old_url: str, tmp_path: Path
) -> None:
    with engine.connect() as connection:
        before = read_rows(connection)
        hashes = connection.execute(text("SELECT id, hash FROM votes ORDER BY id")).all()
    with open_database(old_url) as database:
        with database.read() as connection:
            assert read_rows(connection) == before
            assert connection.execute(text("SELECT id, hash FROM votes ORDER BY id")).all() == hashes
            assert connection.scalar(text("SELECT max(version) FROM schema_version")) == schema.SCHEMA_VERSION
        assert list(VoteStore(database).votes()) == sorted(VOTES, key=lambda vote: (vote.created_at, vote.id))
        assert VoteStore(database).imports()[0].file == "f"
        assert Queue(database).add_items([pair()], round=1, seed=0) == 1
    assert_backup_holds(engine, version, before, len(VOTES), tmp_path)
    open_database(old_url).close()
    assert_backup_holds(engine, version, before, len(VOTES), tmp_path)  # still the only one


def assert_backup_holds(engine: Engine, version: int, rows: list[object], votes: int, folder: Path) -> None:
    if engine.dialect.name == "sqlite":
        (backup,) = folder.glob(f"feedback.db.v{version}-*.bak")
        copy = create_engine(f"sqlite:///{backup}")
        with copy.connect() as connection:
            assert read_rows(connection) == rows
            assert connection.scalar(text("SELECT max(version) FROM schema_version")) == version
        copy.dispose()
        return
    with engine.connect() as connection:
        (name,) = [name for name in inspect(connection).get_schema_names() if name.startswith(f"accord_v{version}_")]
        connection.execute(text(f'SET search_path TO "{name}"'))
        assert connection.scalar(text("SELECT count(*) FROM votes")) == votes
        assert read_rows(connection) == rows


def test_the_votes_of_version_1_are_in_the_log(old_url: str, tmp_path: Path) -> None:
    with open_database(old_url) as database, open_database(tmp_path / "replayed.db") as target:
        replay(database, target)
        with database.read() as here:
            assert {event.kind for event in read_events(here)} == {"upgraded"}
        assert audit(database) >= 1
        assert VoteStore(target).count() == len(VOTES)


def test_an_upgraded_database_is_like_a_new_one(old_url: str, another_url: str) -> None:
    def describe(url: str) -> tuple[object, ...]:
        with open_database(url) as database, database.read() as connection:
            found = inspect(connection)
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "target_metadata": schema.metadata}
            )
            assert compare_metadata(context, schema.metadata) == []
            assert context.get_current_revision() == "0004"
            tables = {
                name: (
                    [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
                    found.get_pk_constraint(name)["constrained_columns"],
                    sorted(str(sorted(i["column_names"])) + str(i["unique"]) for i in found.get_indexes(name)),
                    sorted(
                        str(k["constrained_columns"]) + str(k["referred_table"]) for k in found.get_foreign_keys(name)
                    ),
                    sorted(str(sorted(u["column_names"])) for u in found.get_unique_constraints(name)),
                )
                for name in sorted(found.get_table_names())
            }
            triggers = {
                "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'trigger' ORDER BY sql",
                "postgresql": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
            }[connection.dialect.name]
            return tables, list(connection.execute(text(triggers)).scalars())

    upgraded, new = describe(old_url), describe(another_url)
    assert upgraded == new
    assert len(new[1]) >= 12  # type: ignore[arg-type]


def test_several_processes_open_an_old_database_at_once(
    old_url: str, engine: Engine, version: int, tmp_path: Path
) -> None:
    def open_and_count(_: int) -> int:
        with VoteStore(old_url) as store:
            return store.count()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_and_count, range(4))) == [len(VOTES)] * 4
    with engine.connect() as connection:
        rows = read_rows(connection)
    assert_backup_holds(engine, version, rows, len(VOTES), tmp_path)


@pytest.mark.parametrize("table", ["votes", "imports"])
def test_an_upgrade_that_would_change_a_row_is_not_made(
    old_url: str, engine: Engine, version: int, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(config: object, revision: str, upgrade: object = command.upgrade) -> None:
        upgrade(config, revision)  # type: ignore[operator]
        connection: Connection = config.attributes["connection"]  # type: ignore[attr-defined]
        copied = "id || 'x', hash, kind, prompt_id, annotator, choice, strength, ranks, rating, flag, created_at"
        rest = "guideline_version, simulated, source, supersedes"
        harmful = {
            "votes": f"INSERT INTO votes SELECT {copied}, {rest} FROM votes LIMIT 1",
            "imports": "INSERT INTO imports VALUES (2, 'g', '0', 'votes', 1, 1, 0, '2026-01-31T12:00:00Z')",
        }
        connection.execute(text(harmful[table]))

    monkeypatch.setattr(upgrading.command, "upgrade", harm)
    with pytest.raises(WorkspaceError, match=f"would change rows of {table}"):
        open_database(old_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM votes")) == len(VOTES)
        assert inspect(connection).has_table("items") == (version > 1)
    assert read_version(engine) == version
    monkeypatch.undo()
    with VoteStore(old_url) as store:
        assert store.count() == len(VOTES)


def test_no_backup_no_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'f.db'}")
    with engine.begin() as connection:
        command.upgrade(upgrading.build_alembic_config(connection), "0001")
    engine.dispose()

    def refuse(source: Path, target: Path) -> None:
        raise WorkspaceError("the backup cannot be written", mend="make room")

    monkeypatch.setattr(upgrading, "_copy_sqlite", refuse)
    with pytest.raises(WorkspaceError, match="backup"):
        open_database(tmp_path / "f.db")
    with engine.connect() as connection:
        assert not inspect(connection).has_table("items")
