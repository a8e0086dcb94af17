"""A vote as JSON, and back: the strict reader and writer behind 'one vote per line', parquet and the importers.

Implements the parsing of prompts, completions and votes from untrusted values, with a plain reason for each refusal,
and a vote's content id. Leaves out files (`importing`, `exporting`) and the database (`store`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from accord.errors import DataError
from accord.types import ROLES, Completion, Message, Prompt, Vote, compute_content_id

FORMATS_PAGE = "see docs/formats.md"
ADJUDICATION = "adjudication"  # the source of votes that are an owner's verdicts (`adjudication`)
VOTE_FIELDS = (
    "id",
    "kind",
    "prompt",
    "completions",
    "annotator",
    "choice",
    "strength",
    "ranks",
    "rating",
    "flag",
    "created_at",
    "guideline_version",
    "simulated",
    "source",
    "supersedes",
)


def vote_to_dict(vote: Vote) -> dict[str, Any]:
    """The line of a votes file: every field by its name, None where it does not apply; ranks as a list."""
    return {
        "id": vote.id,
        "kind": vote.kind,
        "prompt": vote.prompt.to_dict(),
        "completions": [completion.to_dict() for completion in vote.completions],
        "annotator": vote.annotator,
        "choice": vote.choice,
        "strength": vote.strength,
        "ranks": None if vote.ranks is None else list(vote.ranks),
        "rating": vote.rating,
        "flag": vote.flag,
        "created_at": vote.created_at,
        "guideline_version": vote.guideline_version,
        "simulated": vote.simulated,
        "source": vote.source,
        "supersedes": vote.supersedes,
    }


def compute_vote_hash(vote: Vote) -> str:
    """Content hash of every field but `id` and `source`, the completions' origins included; 16 hex digits.

    Two votes of one id must have one hash. The source is left out, because a file may be renamed.
    """
    row = vote_to_dict(vote)
    return compute_content_id({name: value for name, value in row.items() if name not in ("id", "source")})


def build_vote(*, id_source: str | None = None, **fields: Any) -> Vote:
    """A vote named by its content: the id is a hash of all other fields.

    An importer gives `id_source=""` to stand in for `source` there, so that a row has one id whatever its file's name.
    Raises DataError where the fields do not make a vote (see `types.Vote`).
    """
    draft = Vote(id="", **fields)
    named = draft.source if id_source is None else id_source
    return replace(draft, id=compute_content_id([compute_vote_hash(draft), named]))


def require_text(value: object, what: str) -> str:
    """`value`, if it is a string that UTF-8 can hold. Raises DataError otherwise."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {_describe(value)}, not a text", mend=FORMATS_PAGE)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half of a surrogate pair", mend="write the text as valid Unicode") from error
    return value


def parse_messages(value: object, what: str) -> tuple[Message, ...]:
    """A list of `{"role", "content"}`. Raises DataError where it is anything else, or empty."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{what} is {_describe(value)}, not a list of messages", mend=FORMATS_PAGE)
    messages = []
    for row in value:
        if not isinstance(row, Mapping) or not {"role", "content"} <= set(row):
            raise DataError(f"{what} has a message without role and content", mend=FORMATS_PAGE)
        role = require_text(row["role"], f"a role in {what}")
        if role not in ROLES:
            raise DataError(f"{what} has the unknown role {role!r}", mend=f"use one of {', '.join(ROLES)}")
        messages.append(Message(role, require_text(row["content"], f"a message in {what}")))
    return tuple(messages)


def parse_prompt(value: object, what: str = "prompt") -> Prompt:
    """A prompt from a string (a bare text), a list of messages (a chat), or `{"text"}` or `{"messages"}`."""
    if isinstance(value, Mapping):
        given = {key: item for key, item in value.items() if item is not None}
        if set(given) == {"text"}:
            return Prompt(text=require_text(given["text"], what))
        if set(given) == {"messages"}:
            return Prompt(messages=parse_messages(given["messages"], what))
        raise DataError(f"{what} has neither just messages nor just text", mend=FORMATS_PAGE)
    if isinstance(value, str):
        return Prompt(text=require_text(value, what))
    return Prompt(messages=parse_messages(value, what))


def parse_completion(value: object, what: str = "completion") -> Completion:
    """A completion from a string (one assistant message), a list of messages, or the object of `Completion.to_dict`."""
    finished, origin = True, ""
    if isinstance(value, str):
        messages: tuple[Message, ...] = (Message("assistant", require_text(value, what)),)
    elif isinstance(value, Mapping):
        unknown = set(value) - {"messages", "finished", "origin"}
        if unknown:
            raise DataError(f"{what} has the unknown field {sorted(map(str, unknown))[0]!r}", mend=FORMATS_PAGE)
        messages = parse_messages(value.get("messages"), what)
        finished = parse_flag(value.get("finished"), f"finished of {what}", default=True)
        origin = require_text(value.get("origin") or "", f"origin of {what}")
    else:
        messages = parse_messages(value, what)
    return Completion(messages, finished, origin)


def require_answer(completion: Completion, what: str = "completion") -> Completion:
    """`completion`, if there is something to judge in it. Raises DataError where its last message is blank."""
    if not completion.text.strip():
        raise DataError(f"{what} is empty", mend="leave such a pair out: nothing was answered")
    return completion


def parse_flag(value: object, what: str, *, default: bool) -> bool:
    """A boolean; `default` for None. Raises DataError where it is anything else."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise DataError(f"{what} is {_describe(value)}, not true or false", mend=FORMATS_PAGE)
    return value


def parse_integer(value: object, what: str) -> int:
    """An integer, also where a file has turned it into a float (3.0). Raises DataError where it is anything else."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{what} is {_describe(value)}, not a whole number", mend=FORMATS_PAGE)
    return value


def parse_number(value: object, what: str) -> float:
    """A finite number. Raises DataError where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{what} is {_describe(value)}, not a finite number", mend=FORMATS_PAGE)
    return float(value)


def parse_time(value: object) -> str:
    """A moment in ISO 8601 with its offset, as UTC with a trailing Z; "" for none. Raises DataError otherwise.

    A time that already is in that form stays as it is, to the character.
    """
    text = require_text(value, "created_at")
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"created_at {text!r} is not ISO 8601", mend="write 2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None:
        raise DataError(f"created_at {text!r} does not name its offset", mend="write 2026-01-31T12:00:00Z for UTC")
    if text.endswith("Z"):
        return text
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def vote_from_dict(row: Mapping[str, Any], source: str) -> Vote:
    """Inverse of `vote_to_dict`, strict: an unknown field, a wrong type or an impossible judgement raises DataError.

    `id` may be missing: then it is a hash of the row's other fields. `source` stands in where the row names none,
    and then is no part of that hash.
    """
    given = {key: value for key, value in row.items() if value is not None}
    unknown = set(given) - set(VOTE_FIELDS)
    if unknown:
        raise DataError(f"unknown field {sorted(unknown)[0]!r}", mend=f"use {', '.join(VOTE_FIELDS)}")
    for name in ("kind", "prompt", "completions", "annotator"):
        if name not in given:
            raise DataError(f"the field {name!r} is missing", mend=FORMATS_PAGE)
    if not isinstance(given["completions"], list):
        raise DataError("completions is not a list", mend=FORMATS_PAGE)
    fields: dict[str, Any] = {
        name: require_text(given[name], name)
        for name in ("kind", "annotator", "choice", "flag", "guideline_version", "supersedes")
        if name in given
    }
    fields["prompt"] = parse_prompt(given["prompt"])
    fields["completions"] = tuple(parse_completion(c, f"completion {i}") for i, c in enumerate(given["completions"], 1))
    if "strength" in given:
        fields["strength"] = parse_integer(given["strength"], "strength")
    if "ranks" in given:
        if not isinstance(given["ranks"], list):
            raise DataError("ranks is not a list", mend=FORMATS_PAGE)
        fields["ranks"] = tuple(parse_integer(rank, "a rank") for rank in given["ranks"])
    if "rating" in given:
        fields["rating"] = parse_number(given["rating"], "rating")
    fields["created_at"] = parse_time(given.get("created_at", ""))
    fields["simulated"] = parse_flag(given.get("simulated"), "simulated", default=False)
    fields["source"] = require_text(given.get("source", source), "source")
    if "id" in given:
        return Vote(id=_require_id(given["id"]), **fields)
    return build_vote(id_source=given.get("source", ""), **fields)


def require_different(completions: tuple[Completion, ...]) -> None:
    """Raises DataError where two of the completions of one vote say the same."""
    if len({completion.messages for completion in completions}) < len(completions):
        raise DataError("two of the answers are identical", mend="leave such a pair out: it teaches nothing")


def _require_id(value: object) -> str:
    text = require_text(value, "id")
    if not text:
        raise DataError("the id is empty", mend="leave the field out to have the vote named by its content")
    return text


def _describe(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "missing", bool: "a boolean"}
    return names.get(type(value), f"{type(value).__name__} {value!r}"[:60])
