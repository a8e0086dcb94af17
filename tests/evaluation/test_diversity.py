"""Diversity of texts small enough to count by hand, and of text drawn from a known distribution."""

import pytest

from accord.evaluation.diversity import compute_distinct, compute_diversity, compute_repetition, find_common_phrase


def test_distinct_n_by_hand() -> None:
    texts = ["the cat the cat", "The dog!"]  # words: the cat the cat | the dog !
    assert compute_distinct(texts, 1) == pytest.approx(4 / 7)
    assert compute_distinct(texts, 2) == pytest.approx(4 / 5)  # the-cat cat-the the-cat | the-dog dog-!
    assert compute_distinct(texts, 3) == pytest.approx(3 / 3)
    assert compute_distinct(["short"], 3) is None


def test_one_phrase_everywhere() -> None:
    texts = ["i am so very glad to help", "well , i am so very glad", "something else entirely is said here", "no"]
    assert find_common_phrase(texts) == ("i am so very glad", 0.5)
    assert find_common_phrase(["one two three four five six", "other words are in here now"]) == (None, 0.0)
    chanting = ["a b c d e a b c d e a b c d e", "nothing like it is in this one"]
    assert find_common_phrase(chanting) == (None, 0.0), "a phrase counts once a completion"


def test_repetition_within_a_completion() -> None:
    assert compute_repetition("a b c d e f g") == 0.0
    assert compute_repetition("ha " * 10) == pytest.approx(1 - 1 / 7)
    assert compute_repetition("too short") == 0.0


def test_unique_share_ignores_surrounding_space() -> None:
    found = compute_diversity(["same", " same\n", "other"])
    assert found["unique_share"] == pytest.approx(2 / 3)
    assert compute_diversity([])["unique_share"] is None
