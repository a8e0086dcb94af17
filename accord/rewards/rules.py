"""Rewards by rule: what can be read off a text without a learned model. Each is a `TextReward`.

Implements sentiment, finishing, repetition, topic, plain words, length, and a maker of rewards from a regular
expression. Leaves out judgement of truth or usefulness: no rule here knows whether an answer is right.
All are in [0, 1] but `length_words`.
"""

from __future__ import annotations

import functools
import re
from itertools import pairwise
from typing import Any

from accord.errors import ConfigError
from accord.rewards.words import find_request, find_stems, find_words, is_everyday_word
from accord.types import Completion, Prompt, TextReward

ENOUGH_WORDS = 6
"""From so many words on, an answer is long enough (`enough_words`)."""

BRIEF_WORDS = 40
"""Up to so many words an answer is brief (`brevity`)."""

TOPIC_WORDS = 2
"""So many of the prompt's content words taken up make an answer wholly on topic (`on_topic`)."""

UNKNOWN_COST = 3.0
"""`plain_words` is 0 where one word in so many, or more, is unknown."""

LONGEST_TEXT = 20_000
"""Characters of a text that `sentiment` reads: VADER's time grows with the square of the length."""

_CLOSING = frozenset(".!?\u2026\u3002\uff01\uff1f\u0964\u061f")


def sentiment(prompt: Prompt, completion: Completion) -> float:
    """(1 + c) / 2, where c in [-1, 1] is VADER's compound sentiment: 0.5 is neutral, higher is warmer.

    Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis".
    """
    compound = float(_load_vader().polarity_scores(completion.text[:LONGEST_TEXT])["compound"])
    return (1.0 + compound) / 2.0


def finished(prompt: Prompt, completion: Completion) -> float:
    """1 where the model stopped by itself after closing punctuation, 0.5 where it stopped without, 0 where it was cut.

    Quotes, brackets and emoji may follow the closing punctuation.
    """
    if not completion.finished or not completion.text.strip():
        return 0.0
    last = next((c for c in reversed(completion.text) if c in _CLOSING or c.isalnum()), "")
    return 1.0 if last in _CLOSING else 0.5


def no_repetition(prompt: Prompt, completion: Completion) -> float:
    """Distinct word pairs / word pairs (distinct-2): 1 where no two words follow each other twice.

    1 for fewer than two words. Source: Li et al. 2016, "A Diversity-Promoting Objective Function".
    """
    pairs = list(pairwise(find_words(completion.text)))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def on_topic(prompt: Prompt, completion: Completion) -> float:
    """Takes up the prompt's content words *and* adds its own: coverage * novelty.

    With s = content words shared by prompt and completion, p = those of the prompt, n = those only in the completion
    (all distinct): coverage = min(1, s / min(TOPIC_WORDS, p)), novelty = min(1, 2 n / s). So repeating the prompt
    scores 0, and beyond two of its words more of them gain nothing. 1 where the prompt has no content words.
    """
    asked, said = find_stems(find_request(prompt)), find_stems(completion.text)
    if not asked:
        return 1.0
    shared, new = len(asked & said), len(said - asked)
    if not shared:
        return 0.0
    return min(1.0, shared / min(TOPIC_WORDS, len(asked))) * min(1.0, 2.0 * new / shared)


def plain_words(prompt: Prompt, completion: Completion) -> float:
    """max(0, 1 - UNKNOWN_COST * u), where u is the share of words neither in everyday use nor in the prompt.

    Made-up words and bursts of another language, which a small model falls into at temperature 1, score low. 1 for no
    words. A text in another language than English scores 0.
    """
    words, asked = find_words(completion.text), set(find_words(find_request(prompt)))
    unknown = sum(1 for w in words if w not in asked and not is_everyday_word(w))
    return max(0.0, 1.0 - UNKNOWN_COST * unknown / len(words)) if words else 1.0


def enough_words(prompt: Prompt, completion: Completion) -> float:
    """min(1, words / ENOUGH_WORDS): 0 for an empty answer, 1 for a short sentence and anything longer."""
    return min(1.0, length_words(prompt, completion) / ENOUGH_WORDS)


def length_words(prompt: Prompt, completion: Completion) -> float:
    """The number of words, from 0 without an upper bound: the baseline that a reward model must beat."""
    return float(len(find_words(completion.text)))


def brevity(prompt: Prompt, completion: Completion) -> float:
    """min(1, BRIEF_WORDS / words): 1 for an answer of so many words or fewer, one half at twice as many."""
    return min(1.0, BRIEF_WORDS / max(1.0, length_words(prompt, completion)))


def build_pattern_reward(pattern: str, *, ignore_case: bool = True) -> TextReward:
    """A reward that is 1 where the regular expression `pattern` is found in the completion, else 0.

    Raises: ConfigError where `pattern` is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} is not a regular expression: {error}",
            where="build_pattern_reward",
            mend="write a pattern that Python's re.compile takes",
        ) from error

    def score(prompt: Prompt, completion: Completion) -> float:
        return 1.0 if compiled.search(completion.text) else 0.0

    return score


@functools.cache
def _load_vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
