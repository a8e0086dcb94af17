"""What completions should have said, in people's own words: edits, for SFT.

Implements reading them. They are stored with the vote that they came with (`answering`) and stand as long as it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from accord.feedback import schema
from accord.feedback.database import Database
from accord.feedback.queue_schema import demonstrations
from accord.feedback.texts import messages_from_json, prompt_from_json
from accord.types import Completion, Prompt


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the completion that a person wrote for it. edited_from: the id of what they began with; vote_id: the
    vote that it came with. The completion's origin is "person:" and the annotator's name.
    """

    prompt: Prompt
    completion: Completion
    annotator: str
    created_at: str
    edited_from: str | None
    vote_id: str


def read_demonstrations(database: Database) -> Iterator[Demonstration]:
    """The demonstrations whose vote was neither superseded nor taken back, by time, then vote."""
    table, newer = demonstrations, schema.votes.alias("newer")
    query = (
        select(table, schema.prompts.c.body.label("prompt"), schema.completions.c.body.label("messages"))
        .join(schema.prompts, schema.prompts.c.id == table.c.prompt_id)
        .join(schema.completions, schema.completions.c.id == table.c.completion_id)
        .where(~select(newer.c.id).where(newer.c.supersedes == table.c.vote_id).exists())
        .order_by(table.c.created_at, table.c.vote_id)
    )
    with database.read() as connection:
        for row in connection.execute(query.execution_options(yield_per=2000)):
            completion = Completion(messages_from_json(row.messages), origin=f"person:{row.annotator}")
            yield Demonstration(
                prompt_from_json(row.prompt), completion, row.annotator, row.created_at, row.edited_from, row.vote_id
            )
