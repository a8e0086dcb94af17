"""Marks of degenerate text: repetition, one phrase or word everywhere, length drift, a collapsed vocabulary, a switch
of script or language.

Implements thresholds on the completions of one look against those of the start, on the same prompts and seeds. Leaves
out rewards and judges: text may degenerate while both are pleased. Thresholds stand in `[alarm]`; docs/alarm.md.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from accord.config.schema import AlarmSection
from accord.evaluation.diversity import compute_repetition, find_common_phrase, list_ngrams, split_words
from accord.evaluation.wording import say_number, say_percent
from accord.looks import Alarm, Look

COMMON_WORDS = 30
"""The start's most frequent words: nearly all of them grammar, so that another language uses few of them."""

LANGUAGE_LOSS = 0.25
"""Share of its former rate below which the use of these words says that the language is another."""

LEAST_LETTERS = 200
"""Letters, and words, on both sides below which script and language are not judged."""

RARE_SHARE = 0.1
"""A word in at most so many of the start's answers was rare."""


def find_degeneration(start: Look, now: Look, cfg: AlarmSection) -> list[Alarm]:
    """Every mark that the completions of `now` show and those of `start` do not."""
    before, after = ([c.text for c in look.completions] for look in (start, now))
    checks = {
        "repetition": check_repetition(before, after, cfg.repetition_rise),
        "phrase": check_phrase(before, after, cfg.phrase_share),
        "word": check_word(before, after, cfg.word_share),
        "length": check_length(start.length_tokens, now.length_tokens, cfg.length_ratio),
        "vocabulary": check_vocabulary(before, after, cfg.vocabulary_share),
        "script": check_script(before, after, cfg.script_loss),
        "language": check_language(before, after),
    }
    return [Alarm(kind, now.update, reason) for kind, reason in checks.items() if reason]


def check_repetition(before: Sequence[str], after: Sequence[str], rise: float) -> str | None:
    """Share of word 4-grams that repeat within an answer, mean over answers, risen by more than `rise`."""
    old, new = (fmean(map(compute_repetition, texts)) for texts in (before, after))
    if new - old <= rise:
        return None
    rates = f"{say_percent(new)} of their 4-word runs were said before, {say_percent(old)} at the start"
    return f"Answers repeat themselves: {rates}."


def check_phrase(before: Sequence[str], after: Sequence[str], share: float) -> str | None:
    """One 5-gram in more than `share` of the answers, and more than twice as often as the start's favourite."""
    phrase, new = find_common_phrase(after)
    _, old = find_common_phrase(before)
    if phrase is None or new <= max(share, 2 * old):
        return None
    favourite = f"The start's favourite was in {say_percent(old)}."
    return f"One phrase is in {say_percent(new)} of the answers: {_quote(phrase)}. {favourite}"


def check_word(before: Sequence[str], after: Sequence[str], share: float) -> str | None:
    """A word that was rare at the start, now in more than `share` of the answers; the commonest such word."""
    old, new = count_documents(before), count_documents(after)
    risen = [(n, word) for word, n in new.items() if n > share * len(after) and old[word] <= RARE_SHARE * len(before)]
    if not risen:
        return None
    count, word = max(risen)
    return (
        f"One word is in {say_percent(count / len(after))} of the answers: {_quote(word)}. At the start it was in "
        f"{say_percent(old[word] / len(before))}."
    )


def check_length(before: Sequence[float], after: Sequence[float], ratio: float) -> str | None:
    """Mean length beyond `ratio` times the start's, or below 1 / `ratio` of it."""
    old, new = fmean(before), fmean(after)
    if old / ratio <= new <= old * ratio:
        return None
    way = "longer" if new > old else "shorter"
    return f"Answers have become much {way}: {say_number(new, 1)} tokens on average, {say_number(old, 1)} at the start."


def check_vocabulary(before: Sequence[str], after: Sequence[str], share: float) -> str | None:
    """Different word pairs over all, pooled over answers, below `share` of the start's.

    Distinct-2 falls as text grows, so each answer is cut to the words that it has on both sides.
    """
    pairs = [(split_words(old), split_words(new)) for old, new in zip(before, after, strict=True)]
    cut = [(old[: len(new)], new[: len(old)]) for old, new in pairs]
    old, new = (compute_distinct_pairs(words[side] for words in cut) for side in (0, 1))
    if old is None or new is None or new >= share * old:
        return None
    rates = f"{say_percent(new)} of the word pairs are different, {say_percent(old)} at the start"
    return f"The vocabulary has collapsed: {rates}."


def check_script(before: Sequence[str], after: Sequence[str], loss: float) -> str | None:
    """The share of letters in the start's main script (Latin, Han, ...) fallen by more than `loss`."""
    old, new = count_scripts(before), count_scripts(after)
    if min(old.total(), new.total()) < LEAST_LETTERS:
        return None
    main = max(old, key=lambda script: old[script])
    fallen = old[main] / old.total() - new[main] / new.total()
    if fallen <= loss:
        return None
    other = max((s for s in new if s != main), key=lambda script: new[script])
    share = say_percent(new[other] / new.total())
    return f"The script has changed: {share} of the letters are {other.title()}, not {main.title()}."


def check_language(before: Sequence[str], after: Sequence[str]) -> str | None:
    """The start's commonest words used less than `LANGUAGE_LOSS` as often: within one script, another language."""
    old, new = (Counter(w for text in texts for w in split_words(text) if w.isalpha()) for texts in (before, after))
    if min(old.total(), new.total()) < LEAST_LETTERS:
        return None
    common = [word for word, _ in old.most_common(COMMON_WORDS)]
    rate, now = (sum(words[w] for w in common) / words.total() for words in (old, new))
    if now >= LANGUAGE_LOSS * rate:
        return None
    return (
        f"The language has changed: the start's {COMMON_WORDS} commonest words were {say_percent(rate)} of all words "
        f"and are {say_percent(now)} now."
    )


def count_documents(texts: Iterable[str]) -> Counter[str]:
    """In how many of `texts` each word occurs; words as `diversity.split_words`, letters and digits only."""
    return Counter(word for text in texts for word in {w for w in split_words(text) if w.isalnum()})


def compute_distinct_pairs(texts: Iterable[Sequence[str]]) -> float | None:
    """Different word pairs over all of them, pooled over texts given as words; None where there is no pair."""
    pairs = [pair for words in texts for pair in list_ngrams(words, 2)]
    return len(set(pairs)) / len(pairs) if pairs else None


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Letters by script: the first word of their Unicode name (LATIN, CYRILLIC, CJK, ...)."""
    letters = (char for text in texts for char in text if char.isalpha())
    return Counter(unicodedata.name(char, "UNKNOWN").split(" ")[0] for char in letters)


def _quote(text: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{text}\N{RIGHT DOUBLE QUOTATION MARK}"
