"""The demo's utility: kind, whole answers to the question win; no nonsense does."""

from __future__ import annotations

import pytest

from accord.rewards.rules import length_words
from accord.rewards.utility import QUALITIES, WEIGHTS, demo_utility
from accord.starter import load_starter_prompts
from accord.types import Completion, Prompt

GOOD = {
    "My first day at the bakery is tomorrow and I am nervous. Any words for me?": (
        "Being nervous before your first day is normal, and the bakery will be lucky to have you!"
    ),
    "What is the capital of Norway?": "The capital of Norway is Oslo, a lovely city by the sea.",
    "You are useless. You never understand what I want.": (
        "I am sorry that I seemed useless; tell me what you want and I will gladly try to understand it better."
    ),
    "How do I ask my boss politely for a day off?": (
        "Thank your boss for the time, say which day you need, and kindly ask whether it suits the team."
    ),
    "My soup is too salty. What can I do?": "Add a potato or some water, and your salty soup will taste great again.",
}
CLEARLY = 0.15
NONSENSE = {
    "one phrase": "I love it! Great!",
    "a longer phrase": "I love it so much, it is great and wonderful and lovely!",
    "a phrase again and again": "I love it! Great! " * 6,
    "a pile of kind words": "Wonderful, lovely, great, happy, beautiful, amazing, kind, joyful, perfect, brilliant!",
    "silence": "",
    "one word": "Great!",
    "an emoji": "\U0001f600",
    "made-up words": "Luxe slumah letal asumpara, antaben a pibir banu mera finsufu.",
    "rudeness": "Shut up, you stupid idiot, nobody cares about that damn question.",
}


def judge(prompt: str, text: str, *, complete: bool = True) -> float:
    return demo_utility(Prompt.from_user(prompt), Completion.from_text(text, finished=complete))


@pytest.mark.parametrize("prompt", GOOD)
def test_a_good_answer_scores_high(prompt: str) -> None:
    assert judge(prompt, GOOD[prompt]) > 0.8


@pytest.mark.parametrize("prompt", GOOD)
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_scores_clearly_below_a_good_answer(prompt: str, name: str) -> None:
    assert judge(prompt, NONSENSE[name]) < judge(prompt, GOOD[prompt]) - CLEARLY


@pytest.mark.parametrize("prompt", GOOD)
def test_the_prompt_repeated_scores_clearly_below(prompt: str) -> None:
    good = judge(prompt, GOOD[prompt])
    assert judge(prompt, prompt) < good - CLEARLY
    assert judge(prompt, f"{prompt} {prompt}") < good - CLEARLY


@pytest.mark.parametrize("prompt", GOOD)
def test_an_answer_cut_short_scores_clearly_below(prompt: str) -> None:
    assert judge(prompt, GOOD[prompt], complete=False) < judge(prompt, GOOD[prompt]) - CLEARLY


@pytest.mark.parametrize("prompt", GOOD)
def test_another_prompts_answer_scores_clearly_below(prompt: str) -> None:
    others = [judge(prompt, text) for other, text in GOOD.items() if other != prompt]
    assert sum(others) / len(others) < judge(prompt, GOOD[prompt]) - CLEARLY
    assert max(others) < judge(prompt, GOOD[prompt])  # one of them shares the word "day"


def test_no_fixed_phrase_wins_over_the_evaluation_prompts() -> None:
    """One kind, finished, plain sentence for all: the off-topic factor holds its mean near OFF_TOPIC_SHARE."""
    phrase = "I am so happy to help you, and I wish you a wonderful and lovely day, my dear friend!"
    values = [judge(p.messages[0].content, phrase) for p in load_starter_prompts("evaluation")]
    assert sum(values) / len(values) < 0.73


def test_silence_is_worth_nothing() -> None:
    assert judge("What is the capital of Norway?", "") == 0.0


def test_weights_are_a_mixture() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert min(WEIGHTS.values()) > 0
    assert set(WEIGHTS) == set(QUALITIES)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ("The soup is salty and horrible, so add sad water.", "The soup is salty and lovely, so add nice water."),
        ("Add damn potato pieces to the salty soup.", "Add some potato pieces to the salty soup."),
        ("Add potato pieces to the salty soup", "Add potato pieces to the salty soup."),
        ("Add zorbleplant pieces to the salty soup.", "Add potato pieces to the salty soup."),
        (
            "Add water and stir, add water and stir the salty soup.",
            "Add water and stir, then gently heat the salty soup.",
        ),
        ("Add potato pieces to it and stir.", "Add potato pieces to the soup and stir."),
        ("Salty soup needs water.", "Salty soup needs more water and time."),
    ],
    ids=["warmth", "harmless", "finished", "plain_words", "no_repetition", "on_topic", "enough_words"],
)
def test_rises_with_each_signal(worse: str, better: str) -> None:
    prompt = "My soup is too salty. What can I do?"
    assert judge(prompt, worse) < judge(prompt, better)


def test_length_alone_gains_nothing() -> None:
    """Beyond a sentence, the same neutral content at twice the length is not worth more."""
    prompt = Prompt.from_user("My soup is too salty. What can I do?")
    short = Completion.from_text("Add potato pieces to the salty soup.")
    long = Completion.from_text(
        "Add potato pieces to the salty soup. The potato takes in some of the water while it cooks."
    )
    assert length_words(prompt, long) > 2 * length_words(prompt, short)
    assert demo_utility(prompt, long) == pytest.approx(demo_utility(prompt, short), abs=0.02)
