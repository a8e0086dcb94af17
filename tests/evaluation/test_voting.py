"""What votes say of policies and annotators: win rate, and drift on the same pairs against planted truth."""

from __future__ import annotations

import random

import pytest

from accord.evaluation.voting import compute_drift, compute_people_win_rate


def vote(source: random.Random, chance: float, votes: int) -> list[float]:
    return [float(source.random() < chance) for _ in range(votes)]


def cast(seed: int, flipped: bool = False, pairs: int = 200, votes: int = 5) -> dict[str, list[float]]:
    """Votes by one taste (P(a) of 0.1 or 0.9 by the pair), or by its opposite."""
    source = random.Random(seed)
    chances = {f"pair {i}": 0.9 if i % 2 else 0.1 for i in range(pairs)}
    return {name: vote(source, 1 - p if flipped else p, votes) for name, p in chances.items()}


def test_annotators_of_one_taste_do_not_drift() -> None:
    """Two votes of P = 0.9 agree with probability 0.81 + 0.01 = 0.82, within a round and across."""
    found = compute_drift(cast(1), cast(2), seed=0)
    assert found is not None and found["drifted"] is False
    assert found["agreement_across"]["value"] == pytest.approx(0.82, abs=0.02)
    assert found["agreement_within"]["value"] == pytest.approx(0.82, abs=0.02)
    assert found["drift"]["low"] < 0 < found["drift"]["high"]


def test_annotators_who_changed_their_minds_are_seen() -> None:
    """Votes of P = 0.9 and P = 0.1 agree with probability 2 * 0.09 = 0.18."""
    found = compute_drift(cast(1), cast(2, flipped=True), seed=0)
    assert found is not None and found["drifted"] is True
    assert found["agreement_across"]["value"] == pytest.approx(0.18, abs=0.02)


def test_one_vote_a_pair_cannot_tell_drift_from_disagreement() -> None:
    found = compute_drift(cast(1, votes=1), cast(2, votes=1), seed=0)
    assert found is not None and found["drift"] is None and found["drifted"] is None
    assert compute_drift(cast(1), {}, seed=0) is None


def test_votes_on_one_prompt_count_once() -> None:
    found = compute_people_win_rate([1.0, 1.0, 1.0, 0.0, 0.5], ["x", "x", "x", "y", "z"])
    assert found is not None and found.n == 3 and found.value == pytest.approx(0.5)
    assert compute_people_win_rate([], []) is None
