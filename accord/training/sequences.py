"""Token trees for the trainers: encoding, left padding, length buckets, and the cached trunk.

Implements what reward models and SFT share: a tree is a prompt with one or more completions as token ids, encoded once
and padded on the left only as far as its micro-batch needs. Leaves out rollouts (their layout is fixed by
`types.Rollout`; see `experience`) and every objective.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.distributed import map_shared
from accord.models import Base
from accord.models.branches import PADDING, build_branch_inputs
from accord.types import Completion, Progress, Prompt

TRUNK_BATCH_TOKENS = 4096
"""Padded tokens in one pass over the trunk: enough to fill a CPU, small beside the cache itself."""


@dataclass(frozen=True)
class TokenTree:
    """A prompt and one or more completions of it as token ids, one behind the other.

    `branch_tokens` counts each completion's tokens, its EOS included; what comes before them in `ids` is the prompt.
    `trunk` is (T, H), the frozen trunk's hidden states of the T tokens, or None where the base is not split.
    """

    ids: tuple[int, ...]
    branch_tokens: tuple[int, ...]
    trunk: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.ids) - sum(self.branch_tokens) + max(self.branch_tokens)


@dataclass(frozen=True)
class TreeBatch:
    """B trees padded on the left to the longest, T columns, so that the last column is always a real token.

    input_ids (B, T) int64; branches (B, T) int64 as in models/branches.py: -1 padding, 0 prompt, k >= 1 the k-th
    completion; trunk (B, T, H) or None.
    """

    input_ids: Int[Tensor, "B T"]
    branches: Int[Tensor, "B T"]
    trunk: Float[Tensor, "B T H"] | None

    @property
    def attention_mask(self) -> Bool[Tensor, "B T"]:
        """True where a token is real."""
        return self.branches >= 0

    @property
    def completion_mask(self) -> Bool[Tensor, "B C"]:
        """Over the last C columns, C the longest completion: True where a completion's token stands."""
        real = self.branches >= 1
        return real[:, -int(real.sum(dim=1).max()) :]


def encode_tree(base: Base, prompt: Prompt, completions: Sequence[Completion]) -> TokenTree:
    """The prompt under the chat template, then each completion; EOS stands exactly where a completion was finished."""
    tails = [base.tokens.encode_completion(completion) for completion in completions]
    ids = (*base.tokens.encode_prompt(prompt), *(token for tail in tails for token in tail))
    return TokenTree(ids, tuple(map(len, tails)))


def build_batch(base: Base, trees: Sequence[TokenTree]) -> TreeBatch:
    """Pad `trees` on the left to the longest of them and move them to the base's device."""
    columns = max(map(len, trees))
    input_ids = torch.full((len(trees), columns), base.tokens.pad_id, dtype=torch.long)
    branches = torch.full((len(trees), columns), PADDING, dtype=torch.long)
    first = trees[0].trunk
    trunk = None if first is None else first.new_zeros((len(trees), columns, first.shape[-1]))
    for row, tree in enumerate(trees):
        start = columns - len(tree)
        input_ids[row, start:] = torch.tensor(tree.ids)
        counts = (len(tree) - sum(tree.branch_tokens), *tree.branch_tokens)
        branches[row, start:] = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        if trunk is not None and tree.trunk is not None:
            trunk[row, start:] = tree.trunk
    moved = None if trunk is None else trunk.to(base.device)
    return TreeBatch(input_ids.to(base.device), branches.to(base.device), moved)


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


def cache_trunk(base: Base, trees: Sequence[TokenTree], progress: Progress) -> list[TokenTree]:
    """The same trees with their trunk states, computed once for all epochs; unchanged where `base.split == 0`.

    Memory: tokens * hidden_size * bytes of the base's dtype, on the CPU (1,000 pairs of 160 tokens at width 576 in
    bfloat16: 0.18 GB).
    """
    if base.split == 0:
        return list(trees)
    cached = list(trees)
    progress.begin("trunk", len(trees), "sequences")

    def compute(group: list[int]) -> list[Tensor]:
        batch = build_batch(base, [trees[i] for i in group])
        states = base.run_trunk(build_branch_inputs(base, batch.input_ids, batch.branches))
        assert states is not None, "a split base computes a trunk"
        progress.advance(len(group))
        return [row[-len(trees[i]) :].to("cpu", copy=True) for row, i in zip(states, group, strict=True)]

    groups = list(iterate_buckets([len(tree) for tree in trees], TRUNK_BATCH_TOKENS))
    for group, states in zip(groups, map_shared(compute, groups), strict=True):
        for index, kept in zip(group, states, strict=True):
            cached[index] = replace(trees[index], trunk=kept)
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
