"""Worlds with a hidden utility: a base model, prompts, and what is truly good there.

Implements the toy world, whose language model is made on the spot and whose texts are strings of letters, so that a
whole experiment takes seconds. Leaves out votes, reward models and policies (`experiment`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from accord.errors import DataError
from accord.models import Base, ChatTokenizer, LoraSettings
from accord.types import Completion, Prompt, TextReward, derive_seed

LETTERS = "abcdefghijkl"
PROMPT_LETTERS, ANSWER_LETTERS = 4, 8
TOY_PROMPTS = 11264
MONOTONY_COST, MONOTONY_FREE = 5.0, 0.35
"""The toy's utility takes this much for a point of concentration beyond what is free (`build_letter_utility`)."""


@dataclass(frozen=True)
class World:
    """base, and different prompts in an order that decides who gets which.

    utility: the truth. Answers have `max_new_tokens`.
    """

    base: Base
    prompts: Sequence[Prompt]
    utility: TextReward
    lora: LoraSettings
    max_new_tokens: int
    temperature: float


class LetterTokenizer(ChatTokenizer):
    """Letters as tokens. PAD and EOS lie beyond the vocabulary: all answers have one length, and nothing is padded."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.pad_id, self.eos_id = len(letters), len(letters) + 1
        self.vocabulary = len(letters)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's letters."""
        if prompt.text is None:
            raise DataError("a chat has no letters", mend="give the toy world a text")
        return [self.letters.index(c) for c in prompt.text]

    def encode_completion(self, completion: Completion) -> list[int]:
        """The answer's letters; it is never finished."""
        return [self.letters.index(c) for c in completion.text]

    def decode(self, ids: Sequence[int]) -> str:
        """The letters of `ids`."""
        return "".join(self.letters[i] for i in ids if i < len(self.letters))


def build_toy_world(seed: int) -> World:
    """A random Llama of one layer over twelve letters, and letters of random worth: a new language each seed."""
    tokens = LetterTokenizer(LETTERS)
    config = LlamaConfig(
        vocab_size=tokens.vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=PROMPT_LETTERS + ANSWER_LETTERS,
        tie_word_embeddings=False, initializer_range=0.2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "toy model"))
        model = LlamaForCausalLM(config)
    source = random.Random(derive_seed(seed, "toy prompts"))
    texts = source.sample(list(map("".join, product(LETTERS, repeat=PROMPT_LETTERS))), TOY_PROMPTS)
    prompts = [Prompt(text=text) for text in texts]
    base = Base(model, tokens, name="toy", split=0)
    return World(base, prompts, build_letter_utility(seed), LoraSettings(8, 16), ANSWER_LETTERS, 1.0)


def build_letter_utility(seed: int) -> TextReward:
    """mean worth of the answer's letters - MONOTONY_COST max(0, sum of squared letter shares - MONOTONY_FREE).

    Worths are drawn from N(0, 1). The best answer is of a few good letters in turn; one letter over and over is bad
    whatever its worth, as is text that repeats itself.
    """
    source = random.Random(derive_seed(seed, "worths"))
    worth = {letter: source.gauss(0.0, 1.0) for letter in LETTERS}

    def utility(prompt: Prompt, completion: Completion) -> float:
        text = completion.text
        concentration = sum((count / len(text)) ** 2 for count in Counter(text).values())
        mean = sum(worth[letter] for letter in text) / len(text)
        return mean - MONOTONY_COST * max(0.0, concentration - MONOTONY_FREE)

    return utility
