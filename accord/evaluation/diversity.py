"""Does the model still say different things? Distinct n-grams, one phrase everywhere, repetition in an answer.

Implements word-level measures: a word is a run of letters and digits or one punctuation mark, in lower case. Leaves out
embeddings and human judgement, and languages written without spaces, whose clauses count as one word here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"\w+|[^\w\s]")
PHRASE_WORDS = 5
REPETITION_WORDS = 4

Ngram = tuple[str, ...]


def split_words(text: str) -> list[str]:
    """Words and single punctuation marks of `text`, in lower case."""
    return _WORD.findall(text.lower())


def list_ngrams(words: Sequence[str], n: int) -> list[Ngram]:
    """All runs of `n` words, in order; none where there are fewer than `n`."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def compute_distinct(texts: Sequence[str], n: int) -> float | None:
    """distinct-n: different n-grams over all n-grams, pooled over `texts` (Li et al. 2016).

    None where there is no n-gram. It falls as the pooled text grows, so compare only sets of about equal size.
    """
    grams = [gram for text in texts for gram in list_ngrams(split_words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def compute_repetition(text: str, n: int = REPETITION_WORDS) -> float:
    """1 - different n-grams / n-grams within one completion (Welleck et al. 2020, seq-rep-n).

    0 where it is shorter than n words.
    """
    grams = list_ngrams(split_words(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def find_common_phrase(texts: Sequence[str], n: int = PHRASE_WORDS) -> tuple[str | None, float]:
    """The n-gram that occurs in most completions, and the share of completions that contain it.

    One completion has every phrase of its own, so the share is 0 where no two completions have a phrase in common.
    Ties go to the phrase met first.
    """
    counts: Counter[Ngram] = Counter()
    for text in texts:
        counts.update(list(dict.fromkeys(list_ngrams(split_words(text), n))))  # once a completion, in order
    if not counts:
        return None, 0.0
    phrase, count = counts.most_common(1)[0]
    return (" ".join(phrase), count / len(texts)) if count > 1 else (None, 0.0)


def compute_diversity(texts: Sequence[str]) -> dict[str, Any]:
    """Every measure of this file over one model's completions; the keys are explained in `glossary.GLOSSARY`."""
    phrase, share = find_common_phrase(texts)
    count = len(texts)
    return {
        "distinct_1": compute_distinct(texts, 1),
        "distinct_2": compute_distinct(texts, 2),
        "distinct_3": compute_distinct(texts, 3),
        "common_phrase": phrase,
        "common_phrase_share": share,
        "repetition": sum(map(compute_repetition, texts)) / count if count else None,
        "unique_share": len({text.strip() for text in texts}) / count if count else None,
    }
