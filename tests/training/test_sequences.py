"""Padding, buckets and the cached trunk: nothing is lost, nothing comes twice, and little is padding."""

from __future__ import annotations

import random

import torch

from accord.models import LoraSettings
from accord.training.sequences import (
    TokenTree,
    build_batch,
    cache_trunk,
    iterate_buckets,
    shuffle_in_buckets,
)
from tests.training.fakes import CollectingProgress, build_digit_base

LENGTHS = [random.Random(i).randint(2, 40) for i in range(203)]


def test_every_sequence_comes_once_in_buckets_within_the_limit() -> None:
    groups = list(iterate_buckets(LENGTHS, 128))
    assert sorted(i for group in groups for i in group) == list(range(203))
    assert all(len(group) * max(LENGTHS[i] for i in group) <= 128 for group in groups)
    assert list(iterate_buckets([500], 128)) == [[0]], "one that is longer than the limit goes alone"


def test_batches_of_an_epoch_are_shuffled_complete_and_of_similar_length() -> None:
    batches = shuffle_in_buckets(LENGTHS, 8, seed=0)
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    assert len(batches) == 26
    assert batches == shuffle_in_buckets(LENGTHS, 8, seed=0)
    assert batches != shuffle_in_buckets(LENGTHS, 8, seed=1)
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    assert padded < 1.25 * sum(LENGTHS), "an unsorted shuffle pads by about 1.8"


def test_a_batch_is_padded_on_the_left_and_marks_the_completions() -> None:
    base = build_digit_base(4, eos=True, split=1)
    batch = build_batch(base, [TokenTree((0, 1, 2), (1,)), TokenTree((3, 2, 1, 0, 5), (3,))])
    assert batch.input_ids.tolist() == [[4, 4, 0, 1, 2], [3, 2, 1, 0, 5]]
    assert batch.attention_mask.tolist() == [[False, False, True, True, True], [True] * 5]
    assert batch.completion_mask.tolist() == [[False, False, True], [True, True, True]]


def test_the_cached_trunk_is_the_trunk() -> None:
    base = build_digit_base(4, eos=True, split=1)
    base.add_scorer("reward", lora=LoraSettings(2, 4), seed=0)
    with torch.no_grad():
        base.load_state("reward", {n: v + 0.1 for n, v in base.state("reward").items()})
    source = random.Random(0)
    sequences = [TokenTree(tuple(source.choices(range(6), k=source.randint(2, 20))), (1,)) for _ in range(30)]
    cached = cache_trunk(base, sequences, CollectingProgress())
    assert [s.ids for s in cached] == [s.ids for s in sequences]
    with torch.no_grad():
        for plain, kept in ((sequences[:7], cached[:7]), (sequences[5:6], cached[5:6])):
            a, b = build_batch(base, plain), build_batch(base, kept)
            assert b.trunk is not None
            torch.testing.assert_close(
                base.compute_scores("reward", a.input_ids, a.attention_mask),
                base.compute_scores("reward", b.input_ids, b.attention_mask, b.trunk),
                atol=1e-5,
                rtol=1e-5,
            )
