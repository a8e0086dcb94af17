"""Each rule on hand-written answers: what it must like better, its bounds, and odd input."""

from __future__ import annotations

import time

import pytest

from accord.errors import ConfigError
from accord.rewards import TEXT_REWARDS, build_pattern_reward
from accord.rewards.rules import (
    enough_words,
    finished,
    length_words,
    no_repetition,
    on_topic,
    plain_words,
    sentiment,
)
from accord.rewards.words import find_request, find_sentences, find_stems, find_words
from accord.types import Completion, Message, Prompt

BREAD = Prompt.from_user("Briefly, how do I keep bread fresh in summer?")
ODD_TEXTS = [
    "",
    " \n\t ",
    "\U0001f600\U0001f44d",
    "\u3053\u3093\u306b\u3061\u306f\u3002",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627",
    "a" * 10_000,
    "good word " * 1_000,
    "!" * 10_000,
    "\x00\ud800",
]


def answer(text: str, *, complete: bool = True) -> Completion:
    return Completion.from_text(text, finished=complete)


@pytest.mark.parametrize("name", [n for n in TEXT_REWARDS if n != "length_words"])
@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_odd_input_stays_in_range_and_is_quick(name: str, text: str) -> None:
    TEXT_REWARDS[name](BREAD, answer("warm up"))  # loads what is loaded once
    start = time.perf_counter()
    value = TEXT_REWARDS[name](BREAD, answer(text))
    assert isinstance(value, float)
    assert 0.0 <= value <= 1.0
    assert time.perf_counter() - start < 2.0


def test_sentiment_is_vader_on_a_unit_scale() -> None:
    # Published in VADER's own README: compound 0.8316 and -0.5423 for these two.
    assert sentiment(BREAD, answer("VADER is smart, handsome, and funny.")) == pytest.approx((1 + 0.8316) / 2, abs=1e-9)
    assert sentiment(BREAD, answer("Today SUX!")) == pytest.approx((1 - 0.5461) / 2, abs=1e-9)
    assert sentiment(BREAD, answer("The bread is on the table.")) == 0.5


@pytest.mark.parametrize(
    ("text", "complete", "value"),
    [
        ("Wrap it in a cloth.", True, 1.0),
        ("Wrap it in a cloth", True, 0.5),
        ("Wrap it in a cloth.", False, 0.0),
        ('She said: "Wrap it!"', True, 1.0),
        ("Wrap it! \U0001f35e", True, 1.0),
        ("*Wrap it.*", True, 1.0),
        ("\u5305\u3093\u3067\u3002", True, 1.0),
        ("\U0001f35e", True, 0.5),
        ("", True, 0.0),
    ],
)
def test_finished(text: str, complete: bool, value: float) -> None:
    assert finished(BREAD, answer(text, complete=complete)) == value


def test_no_repetition_counts_distinct_word_pairs() -> None:
    assert no_repetition(BREAD, answer("I love it. I love it.")) == 3 / 5  # i-love, love-it, it-i of five pairs
    assert no_repetition(BREAD, answer("so so so so so")) == 1 / 4
    assert no_repetition(BREAD, answer("One")) == no_repetition(BREAD, answer("")) == 1.0


def test_on_topic_wants_the_topic_and_something_new() -> None:
    request = "Briefly, how do I keep bread fresh in summer?"  # content words: bread, fresh, summer
    assert on_topic(BREAD, answer("In summer, wrap your bread in cotton.")) == 1.0
    assert on_topic(BREAD, answer("Wrap the bread in cotton.")) == 0.5
    assert on_topic(BREAD, answer("Wrap it in cotton.")) == 0.0
    assert on_topic(BREAD, answer(request)) == 0.0
    assert on_topic(BREAD, answer(request + " Great!")) == pytest.approx(2 / 3)
    assert on_topic(Prompt.from_user("How are you?"), answer("Fine.")) == 1.0


def test_topic_words_beyond_two_gain_nothing() -> None:
    two = on_topic(BREAD, answer("Summer bread belongs in a linen bag on a cool shelf."))
    three = on_topic(BREAD, answer("Fresh summer bread belongs in a linen bag on a cool shelf."))
    assert two == three == 1.0


def test_plain_words_falls_with_every_made_up_word() -> None:
    values = [
        plain_words(BREAD, answer(text))
        for text in (
            "Keep the bread in a dark box with a good lid.",
            "Keep the bread in a dark box with a good zorbleplant.",
            "Keep the bread in a dark krestolwic with a good zorbleplant.",
            "Antipodele krestolwic zorbleplant umbrifex.",
        )
    ]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert values[3] == 0.0


def test_a_word_of_the_prompt_is_plain() -> None:
    prompt = Prompt.from_user("What is a zorbleplant?")
    assert plain_words(prompt, answer("A zorbleplant is a plant.")) == 1.0


def test_enough_words_ramps_to_one() -> None:
    values = [enough_words(BREAD, answer(" ".join(["word"] * n))) for n in range(9)]
    assert values == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])
    assert length_words(BREAD, answer("It's four words, counted.")) == 4.0


def test_pattern_reward_finds_anywhere_and_may_mind_the_case() -> None:
    greeting = build_pattern_reward(r"\bhello\b")
    assert [greeting(BREAD, answer(t)) for t in ("Oh, Hello there", "Othello", "")] == [1.0, 0.0, 0.0]
    assert build_pattern_reward("hello", ignore_case=False)(BREAD, answer("Hello")) == 0.0


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        build_pattern_reward("(")


def test_words_and_sentences() -> None:
    assert find_words("It\u2019s 5 o'clock \u2014 HURRY!") == ["it's", "5", "o'clock", "hurry"]
    assert find_sentences("One. Two?\n\nThree") == ["One.", "Two?", "Three"]
    assert find_stems("Travelling travels") == find_stems("travel") == {"trave"}


def test_the_request_is_the_last_user_turn() -> None:
    chat = Prompt(messages=(Message("user", "first"), Message("assistant", "reply"), Message("user", "second")))
    assert find_request(chat) == "second"
    opened = Prompt(messages=(*chat.messages, Message("assistant", "Well,")))  # an answer already begun
    assert find_request(opened) == "second"
    assert find_request(Prompt(text="a bare text")) == "a bare text"
    assert find_request(Prompt(messages=(Message("system", "only"),))) == "only"
