"""How far people agree: the share of agreeing votes, and Krippendorff's alpha, each with a bootstrap interval.

Implements the tables that the two need and the bootstrap over items; alpha itself is evalica's. Leaves out agreement
of a model with people (`evaluation`), and flags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from accord.errors import DataError
from accord.feedback.records import ADJUDICATION
from accord.types import Completion, Vote, derive_seed

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["nominal", "ordinal", "interval", "ratio"]
RESAMPLES = 1000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 50  # bootstrap samples in memory
CHOICE_CODES = {"a": 0.0, "tie": 1.0, "b": 2.0, "both_bad": 3.0}
OTHER_WAY_ROUND = {0.0: 2.0, 2.0: 0.0}


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its bootstrap interval (both equal to it where there was nothing to resample)."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """`{"estimate", "low", "high"}`."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Agreement:
    """Agreement of the annotators. None where no item has votes of two annotators.

    pairwise: share of agreeing pairs of votes. alpha: Krippendorff's alpha at `level`. items: judged by at least two
    annotators. annotators, votes: of those items.
    """

    pairwise: Interval | None
    alpha: Interval | None
    level: Level
    items: int
    annotators: int
    votes: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, keys as the fields."""
        return {
            "pairwise": None if self.pairwise is None else self.pairwise.to_dict(),
            "alpha": None if self.alpha is None else self.alpha.to_dict(),
            "level": self.level,
            "items": self.items,
            "annotators": self.annotators,
            "votes": self.votes,
        }


def compute_agreement(
    votes: Iterable[Vote],
    *,
    kind: Literal["comparison", "rating"] = "comparison",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Agreement:
    """Pairwise agreement and alpha of the votes of one kind.

    comparison: comparisons and rankings (as their pairs), alpha at the nominal level. rating: at the interval level.

    Intervals are percentiles (95 %) over `resamples` bootstrap samples
    of the items.
    """
    table = build_agreement_table(votes, kind=kind)
    table = table.loc[:, table.notna().sum(axis=0) > 1].dropna(axis=0, how="all")
    level: Level = "interval" if kind == "rating" else "nominal"
    pairwise = alpha = None
    if table.shape[1]:
        pairwise = compute_pairwise_agreement(table, seed=seed, resamples=resamples)
        alpha = compute_alpha(table, level, seed=seed, resamples=resamples)
    return Agreement(pairwise, alpha, level, table.shape[1], table.shape[0], int(table.notna().sum().sum()))


def build_agreement_table(
    votes: Iterable[Vote], *, kind: Literal["comparison", "rating"] = "comparison"
) -> pd.DataFrame:
    """Annotators (rows) by items (columns); NaN where someone did not judge.

    Comparisons: an item is a pair with the origins of its two completions, so that the same two texts by two other
    models are another item; values are the codes of a, tie, b, both_bad (0 to 3), turned to one order of the pair.
    Ratings: an item is a completion, the value its rating. Who judged an item twice counts with the later vote (by
    created_at, then id).
    """
    import pandas as pd

    judgements = [
        judgement
        for vote in sorted(votes, key=lambda vote: (vote.created_at, vote.id))
        for judgement in _read_judgements(vote, kind)
    ]
    turned = Counter[_Item]()  # how much more often the pair was shown the other way round
    for judgement in judgements:
        turned[judgement.item] += 1 if judgement.turned else -1
    cells: dict[_Item, dict[str, float]] = {}
    for judgement in judgements:
        value = judgement.value
        if judgement.turned != (turned[judgement.item] > 0):
            value = OTHER_WAY_ROUND.get(value, value)
        cells.setdefault(judgement.item, {})[judgement.annotator] = value
    names = sorted({name for row in cells.values() for name in row})
    items = sorted(cells)
    return pd.DataFrame([[cells[item].get(name, np.nan) for item in items] for name in names], index=names)


def compute_pairwise_agreement(
    table: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """sum_u agree_u / sum_u pairs_u over items u: of two votes on one item by two annotators, how often they are equal.

    The interval resamples items. Raises DataError where no item has two votes.
    """
    values = table.to_numpy(dtype=np.float64)
    present = np.sum(~np.isnan(values), axis=0)
    pairs = present * (present - 1) / 2.0
    agree = np.array([_count_equal_pairs(column) for column in values.T])
    if pairs.sum() == 0:
        raise _too_few_votes()
    use = pairs > 0
    pairs, agree = pairs[use], agree[use]
    draws = _draw_items(len(pairs), resamples, seed, "pairwise agreement")
    samples = np.concatenate([(rows @ agree) / (rows @ pairs) for rows in draws])
    return _build_interval(float(agree.sum() / pairs.sum()), samples, confidence)


def compute_alpha(
    table: pd.DataFrame,
    level: Level = "nominal",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Krippendorff's alpha = 1 - D_observed / D_expected of annotators (rows) by items (columns), NaN where missing.

    level: the distance between two values (nominal, ordinal, interval, ratio). The interval resamples whole items, so
    that D_expected varies with them. Raises DataError where no item has two values.

    Source: Krippendorff, Content Analysis (2018), chapter 12.
    """
    import evalica

    usable = table.loc[:, table.notna().sum(axis=0) > 1]
    if not usable.shape[1]:
        raise _too_few_votes()
    draws = _draw_items(usable.shape[1], resamples, seed, "alpha")
    if level in ("nominal", "interval"):
        estimates = np.concatenate([_resample_alpha(usable.to_numpy(np.float64), level, rows) for rows in draws])
    else:
        items = np.arange(usable.shape[1])
        picks = (np.repeat(items, row) for rows in draws for row in rows)
        estimates = np.array([evalica.alpha(usable.iloc[:, pick], distance=level).alpha for pick in picks])
    return _build_interval(float(evalica.alpha(usable, distance=level).alpha), estimates, confidence)


def compute_annotator_agreement(
    table: pd.DataFrame, name: str, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """sum_u agree_u / sum_u others_u over the items u that `name` judged: how often another's vote equals theirs.

    The interval resamples items. Raises DataError where they share no item with anybody.
    """
    own = table.loc[name].to_numpy(dtype=np.float64)
    values = table.drop(index=name).to_numpy(dtype=np.float64)[:, ~np.isnan(own)]
    others = np.sum(~np.isnan(values), axis=0).astype(np.float64)
    agree = np.sum(values == own[~np.isnan(own)], axis=0).astype(np.float64)
    use = others > 0
    if not use.any():
        raise _too_few_votes()
    others, agree = others[use], agree[use]
    draws = _draw_items(len(others), resamples, seed, "annotator agreement")
    samples = np.concatenate([(rows @ agree) / (rows @ others) for rows in draws])
    return _build_interval(float(agree.sum() / others.sum()), samples, confidence)


_Item = tuple[Any, ...]


class _Judgement(NamedTuple):
    """What one annotator said of one item; `turned` where the answer with the larger id was shown first."""

    item: _Item
    annotator: str
    value: float
    turned: bool = False


def _read_judgements(vote: Vote, kind: str) -> Iterator[_Judgement]:
    """Each thing that `vote` says, in the terms of `build_agreement_table`. A verdict is no second opinion."""
    if vote.source == ADJUDICATION:
        return
    if kind == "rating" and vote.kind == "rating" and vote.rating is not None:
        answer = vote.completions[0]
        yield _Judgement((vote.prompt.id, answer.id, answer.origin), vote.annotator, vote.rating)
    elif kind == "comparison" and vote.kind == "comparison" and vote.choice is not None:
        a, b = vote.completions
        yield _place(vote, a, b, vote.choice)
    elif kind == "comparison" and vote.kind == "ranking" and vote.ranks is not None:
        ranked = sorted(zip(vote.completions, vote.ranks, strict=True), key=lambda row: (row[0].id, row[0].origin))
        for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
            yield _place(vote, a, b, "tie" if rank_a == rank_b else "a" if rank_a < rank_b else "b")


def _place(vote: Vote, a: Completion, b: Completion, choice: str) -> _Judgement:
    first, second = (a.id, a.origin), (b.id, b.origin)
    item = (vote.prompt.id, min(first, second), max(first, second))
    return _Judgement(item, vote.annotator, CHOICE_CODES[choice], turned=second < first)


def _count_equal_pairs(column: np.ndarray) -> float:
    counts = Counter(column[~np.isnan(column)].tolist())
    return sum(count * (count - 1) / 2.0 for count in counts.values())


def _draw_items(items: int, resamples: int, seed: int, label: str) -> Iterator[np.ndarray]:
    """(some, items) at a time: how often each of `resamples` bootstrap samples holds each item."""
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", label))
    chances = np.full(items, 1.0 / items)
    yield np.zeros((0, items), dtype=np.int64)
    for start in range(0, resamples, DRAWN_AT_ONCE):
        yield generator.multinomial(items, chances, size=min(DRAWN_AT_ONCE, resamples - start))


def _resample_alpha(values: np.ndarray, level: str, draws: np.ndarray) -> np.ndarray:
    """Alpha of each bootstrap sample. values (annotators, items), NaN where missing; draws (R, items) -> (R,).

    With m_u values on item u, N = sum m_u, D_o = (1/N) sum_u [sum over ordered pairs within u of d] / (m_u - 1) and
    D_e = [sum over all ordered pairs of d] / (N (N - 1)). For d nominal the sums are of n (m - n) over each value's
    count n; for d interval, (x - y)^2, they are 2 (m sum x^2 - (sum x)^2). Both need only sums over items. 1 where
    all values are one, as evalica has it. Source: Krippendorff (2018), chapter 12.
    """
    present = (~np.isnan(values)).sum(axis=0).astype(np.float64)
    if level == "nominal":
        parts = np.array([(values == value).sum(axis=0) for value in np.unique(values[~np.isnan(values)])]).T
    else:
        filled = np.nan_to_num(values)
        parts = np.array([filled.sum(axis=0), (filled**2).sum(axis=0)]).T

    def sum_pairs(size: np.ndarray, part: np.ndarray) -> np.ndarray:
        if level == "nominal":
            pairs: np.ndarray = (part * (size[:, None] - part)).sum(axis=1)
        else:
            pairs = 2.0 * (size * part[:, 1] - part[:, 0] ** 2)
        return pairs

    size = draws @ present
    observed = draws @ (sum_pairs(present, parts) / (present - 1.0))
    expected = sum_pairs(size, draws @ parts) / (size - 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha: np.ndarray = np.where(expected > 1e-12 * size, 1.0 - observed / expected, 1.0)
    return alpha


def _build_interval(estimate: float, samples: np.ndarray, confidence: float) -> Interval:
    if not samples.size:
        return Interval(estimate, estimate, estimate)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))


def _too_few_votes() -> DataError:
    return DataError("no item was judged by two annotators", mend="let annotators overlap: agreement needs two votes")
