"""The tables of feedback.db, and the triggers that make them append-only.

Implements schema version 1 in SQLAlchemy Core. Texts are stored once, under their content id. Leaves out queries
(`store`). The triggers exist on SQLite; elsewhere, refuse UPDATE and DELETE by the database's own rights.
"""

from __future__ import annotations

from sqlalchemy import DDL, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, event

SCHEMA_VERSION = 1

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

for _table in (prompts, completions, votes, vote_completions, imports):
    for _action in ("UPDATE", "DELETE"):
        _trigger = DDL(
            f"CREATE TRIGGER {_table.name}_refuse_{_action.lower()} BEFORE {_action} ON {_table.name} "
            f"BEGIN SELECT RAISE(ABORT, '{_table.name} is append-only'); END"
        )
        event.listen(_table, "after_create", _trigger.execute_if(dialect="sqlite"))
