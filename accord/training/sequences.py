"""Token sequences for the trainers: encoding, left padding, length buckets, and the cached trunk.

Implements what reward models and SFT share: a sequence is prompt + completion as token ids, encoded once and padded on
the left only as far as its micro-batch needs. Leaves out rollouts (their layout is fixed by `types.Rollout`; see
`experience`) and every objective.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.models import Base
from accord.types import Completion, Progress, Prompt

TRUNK_BATCH_TOKENS = 4096
"""Padded tokens in one pass over the trunk: enough to fill a CPU, small beside the cache itself."""


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with its completion as token ids. `completion_tokens` counts the completion's, the EOS included.

    `trunk` is (T, H), the frozen trunk's hidden states of its T tokens, or None where the base is not split.
    """

    ids: tuple[int, ...]
    completion_tokens: int
    trunk: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SequenceBatch:
    """B sequences padded on the left to the longest, T columns, so that the last column is always a real token.

    input_ids (B, T) int64; attention_mask (B, T) bool; trunk (B, T, H) or None; completion_mask (B, C) bool over the
    last C columns, C the longest completion: True where a completion's token stands.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    trunk: Float[Tensor, "B T H"] | None
    completion_mask: Bool[Tensor, "B C"]


def encode_sequence(base: Base, prompt: Prompt, completion: Completion) -> TokenSequence:
    """The prompt under the chat template, then the completion; EOS stands exactly where the completion was finished."""
    head = base.tokens.encode_prompt(prompt)
    tail = base.tokens.encode_completion(completion)
    return TokenSequence((*head, *tail), len(tail))


def build_batch(base: Base, sequences: Sequence[TokenSequence]) -> SequenceBatch:
    """Pad `sequences` on the left to the longest of them and move them to the base's device."""
    columns = max(len(s) for s in sequences)
    answers = max(s.completion_tokens for s in sequences)
    input_ids = torch.full((len(sequences), columns), base.tokens.pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), columns), dtype=torch.bool)
    completion_mask = torch.zeros((len(sequences), answers), dtype=torch.bool)
    first = sequences[0].trunk
    trunk = None if first is None else first.new_zeros((len(sequences), columns, first.shape[-1]))
    for row, sequence in enumerate(sequences):
        input_ids[row, columns - len(sequence) :] = torch.tensor(sequence.ids)
        mask[row, columns - len(sequence) :] = True
        completion_mask[row, answers - sequence.completion_tokens :] = True
        if trunk is not None and sequence.trunk is not None:
            trunk[row, columns - len(sequence) :] = sequence.trunk
    device = base.device
    moved = None if trunk is None else trunk.to(device)
    return SequenceBatch(input_ids.to(device), mask.to(device), moved, completion_mask.to(device))


def iterate_buckets(lengths_tokens: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of all sequences in groups of similar length, longest first, each at most `batch_tokens` when padded."""
    group: list[int] = []
    for index in sorted(range(len(lengths_tokens)), key=lambda i: -lengths_tokens[i]):
        if group and (len(group) + 1) * lengths_tokens[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def cache_trunk(base: Base, sequences: Sequence[TokenSequence], progress: Progress) -> list[TokenSequence]:
    """The same sequences with their trunk states, computed once for all epochs; unchanged where `base.split == 0`.

    Memory: tokens * hidden_size * bytes of the base's dtype, on the CPU (1,000 pairs of 2 x 150 tokens at width 576 in
    bfloat16: 0.35 GB).
    """
    if base.split == 0:
        return list(sequences)
    cached = list(sequences)
    progress.begin("trunk", len(sequences), "sequences")
    for group in iterate_buckets([len(s) for s in sequences], TRUNK_BATCH_TOKENS):
        batch = build_batch(base, [sequences[i] for i in group])
        with torch.no_grad():
            states = base.compute_trunk(batch.input_ids, batch.attention_mask)
        assert states is not None, "a split base computes a trunk"
        for row, index in enumerate(group):
            sequence = sequences[index]
            kept = states[row, states.shape[1] - len(sequence) :].to("cpu", copy=True)
            cached[index] = TokenSequence(sequence.ids, sequence.completion_tokens, kept)
        progress.advance(len(group))
    return cached


def shuffle_in_buckets(
    lengths_tokens: Sequence[int], batch_size: int, seed: int, *, window: int = 8
) -> list[list[int]]:
    """Batches of one epoch: shuffled, but of similar length, so that little of a batch is padding.

    The order is shuffled; within each window of `window` batches the indices are sorted by length and cut into batches;
    then the batches are shuffled. Every index comes exactly once. Determined by `seed`.
    """
    source = random.Random(seed)
    order = list(range(len(lengths_tokens)))
    source.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        chunk = sorted(order[start : start + window * batch_size], key=lambda i: lengths_tokens[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    source.shuffle(batches)
    return batches
