"""Items with a known answer from a file: what an owner is sure of, to see who reads before they judge.

Implements the reader. Leaves out asking (`items`: everybody is asked once) and what answers say of people (`worth`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.feedback.importing.rows import parse_rows
from accord.feedback.items import ItemKind, NewItem
from accord.feedback.records import parse_completion, parse_prompt
from accord.types import Prompt

KIND_OF_ANSWER: dict[str, ItemKind] = {"choice": "comparison", "ranks": "ranking", "rating": "rating"}
FIELDS = ("prompt", "completions", *KIND_OF_ANSWER)
ARM = "gold"


def read_gold_file(path: Path) -> list[NewItem]:
    """Items of a .jsonl file: `prompt` and `completions` as in a votes file, and one of `choice`, `ranks`, `rating`.

    A prompt that is a bare string is one turn of a user. Raises DataError where there is no such file or a line is no
    such item; it names file and line.
    """
    if not path.is_file():
        raise DataError("the gold items cannot be read: no such file", where=str(path), mend="check label.gold")
    return parse_rows(
        path, parse_gold, what="gold item", mend='{"prompt": "...", "completions": ["...", "..."], "choice": "a"}'
    )


def parse_gold(row: dict[str, Any]) -> NewItem:
    """One item with its known answer. Raises DataError where it is none."""
    if unknown := sorted(set(row) - set(FIELDS)):
        raise DataError(f"unknown field {unknown[0]!r}", mend=f"use {', '.join(FIELDS)}")
    answers = [name for name in KIND_OF_ANSWER if row.get(name) is not None]
    if len(answers) != 1 or not isinstance(row.get("completions"), list):
        raise DataError("it needs prompt, completions, and one of choice, ranks and rating")
    (name,) = answers
    given = row.get("prompt")
    return NewItem(
        KIND_OF_ANSWER[name],
        Prompt.from_user(given) if isinstance(given, str) else parse_prompt(given),
        tuple(parse_completion(value, f"completion {i}") for i, value in enumerate(row["completions"], 1)),
        gold={name: row[name]},
        arm=ARM,
        source=ARM,
    )
