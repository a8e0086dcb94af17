"""The split by prompt: exact size, no memory of order, mostly stable, independent by label."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.errors import DataError
from accord.feedback.splits import split_by_prompt

IDS = [f"{i:016x}" for i in range(200)]


@given(ids=st.sets(st.text("0123456789abcdef", min_size=1), max_size=30), fraction=st.floats(0, 1), order=st.randoms())
def test_size_is_exact_and_order_and_repeats_do_not_matter(ids, fraction, order) -> None:  # type: ignore[no-untyped-def]
    shuffled = sorted(ids) * 2
    order.shuffle(shuffled)
    chosen = split_by_prompt(ids, fraction, 7, "held-out")
    assert chosen == split_by_prompt(shuffled, fraction, 7, "held-out")
    assert len(chosen) == round(fraction * len(ids))
    assert chosen <= ids


def test_the_first_by_hash_is_chosen() -> None:
    first = min(IDS, key=lambda i: hashlib.sha256(f"3:x:{i}".encode()).hexdigest())
    assert split_by_prompt(IDS, 1 / len(IDS), 3, "x") == {first}


def test_prompts_added_later_leave_most_in_place() -> None:
    before = split_by_prompt(IDS[:150], 0.3, 0, "x")
    after = split_by_prompt(IDS, 0.3, 0, "x")
    assert len(before - after) <= 15


def test_labels_and_seeds_give_independent_halves() -> None:
    halves = [split_by_prompt(IDS, 0.5, seed, label) for seed, label in ((0, "x"), (0, "y"), (1, "x"))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 30 < len(halves[one] & halves[other]) < 70  # 50 expected, hypergeometric sd 3.5


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(DataError):
        split_by_prompt(IDS, fraction, 0, "x")
