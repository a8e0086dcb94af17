"""Every vote ever cast, append-only: `VoteStore` on SQLAlchemy 2, SQLite in WAL mode by default.

Implements idempotent, all-or-nothing adding by several writers at once, superseding as chains, and reading in an order
that does not depend on who came first. Leaves out file formats (`importing`, `exporting`), what votes mean
(`consensus`), and migrations: there is one schema version so far, and a newer one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, Select, Table, create_engine, event, func, insert, make_url, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from accord.errors import DataError, WorkspaceError
from accord.feedback import schema
from accord.feedback.records import compute_vote_hash, require_text
from accord.types import Completion, Message, Prompt, Vote

DEFAULT_URL = "sqlite:///feedback.db"
BUSY_TIMEOUT_SECONDS = 120.0
BATCH_VOTES = 400  # so that a list of their ids stays under every SQLite's limit on variables
WRITE_OPTION = "accord_write"


@dataclass(frozen=True)
class ImportRecord:
    """One import, as the store remembers it: file name, SHA-256 of its bytes, format, counts, ISO 8601 time."""

    file: str
    sha256: str
    format: str
    read: int
    added: int
    rejected: int
    imported_at: str


class VoteStore:
    """The votes of one project. `url`: an SQLAlchemy URL, or the path of an SQLite file."""

    def __init__(self, url: str | Path = DEFAULT_URL) -> None:
        """Opens the store, creating its tables where there are none.

        Raises WorkspaceError where the database cannot be opened, or was written by a newer Accord.
        """
        self.url = url if isinstance(url, str) and "://" in url else f"sqlite:///{url}"
        self._engine = _build_engine(self.url)
        try:
            with self._write() as connection:
                schema.metadata.create_all(connection)
                version = connection.scalar(select(func.max(schema.schema_version.c.version)))
                if version is None:
                    connection.execute(insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))
        except SQLAlchemyError as error:
            raise WorkspaceError(
                f"the vote store cannot be opened: {getattr(error, 'orig', error)}",
                where=self.url_shown,
                mend="check the path or URL of the database, and that you may write there",
            ) from error
        if version is not None and version > schema.SCHEMA_VERSION:
            raise WorkspaceError(
                f"the vote store has schema version {version}, this Accord knows {schema.SCHEMA_VERSION}",
                where=self.url_shown,
                mend="use the Accord that wrote it, or a newer one",
            )

    @property
    def url_shown(self) -> str:
        """The URL without its password, for messages."""
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def folder(self) -> Path | None:
        """The folder of an SQLite file; None for other databases and for one in memory."""
        url = make_url(self.url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            return None
        return Path(url.database).parent

    def close(self) -> None:
        """Gives back all connections. The store opens them again when it is used."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, votes: Iterable[Vote]) -> int:
        """Stores those votes that are not there yet, in one transaction, and returns how many were new.

        Raises DataError (and stores nothing) where an id is taken by another vote, or a vote supersedes one that does
        not exist, is someone else's, or has been superseded already.
        """
        with self.writer() as writer:
            return writer.add(votes)

    @contextmanager
    def writer(self) -> Iterator[VoteWriter]:
        """One transaction to which votes are added in batches. It commits when the block ends, or not at all."""
        with self._write() as connection:
            writer = VoteWriter(connection)
            yield writer
            writer.check()

    def votes(
        self,
        kind: str | None = None,
        *,
        current: bool = True,
        source: str | None = None,
        annotator: str | None = None,
        simulated: bool | None = None,
    ) -> Iterator[Vote]:
        """Votes in the order of (created_at, id), whatever the order in which they came; read as one snapshot.

        kind, source, annotator, simulated: only those. current: leave out votes that another one supersedes.
        """
        query = _select_votes(current).order_by(
            schema.votes.c.created_at, schema.votes.c.id, schema.vote_completions.c.position
        )
        wanted = {"kind": kind, "source": source, "annotator": annotator, "simulated": simulated}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(schema.votes.c[name] == value)
        with self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=2000).execute(query)
            parse_prompt, parse_messages = lru_cache(4096)(_prompt_from_json), lru_cache(4096)(_messages_from_json)
            for _, group in groupby(rows, key=lambda row: row.id):
                shown = list(group)
                answers = tuple(Completion(parse_messages(row.messages), row.finished, row.origin) for row in shown)
                yield _vote_from_row(shown[0], parse_prompt(shown[0].prompt), answers)

    def count(self, *, current: bool = False) -> int:
        """How many votes there are; `current`: without those that another one supersedes."""
        with self._engine.connect() as connection:
            total: int = connection.scalar(select(func.count()).select_from(schema.votes)) or 0
            if not current:
                return total
            # A chain is unique in `supersedes`: each superseding vote takes exactly one other out.
            return total - (connection.scalar(select(func.count(schema.votes.c.supersedes))) or 0)

    def annotators(self) -> dict[str, int]:
        """How many votes each annotator has cast (superseded ones too), by name."""
        query = select(schema.votes.c.annotator, func.count()).group_by(schema.votes.c.annotator)
        with self._engine.connect() as connection:
            return dict(sorted((name, votes) for name, votes in connection.execute(query)))

    def imports(self) -> list[ImportRecord]:
        """Every import that committed, oldest first."""
        columns = [column for column in schema.imports.c if column.name != "id"]
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).order_by(schema.imports.c.id))
            return [ImportRecord(**row._mapping) for row in rows]

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.execution_options(**{WRITE_OPTION: True}).begin() as connection:
                yield connection
        except OperationalError as error:
            raise WorkspaceError(
                f"the vote store cannot be written: {error.orig}",
                where=self.url_shown,
                mend="nothing was stored; see that no other program holds the database, and that the disk has room",
            ) from error


class VoteWriter:
    """An open transaction of `VoteStore.writer`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._superseding: dict[str, tuple[str, str]] = {}  # new vote -> (vote it supersedes, annotator)

    def add(self, votes: Iterable[Vote]) -> int:
        """Stores those votes that are not there yet; returns how many were new. Raises DataError as `VoteStore.add`."""
        added = 0
        remaining = iter(votes)
        while batch := list(islice(remaining, BATCH_VOTES)):
            added += self._add_batch(batch)
        return added

    def record_import(self, *, file: str, sha256: str, format: str, read: int, added: int, rejected: int) -> None:
        """Remembers in the same transaction where votes came from."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        values = {"file": file, "sha256": sha256, "format": format, "read": read, "added": added, "rejected": rejected}
        self._connection.execute(insert(schema.imports).values(imported_at=now, **values))

    def check(self) -> None:
        """Raises DataError unless each new vote that supersedes names an existing vote of the same annotator."""
        targets = [target for target, _ in self._superseding.values()]
        owners: dict[str, str] = {}
        for start in range(0, len(targets), BATCH_VOTES):
            query = select(schema.votes.c.id, schema.votes.c.annotator)
            rows = self._connection.execute(query.where(schema.votes.c.id.in_(targets[start : start + BATCH_VOTES])))
            owners.update((row.id, row.annotator) for row in rows)
        for vote_id, (target, annotator) in self._superseding.items():
            if target not in owners:
                raise DataError(f"vote {vote_id} supersedes {target}, which does not exist", mend="name a stored vote")
            if owners[target] != annotator:
                raise DataError(
                    f"vote {vote_id} of {annotator} supersedes {target}, a vote of {owners[target]}",
                    mend="an annotator takes back only votes of their own",
                )
        self._refuse_cycles()

    def _refuse_cycles(self) -> None:
        settled: set[str] = set()
        for start in self._superseding:
            path: set[str] = set()
            at = start
            while at in self._superseding and at not in settled:
                if at in path:
                    raise DataError(f"vote {at} supersedes itself", mend="let the newer vote name the older one")
                path.add(at)
                at = self._superseding[at][0]
            settled |= path

    def _add_batch(self, batch: Sequence[Vote]) -> int:
        hashes = self._stored_hashes([vote.id for vote in batch])
        fresh: dict[str, Vote] = {}
        for vote in batch:
            digest = compute_vote_hash(vote)
            if vote.id not in hashes:
                hashes[vote.id] = digest
                fresh[vote.id] = vote
            elif hashes[vote.id] != digest:
                raise DataError(f"the id {vote.id} is taken by another vote", mend="give each vote an id of its own")
        self._note_superseding(fresh.values())
        self._insert_texts(fresh.values())
        shown = [row for vote in fresh.values() for row in _build_showing_rows(vote)]
        if fresh:
            rows = [_build_vote_row(vote, hashes[vote.id]) for vote in fresh.values()]
            self._connection.execute(insert(schema.votes), rows)
            self._connection.execute(insert(schema.vote_completions), shown)
        return len(fresh)

    def _note_superseding(self, votes: Iterable[Vote]) -> None:
        newer = {vote.id: (vote.supersedes, vote.annotator) for vote in votes if vote.supersedes is not None}
        query = select(schema.votes.c.id, schema.votes.c.supersedes)
        stored = self._connection.execute(
            query.where(schema.votes.c.supersedes.in_([target for target, _ in newer.values()]))
        )
        taken = {row.supersedes: row.id for row in stored}
        for vote_id, (target, annotator) in newer.items():
            if taken.setdefault(target, vote_id) != vote_id:
                raise DataError(
                    f"vote {vote_id} supersedes {target}, which vote {taken[target]} has superseded already",
                    mend=f"supersede {taken[target]}",
                )
            self._superseding[vote_id] = (target, annotator)

    def _insert_texts(self, votes: Iterable[Vote]) -> None:
        prompts: dict[str, dict[str, Any]] = {}
        completions: dict[str, dict[str, Any]] = {}
        for vote in votes:
            prompts[vote.prompt.id] = {"id": vote.prompt.id, "body": _to_json(vote.prompt.to_dict())}
            for answer in vote.completions:
                body = _to_json([message.to_dict() for message in answer.messages])
                completions[answer.id] = {"id": answer.id, "body": body, "finished": answer.finished}
        for table, rows in ((schema.prompts, prompts), (schema.completions, completions)):
            stored = self._stored_ids(table, list(rows))
            if missing := [row for key, row in rows.items() if key not in stored]:
                self._connection.execute(insert(table), missing)

    def _stored_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        query = select(schema.votes.c.id, schema.votes.c.hash).where(schema.votes.c.id.in_(ids))
        return {row.id: row.hash for row in self._connection.execute(query)}

    def _stored_ids(self, table: Table, ids: Sequence[str]) -> set[str]:
        stored: set[str] = set()
        for start in range(0, len(ids), BATCH_VOTES):
            query = select(table.c.id).where(table.c.id.in_(ids[start : start + BATCH_VOTES]))
            stored.update(self._connection.scalars(query))
        return stored


def _build_engine(url: str) -> Engine:
    """An engine whose writing transactions take SQLite's write lock at once, and wait for it."""
    try:
        engine = create_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise WorkspaceError(
            f"the database URL cannot be used: {error}", mend="give an SQLAlchemy URL whose driver is installed"
        ) from error
    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; see _begin
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _select_votes(current: bool) -> Select[Any]:
    """Votes with their prompt and, one row each, the completions as they were shown."""
    query = (
        select(
            schema.votes,
            schema.prompts.c.body.label("prompt"),
            schema.completions.c.body.label("messages"),
            schema.completions.c.finished,
            schema.vote_completions.c.origin,
        )
        .join(schema.prompts, schema.prompts.c.id == schema.votes.c.prompt_id)
        .join(schema.vote_completions, schema.vote_completions.c.vote_id == schema.votes.c.id)
        .join(schema.completions, schema.completions.c.id == schema.vote_completions.c.completion_id)
    )
    if current:
        newer = schema.votes.alias("newer")
        query = query.where(~select(newer.c.id).where(newer.c.supersedes == schema.votes.c.id).exists())
    return query


def _build_vote_row(vote: Vote, digest: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": vote.id,
        "hash": digest,
        "kind": vote.kind,
        "prompt_id": vote.prompt.id,
        "annotator": vote.annotator,
        "choice": vote.choice,
        "strength": vote.strength,
        "ranks": None if vote.ranks is None else _to_json(list(vote.ranks)),
        "rating": vote.rating,
        "flag": vote.flag,
        "created_at": vote.created_at,
        "guideline_version": vote.guideline_version,
        "simulated": vote.simulated,
        "source": vote.source,
        "supersedes": vote.supersedes,
    }
    for name, value in row.items():
        if isinstance(value, str):
            require_text(value, f"{name} of vote {vote.id!r}")
    return row


def _build_showing_rows(vote: Vote) -> Iterator[dict[str, Any]]:
    for position, answer in enumerate(vote.completions):
        yield {"vote_id": vote.id, "position": position, "completion_id": answer.id, "origin": answer.origin}


def _vote_from_row(row: Row[Any], prompt: Prompt, answers: tuple[Completion, ...]) -> Vote:
    return Vote(
        id=row.id,
        kind=row.kind,
        prompt=prompt,
        completions=answers,
        annotator=row.annotator,
        choice=row.choice,
        strength=row.strength,
        ranks=None if row.ranks is None else tuple(json.loads(row.ranks)),
        rating=row.rating,
        flag=row.flag,
        created_at=row.created_at,
        guideline_version=row.guideline_version,
        simulated=row.simulated,
        source=row.source,
        supersedes=row.supersedes,
    )


def _to_json(value: object) -> str:
    return require_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), "a vote's text")


def _prompt_from_json(body: str) -> Prompt:
    return Prompt.from_dict(json.loads(body))


def _messages_from_json(body: str) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"]) for row in json.loads(body))
