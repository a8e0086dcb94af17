"""TRL preference rows: `chosen` and `rejected`, each a text or a list of messages, with or without `prompt`.

Implements both styles, standard and conversational, and both prompts, explicit and implicit. Leaves out unpaired rows
(`completion`, `label`) and tools. Source: TRL's documentation, "Dataset formats and types".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.errors import DataError
from accord.feedback.importing.chats import build_chosen_vote, require_field, split_chats
from accord.feedback.records import parse_messages, parse_prompt, require_text
from accord.types import Completion, Message, Prompt, Vote


def claims_trl(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a preference: it names a chosen or a rejected answer."""
    return row.get("chosen") is not None or row.get("rejected") is not None


def parse_trl(row: Mapping[str, Any], source: str) -> list[Vote]:
    """One comparison. Raises DataError where the row does not hold one.

    A text prompt is a bare text, and with chats as answers one user turn. Where the answers repeat the prompt's
    messages, these are taken off.
    """
    chosen, rejected = require_field(row, "chosen"), require_field(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = require_text(chosen, "chosen"), require_text(rejected, "rejected")
        if prompt is None:
            return [build_chosen_vote(*_split_texts(chosen, rejected), source)]
        answers = [Completion.from_text(chosen), Completion.from_text(rejected)]
        return [build_chosen_vote(parse_prompt(prompt), answers[0], answers[1], source)]
    chats = [parse_messages(chosen, "chosen"), parse_messages(rejected, "rejected")]
    if prompt is None:
        return [build_chosen_vote(*split_chats(chats[0], chats[1]), source)]
    opening = parse_prompt(prompt)
    if opening.text is not None:
        opening = Prompt.from_user(opening.text)
    answers = [Completion(_without_prompt(chat, opening)) for chat in chats]
    return [build_chosen_vote(opening, answers[0], answers[1], source)]


def _without_prompt(chat: tuple[Message, ...], prompt: Prompt) -> tuple[Message, ...]:
    """`chat` without the prompt's messages, where it begins with them and not with the assistant."""
    size = len(prompt.messages)
    if chat[0].role != "assistant" and chat[:size] == prompt.messages and len(chat) > size:
        return chat[size:]
    return chat


def _split_texts(chosen: str, rejected: str) -> tuple[Prompt, Completion, Completion]:
    """The shared beginning of two texts, back to the end of its last whole word."""
    if chosen == rejected:
        raise DataError("chosen and rejected are identical", mend="leave such a pair out")
    cut = 0
    for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one != other:
            break
        if one.isspace():
            cut = i  # the completions begin with the space, as in " blue" and " black"
    if not chosen[:cut].strip():
        raise DataError("chosen and rejected share no beginning", mend="give the prompt in a field of its own")
    return Prompt(text=chosen[:cut]), Completion.from_text(chosen[cut:]), Completion.from_text(rejected[cut:])
