"""Which of several policies people prefer, by votes on pairs of their answers: who meets whom, and how many were won.

Implements a round robin drawn at random, scored by the share of duels won (a Borda count). Leaves out answering and
voting (`loop.choosing`, `laboratory.bench`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from accord.evaluation.statistics import Estimate, compute_share


@dataclass(frozen=True)
class Duel:
    """Two entrants' answers to one question, by number: one vote."""

    question: int
    first: int
    second: int


def draw_duels(entrants: int, votes: int, *, seed: int) -> list[Duel]:
    """Duels of entrants 0 to n - 1 on questions from 0 on, `votes` of them or a few more, each entrant in as many.

    On each question the entrants stand in a circle and each meets the one that is so many places on as is drawn for the
    question, once. None for a single entrant.
    """
    rng, duels, question = random.Random(seed), list[Duel](), 0
    while entrants > 1 and len(duels) < votes:
        step, shift = rng.randrange(1, entrants), rng.randrange(entrants)
        circle = [(place + shift) % entrants for place in range(entrants)]
        pairs = entrants // 2 if 2 * step == entrants else entrants
        duels += [Duel(question, circle[i], circle[(i + step) % entrants]) for i in range(pairs)]
        question += 1
    return duels


def compute_standings(entrants: int, duels: Sequence[Duel], outcomes: Sequence[float]) -> list[Estimate | None]:
    """The share of its duels that each entrant won, with its interval over questions; None without a duel.

    outcomes: what the first of each duel won: 1, 0, or 0.5 where nobody prefers either.
    """
    wins: list[list[float]] = [[] for _ in range(entrants)]
    questions: list[list[int]] = [[] for _ in range(entrants)]
    for duel, won in zip(duels, outcomes, strict=True):
        for entrant, win in ((duel.first, won), (duel.second, 1 - won)):
            wins[entrant].append(win)
            questions[entrant].append(duel.question)
    return [compute_share(own, asked) if own else None for own, asked in zip(wins, questions, strict=True)]


def find_winner(standings: Sequence[Estimate | None]) -> int:
    """The entrant with the largest share; of equals, and without any duel, the first."""
    shares = [0.0 if standing is None else standing.value for standing in standings]
    return max(range(len(shares)), key=shares.__getitem__)
