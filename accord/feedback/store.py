"""Every vote ever cast, append-only: `VoteStore` on SQLAlchemy 2, SQLite in WAL mode by default.

Implements idempotent, all-or-nothing adding by several writers at once, superseding as chains, and reading in an order
that does not depend on who came first. Leaves out file formats (`importing`, `exporting`), what votes mean
(`consensus`), and opening and upgrading the database (`database`, `upgrading`).
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

from sqlalchemy import Connection, Row, Select, func, select

from accord.errors import DataError, NotFoundError
from accord.feedback import schema
from accord.feedback.database import DEFAULT_URL, Database, open_database
from accord.feedback.log import Transaction
from accord.feedback.queue_schema import adjudications, answers, items, leases
from accord.feedback.records import compute_vote_hash, require_text
from accord.feedback.texts import BATCH_TEXTS, insert_texts, messages_from_json, prompt_from_json, to_json
from accord.types import Completion, Prompt, Vote

BATCH_VOTES = BATCH_TEXTS


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
    """The votes of one project. `url`: an SQLAlchemy URL, the path of an SQLite file, or an open database to share."""

    def __init__(self, url: str | Path | Database = DEFAULT_URL) -> None:
        """Opens the store as `open_database` does, or shares a database that is open already."""
        self.database = url if isinstance(url, Database) else open_database(url)

    @property
    def url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database.url

    @property
    def folder(self) -> Path | None:
        """The folder of an SQLite file; None for other databases and for one in memory."""
        return self.database.path.parent if self.database.path else None

    def close(self) -> None:
        """Gives back all connections. The store opens them again when it is used."""
        self.database.close()

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
        with self.database.write("votes", "store") as transaction:
            writer = VoteWriter(transaction)
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

        kind, source, annotator, simulated: only those. current: leave out votes that another one supersedes, and
        withdrawals.
        """
        query = _select_votes(current)
        wanted = {"kind": kind, "source": source, "annotator": annotator, "simulated": simulated}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(schema.votes.c[name] == value)
        with self.database.read() as connection:
            yield from _read_votes(connection, query)

    def count(self, *, current: bool = False) -> int:
        """How many votes there are; `current`: without those superseded, and withdrawals."""
        with self.database.read() as connection:
            total: int = connection.scalar(select(func.count()).select_from(schema.votes)) or 0
            if not current:
                return total
            # A chain is unique in `supersedes`: each superseding vote takes exactly one other out.
            total -= connection.scalar(select(func.count(schema.votes.c.supersedes))) or 0
            newer = schema.votes.alias("newer")
            last = ~select(newer.c.id).where(newer.c.supersedes == schema.votes.c.id).exists()
            withdrawn = select(func.count()).where(schema.votes.c.kind == "withdrawal", last)
            return total - (connection.scalar(withdrawn) or 0)

    def annotators(self) -> dict[str, int]:
        """How many votes each annotator has cast (superseded ones too), by name."""
        query = select(schema.votes.c.annotator, func.count()).group_by(schema.votes.c.annotator)
        with self.database.read() as connection:
            return dict(sorted((name, votes) for name, votes in connection.execute(query)))

    def imports(self) -> list[ImportRecord]:
        """Every import that committed, oldest first."""
        columns = [column for column in schema.imports.c if column.name != "id"]
        with self.database.read() as connection:
            rows = connection.execute(select(*columns).order_by(schema.imports.c.id))
            return [ImportRecord(**row._mapping) for row in rows]


class VoteWriter:
    """Adds votes within an open transaction, that of `VoteStore.writer` or of a queue."""

    def __init__(self, transaction: Transaction, *, texts_stored: bool = False) -> None:
        """texts_stored: every text is there already, as it is where a queue showed it; so none is looked for."""
        self._transaction = transaction
        self._texts_stored = texts_stored
        self._superseding: dict[str, tuple[str, str]] = {}  # new vote -> (vote it supersedes, annotator)

    def add(self, votes: Iterable[Vote]) -> int:
        """Stores those votes that are not there yet; returns how many were new. Raises DataError as `VoteStore.add`."""
        added = 0
        remaining = iter(votes)
        while batch := list(islice(remaining, BATCH_VOTES)):
            added += self._add_batch(batch)
            if len(batch) == BATCH_VOTES:
                self._transaction.record("votes", "store")  # so that no event grows with the file
        return added

    def record_import(self, *, file: str, sha256: str, format: str, read: int, added: int, rejected: int) -> None:
        """Remembers in the same transaction where votes came from."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        values = {"file": file, "sha256": sha256, "format": format, "read": read, "added": added, "rejected": rejected}
        number = (self._transaction.execute(select(func.max(schema.imports.c.id))).scalar() or 0) + 1
        self._transaction.insert(schema.imports, [{"id": number, "imported_at": now, **values}])

    def check(self) -> None:
        """Raises DataError unless each new vote that supersedes names an existing vote of the same annotator."""
        targets = [target for target, _ in self._superseding.values()]
        owners: dict[str, str] = {}
        for start in range(0, len(targets), BATCH_VOTES):
            query = select(schema.votes.c.id, schema.votes.c.annotator)
            rows = self._transaction.execute(query.where(schema.votes.c.id.in_(targets[start : start + BATCH_VOTES])))
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
        if not self._texts_stored:
            self._insert_texts(fresh.values())
        shown = [row for vote in fresh.values() for row in _build_showing_rows(vote)]
        if fresh:
            rows = [_build_vote_row(vote, hashes[vote.id]) for vote in fresh.values()]
            self._transaction.insert(schema.votes, rows)
            self._transaction.insert(schema.vote_completions, shown)
        return len(fresh)

    def _note_superseding(self, votes: Iterable[Vote]) -> None:
        newer = {vote.id: (vote.supersedes, vote.annotator) for vote in votes if vote.supersedes is not None}
        if not newer:
            return
        query = select(schema.votes.c.id, schema.votes.c.supersedes)
        stored = self._transaction.execute(
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
        shown = [(vote.prompt, vote.completions) for vote in votes]
        insert_texts(self._transaction, (prompt for prompt, _ in shown), (one for _, some in shown for one in some))

    def _stored_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        query = select(schema.votes.c.id, schema.votes.c.hash).where(schema.votes.c.id.in_(ids))
        return {row.id: row.hash for row in self._transaction.execute(query)}


def read_vote(transaction: Transaction, vote_id: str) -> Vote:
    """One vote, superseded or not. Raises NotFoundError where there is none."""
    query = _select_votes(current=False).where(schema.votes.c.id == vote_id)
    for vote in _read_votes(transaction.connection, query):
        return vote
    raise NotFoundError(f"there is no vote {vote_id}", mend="name a stored vote")


def read_round_votes(database: Database, round: int, *, counted: bool = True) -> Iterator[Vote]:
    """The standing votes and verdicts on a round's items, repeats left out.

    counted: those that count for the loop alone (`queue.Queue.votes`), without known answers and surplus votes.
    """
    asked = select(items.c.id).where(items.c.round == round, items.c.repeat_of.is_(None))
    answered = select(answers.c.vote_id).join(leases, leases.c.id == answers.c.lease_id)
    if counted:
        asked = asked.where(items.c.gold.is_(None))
        beside = answers.c.vote_id != leases.c.vote_id  # a flag, which stands also beside a surplus vote
        answered = answered.where(~leases.c.surplus | beside)
    answered = answered.where(answers.c.item_id.in_(asked))
    judged = select(adjudications.c.vote_id).where(adjudications.c.item_id.in_(asked))
    query = _select_votes(current=True).where(schema.votes.c.id.in_(answered) | schema.votes.c.id.in_(judged))
    with database.read() as connection:
        yield from _read_votes(connection, query)


def _read_votes(connection: Connection, query: Select[Any]) -> Iterator[Vote]:
    """The votes of a query of `_select_votes`, by created_at, then id."""
    query = query.order_by(schema.votes.c.created_at, schema.votes.c.id, schema.vote_completions.c.position)
    rows = connection.execute(query.execution_options(yield_per=2000))
    parse_prompt, parse_messages = lru_cache(4096)(prompt_from_json), lru_cache(4096)(messages_from_json)
    for _, group in groupby(rows, key=lambda row: row.id):
        shown = list(group)
        answered = tuple(Completion(parse_messages(row.messages), row.finished, row.origin) for row in shown)
        yield _vote_from_row(shown[0], parse_prompt(shown[0].prompt), answered)


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
        query = query.where(schema.votes.c.kind != "withdrawal")
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
        "ranks": None if vote.ranks is None else to_json(list(vote.ranks)),
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
