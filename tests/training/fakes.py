"""What trainers' tests stand on: a checkpoint in memory, a progress that collects, models small enough to enumerate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from accord.models import Base, ChatTokenizer
from accord.types import Prompt, Silence


class Killed(Exception):
    """Stands for SIGKILL: raised where a test wants the run to end."""


class MemoryCheckpoint:
    """A `types.Checkpoint` that keeps the last save as bytes would: copies of tensors, state through JSON."""

    def __init__(self, kill_after_saves: int | None = None) -> None:
        self.saves = 0
        self.kill_after_saves = kill_after_saves
        self._last: tuple[dict[str, Tensor], str] | None = None

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._last = copies, json.dumps(state, allow_nan=False)
        self.saves += 1
        if self.saves == self.kill_after_saves:
            raise Killed

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self._last is None:
            return None
        tensors, state = self._last
        return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(state)


class CollectingProgress(Silence):
    """A `types.Progress` that remembers the rows it was given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.rows.append(dict(metrics))


class DigitTokenizer(ChatTokenizer):
    """A tokenizer whose text is a string of digits, one token each. PAD and EOS lie beyond the digits."""

    def __init__(self, digits: int, *, eos: bool) -> None:
        self.pad_id, self.eos_id = digits, digits + 1
        self.vocabulary = digits + 2 if eos else digits

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        assert prompt.text is not None
        return [int(c) for c in prompt.text]

    def encode_completion(self, completion: Any) -> list[int]:
        return [int(c) for c in completion.text] + [self.eos_id] * completion.finished

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(str(i) for i in ids if i < self.pad_id)


def build_digit_base(
    digits: int = 4, *, eos: bool = False, split: int = 0, seed: int = 0, layers: int = 2, spread: float = 0.2
) -> Base:
    """A tiny random Llama over digits. Without `eos` its vocabulary is the digits: nothing else can be sampled."""
    tokens = DigitTokenizer(digits, eos=eos)
    config = LlamaConfig(
        vocab_size=tokens.vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        initializer_range=spread, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return Base(model, tokens, name="digits", split=split)


@torch.no_grad()
def enumerate_logprobs(base: Base, role: str | None, prompt: str, steps: int) -> Tensor:
    """log pi of every sequence of `steps` digits after `prompt`, in the order of `itertools.product`."""
    digits = base.tokens.pad_id
    sequences = torch.tensor(list(itertools.product(range(digits), repeat=steps)))
    head = torch.tensor([[int(c) for c in prompt]]).expand(len(sequences), -1)
    ids = torch.cat([head, sequences], dim=1)
    logits = base.compute_logits(role, ids, torch.ones_like(ids, dtype=torch.bool), steps)
    return torch.log_softmax(logits.double(), dim=-1).gather(2, sequences[:, :, None]).squeeze(2).sum(1)
