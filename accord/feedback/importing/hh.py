"""Anthropic HH transcripts: `chosen` and `rejected` as one text each, a blank line and "Human:" or "Assistant:" a turn.

Implements reading and writing. Leaves out system turns and bare texts, which the format has no words for.
Source: Bai et al. 2022, "Training a Helpful and Harmless Assistant", and its published data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from accord.errors import DataError
from accord.feedback.importing.chats import build_chosen_vote, require_field, split_chats
from accord.feedback.records import require_text
from accord.types import Message, Vote

MARKER = re.compile(r"\n\n(Human|Assistant):")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
NAME_OF = {role: name for name, role in ROLE_OF.items()}


def claims_hh(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like HH: a chosen or rejected text that begins with a marker, and no prompt of its own."""
    texts = (row.get("chosen"), row.get("rejected"))
    return row.get("prompt") is None and any(isinstance(text, str) and MARKER.match(text) for text in texts)


def parse_hh(row: Mapping[str, Any], source: str) -> list[Vote]:
    """One comparison. The shared turns are the prompt. Raises DataError where the row does not hold one."""
    chosen, rejected = (
        parse_transcript(require_text(require_field(row, name), name), name) for name in ("chosen", "rejected")
    )
    return [build_chosen_vote(*split_chats(chosen, rejected), source)]


def parse_transcript(text: str, what: str) -> tuple[Message, ...]:
    """The turns of a transcript, to the character: only the one space after a marker is not content."""
    head, *turns = MARKER.split(text)
    if head or not turns:
        raise DataError(f"{what} does not begin with '\\n\\nHuman:'", mend="see docs/formats.md")
    return tuple(
        Message(ROLE_OF[name], content.removeprefix(" ")) for name, content in zip(turns[::2], turns[1::2], strict=True)
    )


def format_transcript(messages: Sequence[Message]) -> str:
    """Inverse of `parse_transcript`. Raises DataError where the turns would come back as others."""
    for message in messages:
        if message.role not in NAME_OF:
            raise DataError(f"HH has no word for a {message.role} turn", mend="export as trl or votes")
    text = "".join(f"\n\n{NAME_OF[message.role]}: {message.content}" for message in messages)
    if parse_transcript(text, "the transcript") != tuple(messages):
        raise DataError("a turn holds HH's own mark of a new turn", mend="export as trl or votes")
    return text
