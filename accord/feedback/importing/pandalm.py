"""PandaLM's test set: an instruction with an input, two responses, and the verdicts of several people.

Implements the mapping that docs/formats.md lists. Source: Wang et al. 2023, "PandaLM", and its published data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from accord.errors import DataError
from accord.feedback.importing.chats import require_field
from accord.feedback.records import build_vote, parse_integer, require_answer, require_different, require_text
from accord.types import Choice, Completion, Prompt, Vote

VERDICTS: dict[int, Choice] = {0: "tie", 1: "a", 2: "b"}
ANNOTATOR_FIELD = re.compile(r"annotator(\d+)")


def claims_pandalm(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like PandaLM's: a first and a second response."""
    return "response1" in row or "response2" in row


def parse_pandalm(row: Mapping[str, Any], source: str) -> list[Vote]:
    """One comparison for each of `annotator1`, `annotator2`, ...; 0 is a tie, 1 and 2 name the response.

    The two models of `cmp_key` become the origins, so that a pair of texts that two pairs of models share stays two
    items of agreement. Raises DataError where a field is missing or of another type.
    """
    instruction = require_text(require_field(row, "instruction"), "instruction")
    extra = require_text(row.get("input") or "", "input")
    prompt = Prompt.from_user(f"{instruction}\n\n{extra}" if extra.strip() else instruction)
    origins = require_text(row.get("cmp_key") or "", "cmp_key").split("_")
    if len(origins) != 2:
        origins = ["", ""]
    answers = tuple(
        require_answer(Completion.from_text(require_text(require_field(row, name), name), origin=origin), name)
        for name, origin in zip(("response1", "response2"), origins, strict=True)
    )
    require_different(answers)
    voters = [(match[1], name) for name in row if (match := ANNOTATOR_FIELD.fullmatch(name))]
    if not voters:
        raise DataError("the field 'annotator1' is missing", mend="see docs/formats.md")
    votes = []
    for number, name in voters:
        verdict = parse_integer(require_field(row, name), name)
        if verdict not in VERDICTS:
            raise DataError(f"{name} is {verdict}, not 0, 1 or 2", mend="see docs/formats.md")
        votes.append(
            build_vote(
                id_source="",
                kind="comparison",
                prompt=prompt,
                completions=answers,
                annotator=f"pandalm-{number}",
                choice=VERDICTS[verdict],
                source=source,
            )
        )
    return votes
