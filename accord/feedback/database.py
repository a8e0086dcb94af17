"""feedback.db: one SQLAlchemy engine for SQLite in WAL mode (the default) or PostgreSQL, opened at the newest schema.

Implements opening, creating and upgrading, snapshots for reading, and writing transactions one at a time. Both
databases serialise writers, SQLite by its write lock and PostgreSQL by an advisory lock, so that the same code is right
on both and the audit log's order is the order of commits. Leaves out what is written (`store`, `queue`, `people`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy.exc
from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from accord.errors import DataError, WorkspaceError
from accord.feedback import queue_schema, schema
from accord.feedback.log import Transaction

DEFAULT_URL = "sqlite:///feedback.db"
BUSY_TIMEOUT_SECONDS = 120.0
POOLED_CONNECTIONS = 20
WRITE_OPTION = "accord_write"
ADVISORY_LOCK = 4_703_919_738_795_935_661  # PostgreSQL: all of Accord's writers to one database ask for this number
POSTGRES_DRIVER = "postgresql+psycopg"


class _Turns:
    """A lock that is handed on in the order of asking, so that nobody waits for ever behind the quicker ones."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # until the one before releases it

    def __exit__(self, *exception: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Database:
    """An open feedback.db. Safe to share between threads; processes open their own. Use `open_database`."""

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self.engine = engine
        # SQLite lets waiting writers sleep and try again, in no order; within a process they take turns.
        self._turns = _Turns()

    @property
    def url_shown(self) -> str:
        """The URL without its password, for messages."""
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for other databases and for one in memory."""
        url = make_url(self.url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            return None
        return Path(url.database)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot to read from. Raises DataError where a value asked for is none that the database can hold."""
        with _refuse_impossible(), self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def write(self, kind: str, actor: str, now: datetime | None = None) -> Iterator[Transaction]:
        """The only writing transaction there is while the block runs. It commits when the block ends, or not at all.

        What changed and is not yet an event becomes one of this `kind` and `actor` at the end. Raises WorkspaceError
        where the database cannot be written, DataError where a value is none that it can hold.
        """
        try:
            with (
                _refuse_impossible(),
                self._turns,
                self.engine.execution_options(**{WRITE_OPTION: True}).begin() as connection,
            ):
                if self.engine.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
                transaction = Transaction(connection, now)
                yield transaction
                if transaction.unrecorded:
                    transaction.record(kind, actor)
        except OperationalError as error:
            raise WorkspaceError(
                f"the vote store cannot be written: {error.orig}",
                where=self.url_shown,
                mend="nothing was stored; see that no other program holds the database, and that the disk has room",
            ) from error

    def close(self) -> None:
        """Gives back all connections. They are opened again when the database is used."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _refuse_impossible() -> Iterator[None]:
    """Says in our words that a text or number does not fit: a NUL on PostgreSQL, half a surrogate pair, 10 ** 30."""
    try:
        yield
    except (sqlalchemy.exc.DataError, OverflowError, UnicodeEncodeError) as error:
        raise DataError(
            f"the database cannot hold a value: {str(getattr(error, 'orig', error))[:200]}",
            mend="leave out NUL characters and halves of surrogate pairs, and numbers beyond 64 bits",
        ) from error


def open_database(url: str | Path = DEFAULT_URL) -> Database:
    """Opens the database, creating its tables where there are none, and upgrading an older schema (`upgrading`).

    `url`: an SQLAlchemy URL (`postgresql://...` means the driver psycopg 3), or the path of an SQLite file. Raises
    WorkspaceError where it cannot be opened, or was written by a newer Accord.
    """
    full = url if isinstance(url, str) and "://" in url else f"sqlite:///{url}"
    full = full.replace("postgresql://", f"{POSTGRES_DRIVER}://", 1).replace("postgres://", f"{POSTGRES_DRIVER}://", 1)
    database = Database(full, _build_engine(full))
    try:
        with database.read() as connection:
            version = read_schema_version(connection)
        if version is None:
            version = _create(database)
        if version < schema.SCHEMA_VERSION:
            _upgrade(database)
    except SQLAlchemyError as error:
        raise WorkspaceError(
            f"the vote store cannot be opened: {getattr(error, 'orig', error)}",
            where=database.url_shown,
            mend="check the path or URL of the database, and that you may write there",
        ) from error
    if version > schema.SCHEMA_VERSION:
        raise WorkspaceError(
            f"the vote store has schema version {version}, this Accord knows {schema.SCHEMA_VERSION}",
            where=database.url_shown,
            mend="use the Accord that wrote it, or a newer one",
        )
    return database


def read_schema_version(connection: Connection) -> int | None:
    """The schema's version; None where there are no tables yet."""
    if not inspect(connection).has_table(schema.schema_version.name):
        return None
    version: int | None = connection.scalar(select(func.max(schema.schema_version.c.version)))
    return version


def _create(database: Database) -> int:
    """Makes all tables, unless somebody else just has; returns the version that is there then."""
    with database.write("created", "accord") as transaction:
        connection = transaction.connection
        version = read_schema_version(connection)
        if version is not None:
            return version
        schema.metadata.create_all(connection)
        connection.execute(insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))
        connection.execute(text(queue_schema.CREATE_ALEMBIC_VERSION))
        connection.execute(text(f"INSERT INTO alembic_version VALUES ('{queue_schema.HEAD_REVISION}')"))
    return schema.SCHEMA_VERSION


def _upgrade(database: Database) -> None:
    """Upgrades an older schema, unless another process just has."""
    from accord.feedback.upgrading import upgrade  # Alembic is slow to import, and seldom needed

    with database.write("upgraded", "accord") as transaction:
        version = read_schema_version(transaction.connection)
        if version is not None and version < schema.SCHEMA_VERSION:
            upgrade(transaction.connection, version, database.path)


def _build_engine(url: str) -> Engine:
    """An engine whose writing transactions take SQLite's write lock at once, and wait for it."""
    try:
        backend = make_url(url).get_backend_name()
        pooled = {"pool_size": POOLED_CONNECTIONS, "max_overflow": POOLED_CONNECTIONS}
        in_memory = backend == "sqlite" and make_url(url).database in (None, "", ":memory:")
        engine = create_engine(url, **({} if in_memory else pooled))
    except (SQLAlchemyError, ImportError) as error:
        raise WorkspaceError(
            f"the database URL cannot be used: {error}",
            mend="give an SQLAlchemy URL whose driver is installed; for PostgreSQL: pip install 'accord[postgres]'",
        ) from error
    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; see _begin
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
        _enter_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _enter_wal(cursor: Any) -> None:
    """Puts a new file in WAL mode. SQLite does not wait here for who else has just opened it, so this does."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
