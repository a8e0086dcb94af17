"""Rewards that any contestant can compute from a completion's text, with nothing but Python's own library."""

from __future__ import annotations

import re
from collections.abc import Callable

SHORT_LETTERS = 4
"""A word of at most so many letters is short."""


def score_short_words(text: str) -> float:
    """The share of short words among a completion's words, in [0, 1]; 0 for none. Learnt slowly."""
    words = re.findall(r"[A-Za-z]+", text)
    return sum(len(word) <= SHORT_LETTERS for word in words) / len(words) if words else 0.0


ENOUGH_ADDRESSES = 2
"""So many words that address the reader earn the whole reward."""


def score_second_person(text: str) -> float:
    """min(1, words among you, your, yours / ENOUGH_ADDRESSES): from 0, no such word, to 1. Learnt in few updates."""
    words = re.findall(r"\b(?:you|yours?)\b", text.lower())
    return min(1.0, len(words) / ENOUGH_ADDRESSES)


TEXT_REWARDS: dict[str, Callable[[str], float]] = {
    "second_person": score_second_person,
    "short_words": score_short_words,
}
