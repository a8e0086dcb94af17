"""Schema version 2: people, guidelines, the labelling queue and the audit log, which begins with the old votes."""

from __future__ import annotations

import hashlib
import json
from itertools import islice

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BATCH_VOTES = 400
FIRST_TABLES = ("prompts", "completions", "votes", "vote_completions", "imports")
NEW_APPEND_ONLY = (
    "receipts",
    "item_completions",
    "answers",
    "demonstrations",
    "adjudications",
    "guidelines",
    "events",
)


def upgrade() -> None:
    """Adds the tables, the refusals that PostgreSQL lacked, and the log's beginning."""
    _create_people()
    _create_queue()
    _create_answers()
    _refuse_changes()
    _begin_log()
    op.execute("INSERT INTO schema_version (version) VALUES (2)")


def _create_people() -> None:
    op.create_table(
        "annotators",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("folded", sa.Text, unique=True, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "credentials",
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotators.name"), primary_key=True),
        sa.Column("password_hash", sa.Text, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("token_hash", sa.String(128), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.Column("used_by", sa.Text),
        sa.Column("closed_at", sa.Text),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(128), primary_key=True),
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotators.name"), nullable=False, index=True),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.Column("closed_at", sa.Text),
    )
    op.create_table(
        "guidelines",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )


def _create_queue() -> None:
    op.create_table(
        "items",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("prompt_id", sa.String(16), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("answered", sa.Integer, nullable=False),
        sa.Column("leased", sa.Integer, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("gold", sa.Text),
        sa.Column("repeat_of", sa.String(16), sa.ForeignKey("items.id")),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_index("items_of_round", "items", ["round", "closed"])
    op.create_index("items_to_lease", "items", ["is_open", "position"])
    op.create_table(
        "item_completions",
        sa.Column("item_id", sa.String(16), sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("completion_id", sa.String(16), sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("item_id", sa.String(16), sa.ForeignKey("items.id"), nullable=False),
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotators.name"), nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("surplus", sa.Boolean, nullable=False),
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id")),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.UniqueConstraint("item_id", "annotator", name="one_lease_per_person"),
    )
    op.create_index("leases_of_annotator", "leases", ["annotator", "status"])
    op.create_index("leases_to_expire", "leases", ["status", "expires_at"])


def _create_answers() -> None:
    op.create_table(
        "receipts",
        sa.Column("client_id", sa.String(36), primary_key=True),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(16), nullable=False),
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id")),
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id")),
        sa.Column("undoes", sa.String(36), index=True),
        sa.Column("reason", sa.Text),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("surplus", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id"), primary_key=True),
        sa.Column("item_id", sa.String(16), sa.ForeignKey("items.id"), nullable=False, index=True),
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id"), nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float),
    )
    op.create_table(
        "demonstrations",
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id"), primary_key=True),
        sa.Column("prompt_id", sa.String(16), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("completion_id", sa.String(16), sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("edited_from", sa.String(16), sa.ForeignKey("completions.id")),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "adjudications",
        sa.Column("vote_id", sa.Text, sa.ForeignKey("votes.id"), primary_key=True),
        sa.Column("item_id", sa.String(16), sa.ForeignKey("items.id"), nullable=False, index=True),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )


def _refuse_changes() -> None:
    """Triggers on the new tables; on PostgreSQL, where version 1 had none, on the old ones too."""
    if op.get_bind().dialect.name == "sqlite":
        for table in NEW_APPEND_ONLY:
            for action in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_refuse_{action.lower()} BEFORE {action} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION accord_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only'; END$$"
    )
    for table in (*FIRST_TABLES, *NEW_APPEND_ONLY):
        op.execute(
            f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION accord_refuse_change()"
        )


def _begin_log() -> None:
    """Writes events that hold the votes and imports of version 1, so that the log alone gives the whole state."""
    at = op.get_bind().exec_driver_sql(_CLOCK[op.get_bind().dialect.name]).scalar()
    number, digest = 0, ""
    for table, order in (("votes", "id"), ("vote_completions", "vote_id, position"), ("imports", "id")):
        rows = iter(op.get_bind().execute(sa.text(f"SELECT * FROM {table} ORDER BY {order}")).mappings().all())
        while batch := [_to_row(row) for row in islice(rows, BATCH_VOTES)]:
            body = json.dumps({"changes": [["insert", table, batch]]}, ensure_ascii=False, separators=(",", ":"))
            number += 1
            entry = [digest, number, at, "accord", "upgraded", body]
            text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            values = {"number": number, "at": at, "actor": "accord", "kind": "upgraded", "body": body, "digest": digest}
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            op.get_bind().execute(sa.text(f"INSERT INTO events ({names}) VALUES ({places})"), values)


_CLOCK = {
    "sqlite": "SELECT strftime('%Y-%m-%dT%H:%M:%S.000000Z', 'now')",
    "postgresql": "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
}


def _to_row(row: sa.RowMapping) -> dict[str, object]:
    """A row as the log holds it: SQLite's 0 and 1 of `simulated` as false and true."""
    return {name: bool(value) if name == "simulated" else value for name, value in row.items()}
