"""The tables of votes and texts in feedback.db, and the triggers that make them append-only.

Implements what schema version 1 held, in SQLAlchemy Core; `queue_schema` adds what came after it. Texts are stored
once, under their content id. Leaves out queries (`store`) and older versions (`migrations`).
"""

from __future__ import annotations

from sqlalchemy import DDL, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, event

SCHEMA_VERSION = 4

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(16), primary_key=True),  # types.Prompt.id
    Column("body", Text, nullable=False),  # JSON of Prompt.to_dict
)

completions = Table(
    "completions",
    metadata,
    Column("id", String(16), primary_key=True),  # types.Completion.id
    Column("body", Text, nullable=False),  # JSON of the messages
    Column("finished", Boolean, nullable=False),
)

votes = Table(
    "votes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hash", String(16), nullable=False),  # of every field: the same id must mean the same vote
    Column("kind", String(16), nullable=False),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("annotator", Text, nullable=False, index=True),
    Column("choice", String(16)),
    Column("strength", Integer),
    Column("ranks", Text),  # JSON list
    Column("rating", Float),
    Column("flag", Text),
    Column("created_at", Text, nullable=False),
    Column("guideline_version", Text),
    Column("simulated", Boolean, nullable=False),
    Column("source", Text, nullable=False, index=True),
    # Deferred, because a file may hold the newer vote before the older. Unique, so that a change of mind is a chain.
    Column("supersedes", Text, ForeignKey("votes.id", deferrable=True, initially="DEFERRED"), unique=True),
    Index("votes_in_order", "created_at", "id"),
)

vote_completions = Table(
    "vote_completions",
    metadata,
    Column("vote_id", Text, ForeignKey("votes.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("completion_id", String(16), ForeignKey("completions.id"), nullable=False),
    Column("origin", Text, nullable=False),  # of this showing: the same text may come from two models
)

imports = Table(
    "imports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("file", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("format", Text, nullable=False),
    Column("read", Integer, nullable=False),
    Column("added", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    Column("imported_at", Text, nullable=False),
)

REFUSING_FUNCTION = (
    "CREATE OR REPLACE FUNCTION accord_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only'; END$$"
)


def build_refusals(name: str, dialect: str) -> list[str]:
    """The statements that make the table `name` refuse UPDATE and DELETE, on "sqlite" or "postgresql"."""
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER {name}_refuse_{action.lower()} BEFORE {action} ON {name} "
            f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            for action in ("UPDATE", "DELETE")
        ]
    return [
        f"CREATE TRIGGER {name}_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {name} "
        "FOR EACH STATEMENT EXECUTE FUNCTION accord_refuse_change()"
    ]


def make_append_only(table: Table) -> None:
    """Has both databases refuse UPDATE and DELETE on `table` as soon as it is created."""
    for dialect in ("sqlite", "postgresql"):
        for statement in build_refusals(table.name, dialect):
            event.listen(table, "after_create", DDL(statement).execute_if(dialect=dialect))


event.listen(metadata, "before_create", DDL(REFUSING_FUNCTION).execute_if(dialect="postgresql"))
for _table in (prompts, completions, votes, vote_completions, imports):
    make_append_only(_table)
