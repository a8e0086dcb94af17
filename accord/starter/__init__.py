"""The starter prompts: everyday requests written for Accord, 256 to train on and 96 to evaluate on, apart.

Implements reading them from the installed package. Leaves out prompts of a user's own, read by the loop.
"""

from __future__ import annotations

import json
from importlib import resources

from accord.errors import DataError
from accord.types import Prompt

PARTS = ("train", "evaluation")


def load_starter_prompts(part: str) -> list[Prompt]:
    """The prompts of one part, in the file's order: chats of one user turn, ASCII, 5 to 25 words.

    Raises: DataError where `part` is neither "train" nor "evaluation".
    """
    if part not in PARTS:
        raise DataError(f"no starter prompts named {part!r}", mend=f"use one of {', '.join(PARTS)}")
    text = resources.files("accord.starter").joinpath(f"{part}.jsonl").read_text(encoding="utf-8")
    return [Prompt.from_dict(json.loads(line)) for line in text.splitlines()]
