"""Rewards that any contestant can compute from a completion's text, with nothing but Python's own library."""

from __future__ import annotations

import re
from collections.abc import Callable

SHORT_LETTERS = 4
"""A word of at most so many letters is short."""


def score_short_words(text: str) -> float:
    """The share of short words among a completion's words, in [0, 1]; 0 for none. A style that PPO can learn."""
    words = re.findall(r"[A-Za-z]+", text)
    return sum(len(word) <= SHORT_LETTERS for word in words) / len(words) if words else 0.0


TEXT_REWARDS: dict[str, Callable[[str], float]] = {"short_words": score_short_words}
