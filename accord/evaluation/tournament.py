"""Which of several policies people prefer, by votes on pairs of their answers: a tournament whose worse half leaves.

Implements sequential halving (Karnin, Koren and Somekh 2013, algorithm 1) on duels: the votes are parted evenly over
ceil(log2 n) heats, and after each only the better half goes on, so that most votes are spent where they tell most.
Leaves out answering and voting, which are asked for by a function (`loop.choosing`, `laboratory.bench`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accord.types import derive_seed


@dataclass(frozen=True)
class Duel:
    """Two entrants' answers to one question, by number: one vote. No question comes up in two heats."""

    question: int
    first: int
    second: int


@dataclass(frozen=True)
class Heat:
    """One stage of a tournament: who took part, how many duels it had, and each one's share of the duels it was in.

    shares: of this heat and all before it, entrant by entrant; 0.5 where none was held.
    """

    entrants: tuple[int, ...]
    duels: int
    shares: tuple[float, ...]

    @property
    def order(self) -> list[int]:
        """The entrants, best first; of equals the one with the smaller number."""
        ranked = sorted(zip(self.shares, self.entrants, strict=True), key=lambda row: (-row[0], row[1]))
        return [entrant for _, entrant in ranked]

    def to_dict(self) -> dict[str, Any]:
        """`{"entrants", "duels", "shares"}`."""
        return {"entrants": list(self.entrants), "duels": self.duels, "shares": list(self.shares)}


Play = Callable[[int, Sequence[Duel]], Sequence[float]]
"""(number of the heat, its duels) -> what the first of each won: 1, 0, or 0.5 where nobody prefers either."""


def hold_tournament(entrants: int, votes: int, play: Play, *, seed: int) -> list[Heat]:
    """The heats of a tournament of entrants 0 to n - 1; the winner is `heats[-1].order[0]`.

    votes: of all heats together, to within one question's duels a heat. An entrant's score is the share of all duels
    so far that it won, so what was learnt in one heat counts in the next. Of equals the smaller number goes on: number
    entrants by how far they have been optimised. One entrant wins without a vote.
    """
    left, heats = list(range(entrants)), [Heat((0,), 0, (0.5,))] if entrants == 1 else []
    count, question = math.ceil(math.log2(entrants)), 0
    won, met = [0.0] * entrants, [0] * entrants
    for number in range(count):
        duels = draw_duels(left, votes // count, question, derive_seed(seed, "heat", number))
        question = 1 + max((duel.question for duel in duels), default=question - 1)
        for duel, outcome in zip(duels, play(number, duels), strict=True):
            for entrant, win in ((duel.first, outcome), (duel.second, 1 - outcome)):
                won[entrant] += win
                met[entrant] += 1
        shares = tuple(won[entrant] / met[entrant] if met[entrant] else 0.5 for entrant in left)
        heats.append(Heat(tuple(left), len(duels), shares))
        left = sorted(heats[-1].order[: math.ceil(len(left) / 2)])
    return heats


def draw_duels(entrants: Sequence[int], votes: int, question: int, seed: int) -> list[Duel]:
    """Duels on questions from `question` on, until there are `votes` or a few more, each entrant in as many.

    On each question the entrants stand in a circle and each meets the one that is so many places on as is drawn for the
    question, once.
    """
    rng, count, duels = random.Random(seed), len(entrants), list[Duel]()
    while len(duels) < votes:
        step, shift = rng.randrange(1, count), rng.randrange(count)
        circle = [entrants[(place + shift) % count] for place in range(count)]
        pairs = count // 2 if 2 * step == count else count
        duels += [Duel(question, circle[i], circle[(i + step) % count]) for i in range(pairs)]
        question += 1
    return duels
