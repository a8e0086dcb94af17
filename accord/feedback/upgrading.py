"""From an older Accord's schema to the present one: a backup first, then Alembic's steps, then a check of every row.

Implements both databases in one transaction each: either the new schema is there with the same rows, or the old one.
SQLite's backup is a file beside the database, PostgreSQL's a schema of copied tables in the same database. Leaves out
going back: open the backup with the Accord that wrote it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from accord.errors import WorkspaceError
from accord.feedback.digests import compute_table_digests, read_tables
from accord.feedback.queue_schema import CREATE_ALEMBIC_VERSION

MIGRATIONS = Path(__file__).parent / "migrations"
VERSIONS = ("schema_version", "alembic_version")
"""The tables that an upgrade is meant to change."""


def upgrade(connection: Connection, version: int, path: Path | None) -> None:
    """Brings the schema of `version` up to date, within the transaction of `connection`, to which all writers wait.

    path: the SQLite file. Raises WorkspaceError where the backup cannot be written, or a row of a table that was there
    would not be the same afterwards, in all columns that it had; then nothing has changed.
    """
    back_up(connection, version, path)
    tables = read_tables(connection, leave_out=VERSIONS)
    before = compute_table_digests(connection, tables)
    if not inspect(connection).has_table("alembic_version"):
        connection.execute(text(CREATE_ALEMBIC_VERSION))
        connection.execute(text(f"INSERT INTO alembic_version VALUES ('{version:04d}')"))
    command.upgrade(build_alembic_config(connection), "head")
    after = compute_table_digests(connection, tables)
    if changed := sorted(name for name in before if before[name] != after[name]):
        raise WorkspaceError(
            f"the upgrade would change rows of {', '.join(changed)}, so it was not made",
            mend="use the Accord that wrote the database, and report this",
        )


def back_up(connection: Connection, version: int, path: Path | None) -> str:
    """Copies the database while nobody can write to it; returns where to: a file's path, or a PostgreSQL schema's name.

    SQLite: `feedback.db.v1-<time>.bak` beside the database, whole. PostgreSQL: the schema `accord_v1_<time>` with every
    table's rows, without indexes; it is part of the transaction, and `pg_dump` beforehand remains a good habit.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dt%H%M%S%f")
    if connection.dialect.name == "sqlite":
        if path is None:
            return ""
        target = path.with_name(f"{path.name}.v{version}-{moment}.bak")
        _copy_sqlite(path, target)
        return str(target)
    name = f"accord_v{version}_{moment}"
    connection.execute(text(f'CREATE SCHEMA "{name}"'))
    for table in inspect(connection).get_table_names():
        connection.execute(text(f'CREATE TABLE "{name}"."{table}" AS TABLE "{table}"'))
    return name


def build_alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for the package's own migrations, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's own online backup, which sees one moment of the database whatever is in its WAL."""
    try:
        with closing(sqlite3.connect(source)) as from_, closing(sqlite3.connect(target)) as to:
            from_.backup(to)
    except sqlite3.Error as error:
        raise WorkspaceError(
            f"the backup before the upgrade cannot be written: {error}",
            where=str(target),
            mend="make room, or let Accord write in that folder; nothing was changed",
        ) from error
