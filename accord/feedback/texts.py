"""Prompts and completions in the database: each text once, under its content id.

Implements their JSON, inserting those that are missing, and reading by id. Leaves out who wrote a text: an origin
belongs to a showing (`vote_completions`, `item_completions`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Table, select

from accord.feedback import schema
from accord.feedback.log import Transaction
from accord.feedback.records import require_text
from accord.types import Completion, Message, Prompt

BATCH_TEXTS = 400  # so that a list of ids stays under every SQLite's limit on variables


def to_json(value: object) -> str:
    """Compact JSON. Raises DataError where a text in it is not valid Unicode."""
    return require_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), "a vote's text")


def prompt_from_json(body: str) -> Prompt:
    """A prompt from `prompts.body`."""
    return Prompt.from_dict(json.loads(body))


def messages_from_json(body: str) -> tuple[Message, ...]:
    """The messages from `completions.body`."""
    return tuple(Message(row["role"], row["content"]) for row in json.loads(body))


def insert_texts(transaction: Transaction, prompts: Iterable[Prompt], completions: Iterable[Completion]) -> None:
    """Stores those texts that are not there yet."""
    prompt_rows: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        key = prompt.id
        prompt_rows[key] = {"id": key, "body": to_json(prompt.to_dict())}
    completion_rows: dict[str, dict[str, Any]] = {}
    for answer in completions:
        key, body = answer.id, to_json([message.to_dict() for message in answer.messages])
        completion_rows[key] = {"id": key, "body": body, "finished": answer.finished}
    for table, rows in ((schema.prompts, prompt_rows), (schema.completions, completion_rows)):
        stored = _find_stored(transaction, table, list(rows))
        if missing := [row for key, row in rows.items() if key not in stored]:
            transaction.insert(table, missing)


def _find_stored(transaction: Transaction, table: Table, ids: Sequence[str]) -> set[str]:
    stored: set[str] = set()
    for start in range(0, len(ids), BATCH_TEXTS):
        query = select(table.c.id).where(table.c.id.in_(ids[start : start + BATCH_TEXTS]))
        stored.update(transaction.execute(query).scalars())
    return stored
