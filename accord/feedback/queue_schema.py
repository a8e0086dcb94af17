"""The tables behind labelling: people, guidelines, items to judge, leases, what came back, and the log of it all.

Implements what schema versions 2 to 4 added. Times are ISO 8601 in UTC with microseconds and a trailing Z, so that
they sort as text. Leaves out queries, and which row may follow which (`queue`, `people`).
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from accord.feedback.schema import make_append_only, metadata

HEAD_REVISION = "0004"  # the newest of migrations/versions
CREATE_ALEMBIC_VERSION = (  # as Alembic itself makes it
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)

annotators = Table(
    "annotators",
    metadata,
    Column("name", Text, primary_key=True),  # Vote.annotator
    Column("folded", Text, nullable=False, unique=True),  # compatibility-normalised, without case: no look-alikes
    Column("role", String(16), nullable=False),  # owner | annotator
    Column("status", String(16), nullable=False),  # active | paused | deleted
    Column("created_at", Text, nullable=False),
)

credentials = Table(
    "credentials",
    metadata,
    Column("annotator", Text, ForeignKey("annotators.name"), primary_key=True),
    Column("password_hash", Text, nullable=False),  # never in the log: what is forgotten must be gone
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", String(128), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("used_by", Text),
    Column("closed_at", Text),  # used or revoked
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(128), primary_key=True),
    Column("annotator", Text, ForeignKey("annotators.name"), nullable=False, index=True),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("closed_at", Text),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("kind", String(16), nullable=False),  # comparison | ranking | rating
    Column("round", Integer, nullable=False),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False),
    Column("position", Integer, nullable=False),  # in this order they are asked
    Column("overlap", Integer, nullable=False),  # how many people are to judge it
    Column("answered", Integer, nullable=False),  # votes that stand and fill a place
    Column("leased", Integer, nullable=False),  # leases with the status live
    Column("closed", Boolean, nullable=False),
    Column("is_open", Boolean, nullable=False),  # not closed and answered + leased < overlap
    Column("arm", Text, nullable=False),  # what chose it: a name in selection.SELECTORS, or "given"
    Column("propensity", Float, nullable=False),  # P(chosen)
    Column("gold", Text),  # JSON of the known answer, in the order of item_completions
    Column("repeat_of", String(16), ForeignKey("items.id")),
    Column("source", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("pair", String(16)),  # hash of kind and texts, in whichever order and round; none before version 4
    Index("items_to_lease", "is_open", "position"),
    Index("items_of_pair", "pair"),
    Index("items_of_round", "round", "closed"),
)

item_completions = Table(
    "item_completions",
    metadata,
    Column("item_id", String(16), ForeignKey("items.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("completion_id", String(16), ForeignKey("completions.id"), nullable=False),
    Column("origin", Text, nullable=False),  # stays on the server
)

leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("item_id", String(16), ForeignKey("items.id"), nullable=False),
    Column("annotator", Text, ForeignKey("annotators.name"), nullable=False),
    Column("shown", Text, nullable=False),  # JSON: shown[k] is the item's completion that stands at place k
    Column("status", String(16), nullable=False),  # live | answered | skipped | expired | released
    Column("surplus", Boolean, nullable=False),  # answered when all places were taken: kept, beyond the overlap
    Column("vote_id", Text, ForeignKey("votes.id")),  # the newest of the chain, a withdrawal too
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("holder", String(36)),  # the open page, or another client's session, that has it on the screen
    UniqueConstraint("item_id", "annotator", name="one_lease_per_person"),
    Index("leases_to_expire", "status", "expires_at"),
    Index("leases_of_annotator", "annotator", "status"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("client_id", String(36), primary_key=True),
    Column("annotator", Text, nullable=False),
    Column("action", String(16), nullable=False),  # vote | skip | flag | undo | adjudication
    Column("digest", String(16), nullable=False),  # of what was asked: the same id must mean the same
    Column("lease_id", String(32), ForeignKey("leases.id")),
    Column("vote_id", Text, ForeignKey("votes.id")),
    Column("undoes", String(36), index=True),
    Column("reason", Text),  # of a skip
    Column("late", Boolean, nullable=False),
    Column("surplus", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("vote_id", Text, ForeignKey("votes.id"), primary_key=True),
    Column("item_id", String(16), ForeignKey("items.id"), nullable=False, index=True),
    Column("lease_id", String(32), ForeignKey("leases.id"), nullable=False),
    Column("annotator", Text, nullable=False),
    Column("shown", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("seconds", Float),
)

demonstrations = Table(
    "demonstrations",
    metadata,
    Column("vote_id", Text, ForeignKey("votes.id"), primary_key=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False),
    Column("completion_id", String(16), ForeignKey("completions.id"), nullable=False),
    Column("edited_from", String(16), ForeignKey("completions.id")),
    Column("annotator", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

adjudications = Table(
    "adjudications",
    metadata,
    Column("vote_id", Text, ForeignKey("votes.id"), primary_key=True),
    Column("item_id", String(16), ForeignKey("items.id"), nullable=False, index=True),
    Column("note", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # 1, 2, 3, ... without a gap
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON: the rows that the event inserted and updated
    Column("digest", String(64), nullable=False),  # SHA-256 over the digest before and all the above
)

for _table in (receipts, item_completions, answers, demonstrations, adjudications, guidelines, events):
    make_append_only(_table)
