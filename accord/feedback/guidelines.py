"""What annotators are asked to mind, in numbered versions.

Implements publishing and reading. A vote carries the version that its annotator had. Leaves out showing (`web`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from accord.errors import DataError
from accord.feedback import queue_schema
from accord.feedback.database import Database
from accord.feedback.records import require_text

MAX_CHARACTERS = 200_000


@dataclass(frozen=True)
class Guideline:
    """One version of the guidelines. version: "1", "2", ... text: Markdown. created_at: ISO 8601."""

    version: str
    text: str
    author: str
    created_at: str


class Guidelines:
    """The guidelines of a project. Versions are never changed; a new text is a new version."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def publish(self, text: str, *, author: str, now: datetime | None = None) -> Guideline:
        """Stores a new version; the latest one's text again is none. Raises DataError where it is empty."""
        require_text(text, "the guidelines")
        if not text.strip() or len(text) > MAX_CHARACTERS or "\0" in text:
            raise DataError("the guidelines are empty or too long", mend=f"write up to {MAX_CHARACTERS} characters")
        table = queue_schema.guidelines
        with self.database.write("guidelines_published", author, now) as transaction:
            last = transaction.execute(select(table).order_by(table.c.number.desc()).limit(1)).first()
            if last is not None and last.text == text:
                return _from_row(last)
            number = last.number + 1 if last is not None else 1
            row = {"number": number, "text": text, "author": author, "created_at": transaction.at}
            transaction.insert(table, [row])
            return Guideline(str(number), text, author, transaction.at)

    def latest(self) -> Guideline | None:
        """The version in force; None where nothing was published."""
        table = queue_schema.guidelines
        newest = select(func.max(table.c.number)).scalar_subquery()
        with self.database.read() as connection:
            row = connection.execute(select(table).where(table.c.number == newest)).first()
        return _from_row(row) if row else None

    def find(self, version: str) -> Guideline | None:
        """The version, or None."""
        if not version.isdecimal() or len(version) > 9:
            return None
        table = queue_schema.guidelines
        with self.database.read() as connection:
            row = connection.execute(select(table).where(table.c.number == int(version))).first()
        return _from_row(row) if row else None

    def list(self) -> list[Guideline]:
        """Every version, oldest first."""
        table = queue_schema.guidelines
        with self.database.read() as connection:
            return [_from_row(row) for row in connection.execute(select(table).order_by(table.c.number))]


def _from_row(row: Any) -> Guideline:
    return Guideline(str(row.number), row.text, row.author, row.created_at)
