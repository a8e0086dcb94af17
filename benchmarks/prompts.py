"""Prompts of an exact number of tokens, the same ids for every contestant.

Implements random words that a tokenizer reads one by one, and countdown prompts, with which each row of a batch stops
after a number of tokens of its own, whoever samples it. Leaves out prompts that mean something
(`accord.starter`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accord.types import Prompt
from benchmarks.processes import BenchmarkError

FORCED_LOGIT = 1e4
"""Beside it every other logit has probability 0 after a softmax, in any dtype."""


def find_word_ids(tokens: Any) -> list[int]:
    """Ids of `tokens` (an `accord.models.ChatTokenizer`) that are lower-case ASCII letters, a space before or not.

    Those with a space first, for they never merge with the token before them; without one only where too few have it.
    """
    texts = {i: tokens.decode([i]) for i in range(min(len(tokens.inner), tokens.vocabulary))}
    letters = [i for i, t in texts.items() if t.strip().isascii() and t.strip().isalpha() and t.islower()]
    spaced = [i for i in letters if texts[i].startswith(" ") and len(texts[i]) > 3]
    return spaced if len(spaced) >= 512 else letters


def build_prompts(tokens: Any, count: int, length_tokens: int, seed: int, endings: Sequence[int] = ()) -> list[Prompt]:
    """`count` text prompts of random words that encode to exactly `length_tokens` ids (a BOS of the tokenizer counts).

    endings: the last id of each prompt, where given.

    Raises:
        BenchmarkError: the tokenizer does not read words back as it wrote them.
    """
    words, source = find_word_ids(tokens), random.Random(seed)
    special = len(tokens.encode_prompt(Prompt(text="")))
    beginning = special if tokens.inner("", add_special_tokens=True)["input_ids"] else 0
    prompts: list[Prompt] = []
    for _ in range(200 * count):
        if len(prompts) == count:
            return prompts
        drawn = source.choices(words, k=length_tokens - beginning)
        if endings:
            drawn[-1] = endings[len(prompts)]
        prompt = Prompt(text=tokens.decode(drawn))
        if tokens.encode_prompt(prompt)[beginning:] == drawn:
            prompts.append(prompt)
    raise BenchmarkError(
        f"no prompts of exactly {length_tokens} tokens", where="tokenizer", mend="use a model with a byte-level BPE"
    )


class Countdown:
    """Makes every row stop at a limit of its own: the last token of a prompt says how many more are to come.

    Word k is followed by word k - 1, word 1 by EOS, whatever the model thinks: a hook writes the next token's logit
    over the LM head's output. All the model's work is done and all of the sampler's, in any batch and any order; only
    the outcome is known. `words[k]` is the id that stands for k more tokens, the EOS included.
    """

    def __init__(self, words: Sequence[int], eos_id: int, vocabulary: int) -> None:
        """`words`: distinct ids, the first of which stands for one more token."""
        self.words = (eos_id, *words)
        self._next = torch.full((vocabulary,), -1)
        for left in range(1, len(self.words)):
            self._next[self.words[left]] = self.words[left - 1]
        self._input_ids: Tensor | None = None

    def attach(self, model: nn.Module) -> Callable[[], None]:
        """Hook a transformers causal LM whose rows end in their last real token; returns what takes the hooks off."""
        self._next = self._next.to(next(model.parameters()).device)
        head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        hooks = [
            model.register_forward_pre_hook(self._remember, with_kwargs=True),
            head.register_forward_hook(self._force),
        ]

        def detach() -> None:
            for hook in hooks:
                hook.remove()

        return detach

    def _remember(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self._input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]

    def _force(self, head: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        """logits (B, K, V) or (B, V), of the last K columns."""
        assert self._input_ids is not None, "the model's forward comes before its head's"
        ids = self._input_ids[:, -logits.shape[1] :] if logits.dim() == 3 else self._input_ids[:, -1]
        return self.force(ids, logits)

    def force(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits (..., V) with that of the one token which may follow each of `ids` (...) above all others."""
        forced = self._next[ids].unsqueeze(-1)
        index = forced.clamp(min=0)
        value = torch.where(forced >= 0, FORCED_LOGIT, logits.gather(-1, index).float()).to(logits.dtype)
        return logits.scatter(-1, index, value)


def spread_limits(rows: int, shortest: int, longest: int, seed: int) -> list[int]:
    """`rows` numbers evenly spread from `shortest` to `longest`, both included, in shuffled order."""
    span = max(rows - 1, 1)
    limits = [shortest + round(i * (longest - shortest) / span) for i in range(rows)]
    random.Random(seed).shuffle(limits)
    return limits
