"""Tournaments: who meets whom, what a share is, and how often the best wins."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from accord.evaluation.tournament import Duel, compute_standings, draw_duels, find_winner


def play(worth: Sequence[float], duels: Sequence[Duel], flips: float = 0.0, seed: int = 0) -> list[float]:
    """The better one wins, but for a share of flipped votes; equals are half a win each."""
    rng = random.Random(seed)
    sure = [0.5 + 0.5 * ((worth[d.first] > worth[d.second]) - (worth[d.first] < worth[d.second])) for d in duels]
    return [1 - won if rng.random() < flips else won for won in sure]


@pytest.mark.parametrize("entrants", [2, 3, 4, 7])
def test_everyone_is_in_as_many_duels_and_comes_first_about_as_often(entrants: int) -> None:
    duels = draw_duels(entrants, 400 * entrants, seed=entrants)
    assert 400 * entrants <= len(duels) < 401 * entrants
    met = Counter(entrant for duel in duels for entrant in (duel.first, duel.second))
    assert set(met) == set(range(entrants)) and len(set(met.values())) == 1
    firsts = Counter(duel.first for duel in duels)
    assert all(0.45 < firsts[entrant] / met[entrant] < 0.55 for entrant in met)
    assert all(duel.first != duel.second for duel in duels)
    assert {duel.question for duel in duels} == set(range(1 + max(duel.question for duel in duels)))
    pairs = Counter((duel.question, frozenset((duel.first, duel.second))) for duel in duels)
    assert set(pairs.values()) == {1}, "nobody is asked the same twice"
    met_by = Counter(frozenset((duel.first, duel.second)) for duel in duels)
    assert len(met_by) == entrants * (entrants - 1) // 2, "everyone meets everyone"


def test_shares_by_hand() -> None:
    """Three entrants: on one question all three pairs; 1 beats both, and 0 and 2 are even."""
    duels = [Duel(0, 0, 1), Duel(0, 1, 2), Duel(0, 2, 0), Duel(1, 0, 1)]
    standings = compute_standings(3, duels, [0.0, 1.0, 0.5, 1.0])
    found = [(s.value, s.n) for s in standings if s is not None]
    # 0: (0 + 0.5) / 2 on question 0 and 1 on question 1; 1: 1 and 0; 2: (0 + 0.5) / 2
    assert found == [(pytest.approx(0.625), 2), (0.5, 2), (0.25, 1)]
    assert find_winner(standings) == 0


def test_of_equals_the_least_optimised_wins_and_one_needs_no_vote() -> None:
    duels = draw_duels(6, 60, seed=0)
    assert find_winner(compute_standings(6, duels, [0.5] * len(duels))) == 0
    assert draw_duels(1, 100, seed=0) == [] and compute_standings(1, [], []) == [None]
    assert find_winner([None]) == 0


def test_noisy_votes_find_the_best_far_more_often_than_chance() -> None:
    """Nine entrants, a quarter of the votes flipped, 1800 votes: the best wins in at least 95 of 100 tournaments."""
    worth = [-abs(i - 5) for i in range(9)]
    winners = []
    for seed in range(100):
        duels = draw_duels(9, 1800, seed=seed)
        winners.append(find_winner(compute_standings(9, duels, play(worth, duels, 0.25, seed))))
    assert winners.count(5) >= 95
