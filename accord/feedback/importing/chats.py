"""What the chosen/rejected formats share: two whole chats in, one comparison out.

Implements the cut between prompt and completions and the choice of sides. Leaves out each format's own syntax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.errors import DataError
from accord.feedback.records import build_vote, require_answer, require_different
from accord.types import Completion, Message, Prompt, Vote, compute_content_id

IMPORTED_ANNOTATOR = "imported"


def require_field(row: Mapping[str, Any], name: str) -> Any:
    """`row[name]`. Raises DataError where it is missing or null."""
    value = row.get(name)
    if value is None:
        raise DataError(f"the field {name!r} is missing", mend="see docs/formats.md")
    return value


def split_chats(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Prompt, Completion, Completion]:
    """The shared beginning as the prompt, all turns from there on as the two completions.

    The cut is the last place where the chats are still equal and both go on with the assistant. So a completion
    always begins with the assistant; where the chats part at a user's turn, it begins with the assistant's turn before
    it, and holds every turn after. Raises DataError where the chats are equal or share no beginning.
    """
    if chosen == rejected:
        raise DataError("the chosen and the rejected chat are identical", mend="leave such a pair out")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    for cut in range(min(shared, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut].role == rejected[cut].role == "assistant":
            return Prompt(messages=chosen[:cut]), Completion(chosen[cut:]), Completion(rejected[cut:])
    raise DataError("the two chats share no beginning that an assistant answers", mend="give the prompt they answer")


def build_chosen_vote(prompt: Prompt, chosen: Completion, rejected: Completion, source: str) -> Vote:
    """The comparison that prefers `chosen`, by the annotator "imported".

    Such files do not say which answer was shown first. The sides follow from a hash of the texts, so that about half
    of the chosen ones are a, and no aggregation mistakes the file's order for a habit of the annotator.
    Raises DataError where an answer is empty, does not end with the assistant, or both are identical.
    """
    for completion, what in ((chosen, "chosen"), (rejected, "rejected")):
        if completion.messages[-1].role != "assistant":
            raise DataError(f"{what} does not end with the assistant's turn", mend="leave such a pair out")
        require_answer(completion, what)
    require_different((chosen, rejected))
    first, second = sorted((chosen, rejected), key=lambda c: compute_content_id([prompt.id, c.id]))
    return build_vote(
        id_source="",
        kind="comparison",
        prompt=prompt,
        completions=(first, second),
        annotator=IMPORTED_ANNOTATOR,
        choice="a" if first is chosen else "b",
        source=source,
    )
