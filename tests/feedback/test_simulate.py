"""Simulated annotators against the closed forms of their own probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from accord.errors import DataError
from accord.feedback.agreement import build_agreement_table, compute_pairwise_agreement
from accord.feedback.simulate import simulate_votes
from accord.types import Completion, Prompt, Vote


@dataclass(frozen=True)
class Annotator:
    name: str
    skill: float = 2.0
    side_bias: float = 0.0
    tie_rate: float = 0.0
    inconsistency: float = 0.0


def build_pairs(count: int) -> list[tuple[Prompt, Completion, Completion]]:
    return [
        (Prompt.from_user(f"q{i}"), Completion.from_text(f"a{i}"), Completion.from_text(f"b{i}")) for i in range(count)
    ]


def cast(
    annotators: Sequence[Annotator], difference: float, *, count: int = 4000, votes_per_pair: int = 1, seed: int = 0
) -> list[Vote]:
    """Votes on pairs whose first completion is better by `difference`."""
    return simulate_votes(
        build_pairs(count),
        lambda _, completion: difference if completion.text.startswith("a") else 0.0,
        annotators,
        votes_per_pair=votes_per_pair,
        seed=seed,
        source="test",
    )


def share(votes: list[Vote], choice: str) -> float:
    return sum(vote.choice == choice for vote in votes) / len(votes)


@pytest.mark.parametrize(
    "annotator, difference, expected",
    [
        (Annotator("plain", skill=2.0), 0.5, 0.7311),  # sigmoid(1)
        (Annotator("blind", skill=0.0), 3.0, 0.5),
        (Annotator("leaning", skill=0.0, side_bias=1.0), 0.0, 0.7311),
        (Annotator("contrary", skill=-2.0), 0.5, 0.2689),
        (Annotator("drunk", skill=2.0, inconsistency=0.5), 0.5, 0.6155),  # half of 0.7311, a quarter for the toss
        (Annotator("sure", skill=1000.0), -5.0, 0.0),
    ],
)
def test_choices_follow_the_logistic_law(annotator: Annotator, difference: float, expected: float) -> None:
    measured = share(cast([annotator], difference), "a")
    assert measured == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_ties_fade_as_the_difference_shows() -> None:
    annotator = Annotator("t", skill=2.0, tie_rate=0.4)
    for difference, expected in ((0.0, 0.4), (0.5, 0.4 / math.e), (5.0, 0.4 * math.exp(-10.0))):
        assert share(cast([annotator], difference), "tie") == pytest.approx(expected, abs=0.03)


def test_agreement_of_two_annotators_is_the_closed_form() -> None:
    """Two votes agree with probability p q + (1 - p)(1 - q)."""
    p, q = 1 / (1 + math.exp(-1.5)), 0.9 / (1 + math.exp(-0.5)) + 0.05
    votes = cast([Annotator("x", skill=3.0), Annotator("y", skill=1.0, inconsistency=0.1)], 0.5, votes_per_pair=2)
    measured = compute_pairwise_agreement(build_agreement_table(votes), resamples=0).estimate
    assert measured == pytest.approx(p * q + (1 - p) * (1 - q), abs=4 * math.sqrt(0.25 / 4000))


def test_instructgpt_agreement_can_be_dialled() -> None:
    """72.6 % on margins that are normal: E[p^2 + (1 - p)^2] is a one-dimensional integral in the skill."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    chance = 1 / (1 + np.exp(-2.35 * nodes))
    expected = float((weights * (chance**2 + (1 - chance) ** 2)).sum() / weights.sum())
    assert expected == pytest.approx(0.726, abs=0.002)
    generator = np.random.default_rng(0)
    pairs = build_pairs(4000)
    utility = {c.text: float(generator.normal()) / math.sqrt(2) for _, a, b in pairs for c in (a, b)}
    people = [Annotator("x", skill=2.35), Annotator("y", skill=2.35), Annotator("z", skill=2.35)]
    votes = simulate_votes(pairs, lambda _, c: utility[c.text], people, votes_per_pair=2, seed=1, source="test")
    measured = compute_pairwise_agreement(build_agreement_table(votes), resamples=0).estimate
    assert measured == pytest.approx(expected, abs=0.03)


def test_adding_a_pair_or_changing_a_colleague_changes_no_other_vote() -> None:
    people = [Annotator("x"), Annotator("y"), Annotator("z")]
    pairs = build_pairs(40)

    def cast_on(some: list[tuple[Prompt, Completion, Completion]]) -> set[str]:
        return {v.id for v in simulate_votes(some, lambda *_: 0.0, people, votes_per_pair=2, seed=0, source="test")}

    assert cast_on(pairs[20:]) < cast_on(pairs)
    assert cast_on(pairs[:20]) < cast_on(pairs)
    changed = {vote.id for vote in cast([*people[:2], replace(people[2], skill=9.0)], 0.3, count=20, votes_per_pair=2)}
    others = {vote.id for vote in cast(people, 0.3, count=20, votes_per_pair=2) if vote.annotator != "z"}
    assert others < changed


def test_everyone_gets_a_share_and_nobody_votes_twice_on_a_pair() -> None:
    votes = cast([Annotator(name) for name in "vwxyz"], 0.1, count=500, votes_per_pair=3)
    by_pair: dict[str, list[str]] = {}
    for vote in votes:
        by_pair.setdefault(vote.prompt.id, []).append(vote.annotator)
    assert all(len(set(names)) == 3 for names in by_pair.values())
    assert all(200 < sum(name in names for names in by_pair.values()) < 400 for name in "vwxyz")


def test_votes_are_marked_and_carry_the_simulated_clock() -> None:
    votes = cast([Annotator("x"), Annotator("y")], 0.3, count=30, votes_per_pair=2)
    assert all(vote.simulated and vote.source == "test" for vote in votes)
    assert {vote.created_at for vote in votes} == {"2000-01-01T00:00:00Z", "2000-01-01T00:00:01Z"}
    assert votes == cast([Annotator("x"), Annotator("y")], 0.3, count=30, votes_per_pair=2)
    other = cast([Annotator("x"), Annotator("y")], 0.3, count=30, votes_per_pair=2, seed=1)
    assert [vote.choice for vote in votes] != [vote.choice for vote in other]


def test_strength_grows_with_the_margin() -> None:
    strengths = [
        cast([Annotator("x", skill=1.0)], difference, count=1)[0].strength for difference in (0.01, 1, 2, 4, 50)
    ]
    assert strengths == sorted(strengths, key=lambda s: s or 0)
    assert (strengths[0], strengths[-1]) == (1, 7)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match="cannot cast 3 votes"):
        cast([Annotator("x")], 0.0, votes_per_pair=3)
    with pytest.raises(DataError, match="same name"):
        cast([Annotator("x"), Annotator("x")], 0.0)
    with pytest.raises(DataError, match="not finite"):
        cast([Annotator("x")], math.nan)
