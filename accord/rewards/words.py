"""What the text rewards call a word, a content word, an everyday word and a sentence.

Implements splitting for languages that put spaces between words, and a vocabulary of English. Leaves out real stemming,
and segmentation of scripts without spaces (Chinese, Japanese, Thai): there a run of letters counts as one word.
"""

from __future__ import annotations

import functools
import re

from accord.types import Prompt

STEM_LETTERS = 5
"""Two content words are the same where their first five letters are: travel, travels and travelling."""

REQUEST_WORDS = frozenset(
    """answer brief briefly explain give help let make please say sentence sentences short suggest tell thing things
    want way word words write""".split()  # noqa: SIM905 (one word a line would be longer than this file)
)
"""Words in which people ask, rather than what they ask about; no content words either."""

CONTRACTIONS = frozenset(
    """can't didn't doesn't don't i'd i'll i'm i've isn't it's let's that's they're we're what's won't you'll
    you're""".split()  # noqa: SIM905
)
"""Contracted function words, which scikit-learn's list lacks."""

INFLECTIONS = ("s", "es", "d", "ed", "ing", "er", "ly")
"""Endings without which a word is looked up again, with and without a final e."""

_WORD = re.compile(r"\w+(?:'\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f])\s+|\n+")


def find_words(text: str) -> list[str]:
    """The words of `text`, lower case, in order; punctuation and emoji are no words."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def find_sentences(text: str) -> list[str]:
    """`text` cut after closing punctuation and at line ends, without empty pieces."""
    return [s for s in (piece.strip() for piece in _SENTENCE_END.split(text)) if s]


def find_stems(text: str) -> frozenset[str]:
    """The distinct content words of `text`, each cut to its first `STEM_LETTERS` letters."""
    stop_words = _load_stop_words()
    return frozenset(w[:STEM_LETTERS] for w in find_words(text) if w not in stop_words and len(w) > 1)


def is_everyday_word(word: str) -> bool:
    """Whether people commonly use `word` (lower case), or its uninflected form, in English comments.

    One letter and what stands before an apostrophe are enough. The vocabulary is that of alt-profanity-check's
    vectorizer, 15,000 words each found in at least 1 of 10,000 comments, and scikit-learn's stop words.
    """
    word = word.split("'", maxsplit=1)[0]
    vocabulary = _load_vocabulary()
    if len(word) < 2 or word in vocabulary:
        return True
    stems = [word.removesuffix(ending) for ending in INFLECTIONS if word.endswith(ending)]
    return any(stem in vocabulary or stem + "e" in vocabulary for stem in stems)


def find_request(prompt: Prompt) -> str:
    """What the completion answers: the last user turn of a chat (its last turn where no user speaks), or the text."""
    if prompt.text is not None:
        return prompt.text
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), prompt.messages[-1].content)


@functools.cache
def _load_stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # about 1 s to import: only where it is used

    return frozenset(ENGLISH_STOP_WORDS) | REQUEST_WORDS | CONTRACTIONS


@functools.cache
def _load_vocabulary() -> frozenset[str]:
    from profanity_check.profanity_check import vectorizer  # loads scikit-learn and its model, about 2 s
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(vectorizer.vocabulary_) | frozenset(ENGLISH_STOP_WORDS)
