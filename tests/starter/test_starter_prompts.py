"""The starter prompts are enough, well-formed and varied; nothing asked in training is asked again in evaluation."""

from __future__ import annotations

import re

import pytest

from accord.errors import DataError
from accord.starter import PARTS, load_starter_prompts
from accord.types import Prompt


def find_words(prompt: Prompt) -> list[str]:
    return re.findall(r"[a-z0-9'-]+", prompt.messages[-1].content.lower())


def find_five_grams(prompts: list[Prompt]) -> set[tuple[str, ...]]:
    return {tuple(w[i : i + 5]) for w in map(find_words, prompts) for i in range(len(w) - 4)}


def test_counts_and_distinct_ids() -> None:
    train, evaluation = load_starter_prompts("train"), load_starter_prompts("evaluation")
    assert (len(train), len(evaluation)) == (256, 96)
    assert len({p.id for p in train + evaluation}) == 352


@pytest.mark.parametrize("part", PARTS)
def test_each_prompt_is_one_short_ascii_request(part: str) -> None:
    for prompt in load_starter_prompts(part):
        assert [m.role for m in prompt.messages] == ["user"]
        content = prompt.messages[0].content
        assert content.isascii()
        assert content == content.strip()
        assert content[-1] in ".?!"
        assert 5 <= len(content.split()) <= 25, content


def test_parts_share_no_five_words_in_a_row() -> None:
    train, evaluation = load_starter_prompts("train"), load_starter_prompts("evaluation")
    assert not find_five_grams(train) & find_five_grams(evaluation)


def test_no_two_prompts_are_nearly_the_same() -> None:
    words = [set(find_words(p)) for part in PARTS for p in load_starter_prompts(part)]
    for i, first in enumerate(words):
        for second in words[:i]:
            assert len(first & second) / len(first | second) <= 0.5, (first, second)


@pytest.mark.parametrize("part", PARTS)
def test_about_a_third_ask_for_a_short_answer(part: str) -> None:
    contents = [p.messages[0].content.lower() for p in load_starter_prompts(part)]
    assert 0.25 <= sum("one sentence" in c or "brief" in c for c in contents) / len(contents) <= 0.42


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(DataError, match="no starter prompts named 'test'"):
        load_starter_prompts("test")
