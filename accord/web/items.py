"""An item to judge as the browser gets it: finished HTML, in the order that was drawn on the server, and nothing else.

Implements the view of a leased item. What would tell the answers' origin, the right answer of a gold item, or that an
item comes a second time, is not in a `LeasedItem` and so cannot get out here. Leaves out keys and painting (label.js).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from accord.feedback.items import LeasedItem
from accord.types import Completion, Message, Prompt
from accord.web.pages import render_template
from accord.web.rendering import SHOWN_CHARACTERS

# key, words, choice, strength: seven steps from "A is much better" to "B is much better", as the vote format has them
SCALE: tuple[tuple[str, str, str, int | None], ...] = (
    ("1", "A much better", "a", 7),
    ("2", "A better", "a", 4),
    ("3", "A slightly better", "a", 1),
    ("4", "About equal", "tie", None),
    ("5", "B slightly better", "b", 1),
    ("6", "B better", "b", 4),
    ("7", "B much better", "b", 7),
)
ARROWS = {"2": "arrowleft", "6": "arrowright"}
RATINGS: tuple[tuple[str, float], ...] = (("z", 0.0), *((str(i % 10), i / 10) for i in range(1, 11)))
"""Eleven steps of a rating with their keys: z for 0, then the row of digits from left to right."""

LETTERS = "ABCDEFGHI"


def view_item(leased: LeasedItem, now: datetime | None = None) -> dict[str, Any]:
    """`{"lease", "kind", "seconds_left", "html"}`: all that the browser learns of an item."""
    left = (datetime.fromisoformat(leased.expires_at) - (now or datetime.now(UTC))).total_seconds()
    return {
        "lease": leased.lease_id,
        "kind": leased.kind,
        "seconds_left": max(0, int(left)),
        "html": render_item(leased),
    }


def render_item(leased: LeasedItem) -> str:
    """The item's HTML."""
    answers = [
        {"letter": LETTERS[i], "turns": list_answer_turns(c), "text": c.text[:SHOWN_CHARACTERS], "finished": c.finished}
        for i, c in enumerate(leased.completions)
    ]
    return render_template(
        "item.html.j2",
        kind=leased.kind,
        turns=list_turns(leased.prompt),
        answers=answers,
        scale=SCALE,
        arrows=ARROWS,
        ratings=RATINGS,
    )


def list_turns(prompt: Prompt) -> tuple[Message, ...]:
    """The turns of the prompt; a bare text reads as one."""
    return prompt.messages or (Message("user", prompt.text or ""),)


def list_answer_turns(completion: Completion) -> tuple[Message, ...]:
    """The turns of the answer: usually one."""
    return completion.messages
