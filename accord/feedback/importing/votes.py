"""Our own rows: one vote per line, every field by its name (`records`).

Implements the entry for IMPORTERS. The reading itself is `records.vote_from_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.feedback.records import require_answer, require_different, vote_from_dict
from accord.types import Vote


def claims_vote(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of our votes: it names a kind or an annotator beside completions."""
    return "completions" in row and ("kind" in row or "annotator" in row)


def parse_vote(row: Mapping[str, Any], source: str) -> list[Vote]:
    """One vote. Raises DataError where the row does not hold one, or answers are empty or identical."""
    vote = vote_from_dict(row, source)
    for number, completion in enumerate(vote.completions, 1):
        require_answer(completion, f"completion {number}")
    require_different(vote.completions)
    return [vote]
