"""Schema version 1: votes and their texts, append-only on SQLite. The first one released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables of schema version 1."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True))
    op.create_table(
        "prompts", sa.Column("id", sa.String(16), primary_key=True), sa.Column("body", sa.Text, nullable=False)
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
    )
    op.create_table(
        "votes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hash", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.String(16), sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("annotator", sa.Text, nullable=False, index=True),
        sa.Column("choice", sa.String(16)),
        sa.Column("strength", sa.Integer),
        sa.Column("ranks", sa.Text),
        sa.Column("rating", sa.Float),
        sa.Column("flag", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("guideline_version", sa.Text),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("source", sa.Text, nullable=False, index=True),
        sa.Column("supersedes", sa.Text, sa.ForeignKey("votes.id", deferrable=True, initially="DEFERRED"), unique=True),
    )
    op.create_index("votes_in_order", "votes", ["created_at", "id"])
    op.create_table(
        "vote_completions",
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("completion_id", sa.String(16), sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
    )
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("read", sa.Integer, nullable=False),
        sa.Column("added", sa.Integer, nullable=False),
        sa.Column("rejected", sa.Integer, nullable=False),
        sa.Column("imported_at", sa.Text, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for table in ("prompts", "completions", "votes", "vote_completions", "imports"):
            for action in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_refuse_{action.lower()} BEFORE {action} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
    op.execute("INSERT INTO schema_version (version) VALUES (1)")
