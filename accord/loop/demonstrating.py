"""What people wrote in place of an answer: kept with the votes that it came with, read again by fine-tuning.

Implements the file `demonstrations.jsonl` of a votes artifact, so that a fine-tuned model can be traced to each edit.
Leaves out how edits are stored (`feedback.demonstrations`) and the training (`training.sft`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accord.feedback.demonstrations import read_demonstrations
from accord.loop.context import RunContext
from accord.types import Completion, Prompt
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

FILE = "demonstrations.jsonl"


def keep_demonstrations(context: RunContext, votes: Sequence[Mapping[str, Any]], draft: Draft) -> None:
    """Write the edits that came with these votes and still stand, if there are any."""
    kept = {row["id"] for row in votes}
    rows = [
        {
            "prompt": one.prompt.to_dict(),
            "completion": one.completion.to_dict(),
            "annotator": one.annotator,
            "vote": one.vote_id,
            "edited_from": one.edited_from,
        }
        for one in read_demonstrations(context.store.database)
        if one.vote_id in kept
    ]
    if rows:
        draft.write_jsonl(FILE, rows)
        draft.summary["demonstrations"] = len(rows)


def load_demonstrations(context: RunContext, stage: Stage) -> list[dict[str, Any]]:
    """The edits among the votes that the stage's preferences are made of, in their order."""
    rows: list[dict[str, Any]] = []
    for address in context.parent(stage, "preferences").manifest["parents"].values():
        kind, _, key = address.partition("/")
        votes = context.workspace.find(kind, key)
        if votes is not None and FILE in votes.manifest["files"]:
            rows += votes.read_jsonl(FILE)
    return rows


def build_examples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Prompt, Completion]]:
    """The rows as what fine-tuning learns from."""
    return [(Prompt.from_dict(row["prompt"]), Completion.from_dict(row["completion"])) for row in rows]
