"""OpenAssistant trees: one conversation tree a row, its replies ranked by people.

Implements one ranking for each turn with several ranked assistant replies; the prompt is the whole conversation above.
Leaves out ranked user turns (they are no answers), labels and emojis. Source: Köpf et al. 2023, "OpenAssistant
Conversations", and its published data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.errors import DataError
from accord.feedback.importing.chats import IMPORTED_ANNOTATOR, require_field
from accord.feedback.records import build_vote, parse_integer, require_answer, require_different, require_text
from accord.types import Completion, Message, Prompt, Vote

ROLE_OF = {"prompter": "user", "assistant": "assistant"}


def claims_oasst(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a tree: a message with replies, alone or under `prompt`."""
    return "message_tree_id" in row or "replies" in row


def parse_oasst(row: Mapping[str, Any], source: str) -> list[Vote]:
    """A ranking for each message that at least two ranked assistant replies answer; rank 0 becomes 1, the best.

    Published ranks merge those of several people, so the annotator is "imported". Replies that were deleted or carry
    no rank are left out. A tree without such a message gives no vote. Raises DataError where the tree is not one.
    """
    root = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
    votes = []
    waiting: list[tuple[Mapping[str, Any], tuple[Message, ...]]] = [(root, ())]
    while waiting:
        node, above = waiting.pop()
        conversation = (*above, _parse_message(node))
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
            raise DataError("replies is not a list of messages", mend="see docs/formats.md")
        ranked = [
            reply
            for reply in replies
            if reply.get("role") == "assistant" and reply.get("rank") is not None and not reply.get("deleted")
        ]
        if len(ranked) > 1:
            votes.append(_build_ranking(conversation, ranked, source))
        waiting += [(reply, conversation) for reply in reversed(replies)]
    return votes


def _parse_message(node: Mapping[str, Any]) -> Message:
    role = require_text(require_field(node, "role"), "role")
    if role not in ROLE_OF:
        raise DataError(f"unknown role {role!r}", mend=f"use one of {', '.join(ROLE_OF)}")
    return Message(ROLE_OF[role], require_text(require_field(node, "text"), "text"))


def _build_ranking(conversation: tuple[Message, ...], ranked: list[Mapping[str, Any]], source: str) -> Vote:
    answers = []
    for reply in ranked:
        origin = require_text(reply.get("model_name") or "", "model_name")
        answers.append(require_answer(Completion((_parse_message(reply),), origin=origin), "a reply"))
    require_different(tuple(answers))
    return build_vote(
        id_source="",
        kind="ranking",
        prompt=Prompt(messages=conversation),
        completions=tuple(answers),
        annotator=IMPORTED_ANNOTATOR,
        ranks=tuple(parse_integer(reply["rank"], "rank") + 1 for reply in ranked),
        source=source,
    )
