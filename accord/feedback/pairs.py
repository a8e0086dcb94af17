"""Votes of every kind as one table of pairwise outcomes, the common ground of every aggregation.

Implements the expansion of rankings and ratings into pairs and the merging of (a, b) with (b, a). Leaves out flags,
which speak of one completion and prefer nothing, and the aggregation itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from accord.feedback.ratings import calibrate_ratings, compute_rating_preference, select_rating_pairs
from accord.types import Completion, Prompt, Vote

MIXED_ANNOTATOR = "ratings"
TIE = 0.5


@dataclass(frozen=True)
class PairTable:
    """P pairs, J annotators, R outcomes, sorted by pair and annotator so that sums do not depend on the votes' order.

    pairs: (prompt, a, b), with a's id before b's. annotators: J names, sorted.
    pair (R,), annotator (R,): indices. outcome (R,): 1 where a is preferred, 0 where b is, 0.5 for a tie, in between
    for two ratings; NaN for 'both bad'. side (R,): 1 where a was shown first, -1 where b was, 0 where there is no side
    (rankings, ratings). strength (R,): vote strength / 7, NaN where not given.
    """

    pairs: tuple[tuple[Prompt, Completion, Completion], ...]
    annotators: tuple[str, ...]
    pair: NDArray[np.intp]
    annotator: NDArray[np.intp]
    outcome: NDArray[np.float64]
    side: NDArray[np.float64]
    strength: NDArray[np.float64]

    def judged(self) -> PairTable:
        """The same table without the rows that prefer nothing ('both bad')."""
        keep = ~np.isnan(self.outcome)
        columns = {name: getattr(self, name)[keep] for name in ("pair", "annotator", "outcome", "side", "strength")}
        return replace(self, **columns)


@dataclass(frozen=True)
class PairFit:
    """What an aggregation makes of a table: probability (P,) that a is better and its standard error (P,).

    skill (J,): logits per unit of margin; side_bias (J,): logits towards what was shown first. None where the method
    does not know annotators.
    """

    probability: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    skill: NDArray[np.float64] | None = None
    side_bias: NDArray[np.float64] | None = None


_Row = tuple[tuple[str, str, str], str, float, float, float]  # pair's ids, annotator, outcome, side, strength


class _Texts:
    """The ids of prompts and completions, each hashed once, and the pairs seen."""

    def __init__(self) -> None:
        self._prompt_ids: dict[Prompt, str] = {}
        self._completion_ids: dict[Completion, str] = {}
        self.pairs: dict[tuple[str, str, str], tuple[Prompt, Completion, Completion]] = {}

    def build_row(
        self, vote: Vote, a: Completion, b: Completion, outcome: float, *, annotator: str | None = None
    ) -> _Row | None:
        """The row for `outcome` of (a, b), turned so that the smaller id comes first. None where both say the same."""
        prompt_id = self._prompt_ids.get(vote.prompt) or self._prompt_ids.setdefault(vote.prompt, vote.prompt.id)
        a_id, b_id = (self._completion_ids.get(c) or self._completion_ids.setdefault(c, c.id) for c in (a, b))
        if a_id == b_id:
            return None
        side = 1.0 if vote.kind == "comparison" else 0.0
        if b_id < a_id:
            a, b, a_id, b_id, outcome, side = b, a, b_id, a_id, 1.0 - outcome, -side
        key = (prompt_id, a_id, b_id)
        self.pairs.setdefault(key, (vote.prompt, a, b))
        strength = float("nan") if vote.strength is None else vote.strength / 7.0
        return key, annotator or vote.annotator, outcome, side, strength


def build_pair_table(votes: Iterable[Vote]) -> PairTable:
    """Every pair that `votes` speak of.

    A ranking of K gives K (K - 1) / 2 outcomes, equal ranks a tie. Two ratings of different completions of one prompt
    give an outcome between 0 and 1 after calibration (`ratings`); where no one annotator rated both, the row belongs
    to the annotator named "ratings". Flags are left out.
    """
    texts = _Texts()
    rows: list[_Row | None] = []
    rated: list[Vote] = []
    for vote in votes:
        if vote.kind == "comparison":
            outcome = {"a": 1.0, "b": 0.0, "tie": TIE}.get(vote.choice or "", float("nan"))
            a, b = vote.completions
            rows.append(texts.build_row(vote, a, b, outcome))
        elif vote.kind == "ranking":
            rows += _build_ranking_rows(vote, texts)
        elif vote.kind == "rating":
            rated.append(vote)
    rows += _build_rating_rows(rated, texts)
    return _build_table([row for row in rows if row is not None], texts)


def _build_ranking_rows(vote: Vote, texts: _Texts) -> Iterator[_Row | None]:
    ranked = list(zip(vote.completions, vote.ranks or (), strict=True))
    for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
        yield texts.build_row(vote, a, b, TIE if rank_a == rank_b else float(rank_a < rank_b))


def _build_rating_rows(rated: list[Vote], texts: _Texts) -> Iterator[_Row | None]:
    rated = sorted(rated, key=lambda vote: (vote.created_at, vote.id))
    names = {name: index for index, name in enumerate(sorted({vote.annotator for vote in rated}))}
    annotators = np.array([names[vote.annotator] for vote in rated], dtype=np.intp)
    calibrated = calibrate_ratings(np.array([vote.rating for vote in rated], dtype=np.float64), annotators)
    by_prompt: dict[Prompt, list[int]] = {}
    for index, vote in enumerate(rated):
        by_prompt.setdefault(vote.prompt, []).append(index)
    for members in by_prompt.values():
        numbers: dict[Completion, int] = {}
        shown = [numbers.setdefault(rated[i].completions[0], len(numbers)) for i in members]
        for first, second, annotator in select_rating_pairs(shown, [int(annotators[i]) for i in members]):
            one, other = members[first], members[second]
            outcome = float(compute_rating_preference(calibrated[one] - calibrated[other]))
            name = MIXED_ANNOTATOR if annotator < 0 else None
            yield texts.build_row(
                rated[one], rated[one].completions[0], rated[other].completions[0], outcome, annotator=name
            )


def _build_table(rows: list[_Row], texts: _Texts) -> PairTable:
    keys = sorted(texts.pairs)
    names = sorted({row[1] for row in rows})
    pair_index = {key: index for index, key in enumerate(keys)}
    name_index = {name: index for index, name in enumerate(names)}
    pair = np.array([pair_index[row[0]] for row in rows], dtype=np.intp)
    annotator = np.array([name_index[row[1]] for row in rows], dtype=np.intp)
    outcome, side, strength = (np.array([row[k] for row in rows], dtype=np.float64) for k in (2, 3, 4))
    order = np.lexsort((strength, side, outcome, annotator, pair))
    return PairTable(
        pairs=tuple(texts.pairs[key] for key in keys),
        annotators=tuple(names),
        pair=pair[order],
        annotator=annotator[order],
        outcome=outcome[order],
        side=side[order],
        strength=strength[order],
    )
