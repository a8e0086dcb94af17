"""Tournaments: how votes are spread, who leaves, who wins, and how often that is the best."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from accord.evaluation.tournament import Duel, Play, draw_duels, hold_tournament


def play_by(worth: Sequence[float], heats: list[list[Duel]] | None = None, flips: float = 0.0, seed: int = 0) -> Play:
    """The better one wins, but for a share of flipped votes; equals are half a win each."""
    rng = random.Random(seed)

    def play(number: int, duels: Sequence[Duel]) -> list[float]:
        if heats is not None:
            heats.append(list(duels))
        sure = [0.5 + 0.5 * ((worth[d.first] > worth[d.second]) - (worth[d.first] < worth[d.second])) for d in duels]
        return [1 - won if rng.random() < flips else won for won in sure]

    return play


def test_the_worse_half_leaves_after_each_heat_and_the_best_wins() -> None:
    heats: list[list[Duel]] = []
    worth = [0.1, 0.9, 0.3, 0.8, 0.5]
    found = hold_tournament(5, 300, play_by(worth, heats), seed=1)
    assert [heat.entrants for heat in found] == [(0, 1, 2, 3, 4), (1, 3, 4), (1, 3)]
    assert found[-1].order == [1, 3]
    assert [heat.duels for heat in found] == [len(duels) for duels in heats]
    assert all(100 <= len(duels) < 100 + 5 for duels in heats), "votes are parted evenly over the heats"
    questions = [{duel.question for duel in duels} for duels in heats]
    assert set.union(*questions) == set(range(sum(map(len, questions)))), "no question twice, none left out"


def test_a_share_counts_all_heats_so_far_by_hand() -> None:
    """Three entrants, each question has all three pairs; 1 beats both, 0 beats 2: 1/2, 1, 0; then 0 and 1 alone."""
    found = hold_tournament(3, 12, play_by([0.5, 1.0, 0.0]), seed=0)
    assert found[0].shares == (0.5, 1.0, 0.0)
    assert (found[0].duels, found[1].duels) == (6, 6)
    # 0 won 2 of its 4 duels before, and none of 6 now; 1 all of both.
    assert found[1].entrants == (0, 1) and found[1].shares == pytest.approx((2 / 10, 1.0))


def test_everyone_is_in_as_many_duels_and_comes_first_about_as_often() -> None:
    for count in (2, 3, 4, 7):
        entrants = list(range(10, 10 + count))
        duels = draw_duels(entrants, 400 * count, 5, seed=count)
        met = Counter(entrant for duel in duels for entrant in (duel.first, duel.second))
        assert set(met) == set(entrants) and len(set(met.values())) == 1
        firsts = Counter(duel.first for duel in duels)
        assert all(0.45 < firsts[entrant] / met[entrant] < 0.55 for entrant in entrants)
        assert all(duel.first != duel.second for duel in duels)
        assert min(duel.question for duel in duels) == 5
        pairs = Counter((duel.question, frozenset((duel.first, duel.second))) for duel in duels)
        assert set(pairs.values()) == {1}, "nobody is asked the same twice"


def test_of_equals_the_least_optimised_wins_and_one_needs_no_vote() -> None:
    assert hold_tournament(6, 60, play_by([1.0] * 6), seed=0)[-1].order[0] == 0
    alone = hold_tournament(1, 100, play_by([1.0]), seed=0)
    assert [(heat.entrants, heat.duels) for heat in alone] == [((0,), 0)]


def test_without_a_vote_the_start_is_kept() -> None:
    heats = hold_tournament(4, 0, play_by([0.0, 1.0, 2.0, 3.0]), seed=0)
    assert heats[-1].order[0] == 0 and all(heat.duels == 0 for heat in heats)


def test_noisy_votes_find_the_best_far_more_often_than_chance() -> None:
    """Nine entrants, a quarter of the votes flipped, 900 votes: the best wins in at least 95 of 100 tournaments."""
    worth = [-abs(i - 5) for i in range(9)]
    winners = [
        hold_tournament(9, 900, play_by(worth, flips=0.25, seed=seed), seed=seed)[-1].order[0] for seed in range(100)
    ]
    assert winners.count(5) >= 95
