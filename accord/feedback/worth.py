"""What the votes are worth: agreement, each annotator's skill, habits, checks and speed, what more votes would give.

Implements the owner's table from the stored votes. Nothing here takes a vote away: the consensus weighs them. Leaves
out the disagreements themselves (`disagreements`) and verdicts on them (`adjudication`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scipy.stats import binomtest
from sqlalchemy import Connection, func, select

from accord.feedback.agreement import (
    RESAMPLES,
    Agreement,
    Interval,
    build_agreement_table,
    compute_agreement,
    compute_alpha,
    compute_annotator_agreement,
)
from accord.feedback.consensus import compute_consensus
from accord.feedback.database import Database
from accord.feedback.judgements import Judgement, read_judgements, says_the_same
from accord.feedback.queue_schema import items, leases
from accord.feedback.records import ADJUDICATION
from accord.feedback.store import VoteStore, read_round_votes
from accord.types import Vote

NARROWER = (0.75, 0.5, 0.25)  # widths, as shares of the present one, that the forecast speaks of
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """count out of total, with Wilson's interval at 95 % (Wilson 1927)."""

    count: int
    total: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class AnnotatorWorth:
    """One annotator. None where there is nothing to tell it from.

    votes: standing judgements. agreement: share of the others' votes on the same items that equal theirs; alpha:
    Krippendorff's alpha of the items that they judged. skill, side_bias: of the noisy Bradley-Terry model, in logits
    (`bradley_terry`); side_bias is towards what was shown first. first: share of their preferences for what was shown
    first. gold: share of known answers they gave; consistent: share of repeats that they judged as before.
    seconds: median time for an answer. ties, both_bad, flags, skips: how many.
    """

    name: str
    votes: int
    agreement: Interval | None
    alpha: Interval | None
    skill: float | None
    side_bias: float | None
    first: Share | None
    gold: Share | None
    consistent: Share | None
    seconds: float | None
    ties: int
    both_bad: int
    flags: int
    skips: int


@dataclass(frozen=True)
class Forecast:
    """To make the interval of the agreement `width` wide: so many more items judged by two or more, so many votes."""

    width: float
    more_items: int
    more_votes: int


@dataclass(frozen=True)
class Worth:
    """The whole table. annotators: by name. forecasts: for 3/4, 1/2 and 1/4 of the present interval's width.

    gold, consistent: everybody's known answers given, and repeats judged as before; None where nobody was asked any.
    """

    agreement: Agreement
    annotators: tuple[AnnotatorWorth, ...]
    forecasts: tuple[Forecast, ...]
    gold: Share | None = None
    consistent: Share | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, keys as the fields."""
        return {
            "agreement": self.agreement.to_dict(),
            "annotators": [asdict(row) for row in self.annotators],
            "forecasts": [asdict(row) for row in self.forecasts],
            "gold": asdict(self.gold) if self.gold else None,
            "consistent": asdict(self.consistent) if self.consistent else None,
        }


def compute_worth(
    database: Database,
    *,
    round: int | None = None,
    source: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Worth:
    """What the comparisons and rankings of a round are worth (None: all votes there are, also imported ones).

    source: of votes that did not come through the queue, such as a round's simulated ones. Verdicts are not votes here.
    The intervals are bootstraps over items from `seed`.
    """
    whole = source is not None or round is None
    found = VoteStore(database).votes(source=source) if whole else read_round_votes(database, round or 0, counted=False)
    votes = [vote for vote in found if vote.source != ADJUDICATION]
    with database.read() as connection:
        judgements = read_judgements(connection, round)
        skips = _count_skips(connection, round)
    agreement = compute_agreement(votes, seed=seed, resamples=resamples)
    rows = _describe_annotators(votes, judgements, skips, seed, resamples)
    gold, consistent = _add_up([row.gold for row in rows]), _add_up([row.consistent for row in rows])
    return Worth(agreement, rows, forecast(agreement), gold, consistent)


def forecast(agreement: Agreement) -> tuple[Forecast, ...]:
    """How many more votes would narrow the interval of the pairwise agreement.

    A bootstrap interval's width goes as 1 / sqrt(items), so a width of f times the present one needs items / f^2; votes
    at the present number for each item. Empty where there is no interval yet, or it has no width.
    """
    interval = agreement.pairwise
    if interval is None or interval.high <= interval.low:
        return ()
    rows = []
    for factor in NARROWER:
        more = math.ceil(agreement.items * (1.0 / factor**2 - 1.0) - 1e-9)
        votes = math.ceil(more * agreement.votes / agreement.items - 1e-9)
        rows.append(Forecast((interval.high - interval.low) * factor, more, votes))
    return tuple(rows)


def build_share(count: int, total: int) -> Share | None:
    """count / total with Wilson's interval; None where the total is 0."""
    if not total:
        return None
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Share(count, total, count / total, float(interval.low), float(interval.high))


def _add_up(shares: Sequence[Share | None]) -> Share | None:
    """The share over everybody."""
    found = [share for share in shares if share]
    return build_share(sum(share.count for share in found), sum(share.total for share in found))


def _describe_annotators(
    votes: Sequence[Vote], judgements: Sequence[Judgement], skips: Counter[str], seed: int, resamples: int
) -> tuple[AnnotatorWorth, ...]:
    table = build_agreement_table(votes)
    shared = table.loc[:, table.notna().sum(axis=0) > 1]
    reports = compute_consensus(votes).report.annotators
    own, flags, choices, first = _count_votes(votes)
    checks = _check_annotators(judgements)
    seconds: dict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        if judgement.seconds is not None:
            seconds[judgement.annotator].append(judgement.seconds)
    rows = []
    for name in sorted(set(own) | set(flags) | set(skips)):
        agreement = alpha = None
        if name in shared.index and shared.loc[name].notna().any():
            judged = shared.loc[:, shared.loc[name].notna()]
            agreement = compute_annotator_agreement(judged, name, seed=seed, resamples=resamples)
            alpha = compute_alpha(judged, seed=seed, resamples=resamples)
        report = reports.get(name)
        gold, consistent = checks[name]
        rows.append(
            AnnotatorWorth(
                name=name,
                votes=own[name],
                agreement=agreement,
                alpha=alpha,
                skill=report.skill if report else None,
                side_bias=report.side_bias if report else None,
                first=build_share(*first[name]),
                gold=build_share(*gold),
                consistent=build_share(*consistent),
                seconds=median(seconds[name]) if seconds[name] else None,
                ties=choices[name, "tie"],
                both_bad=choices[name, "both_bad"],
                flags=flags[name],
                skips=skips[name],
            )
        )
    return tuple(rows)


def _count_votes(
    votes: Sequence[Vote],
) -> tuple[Counter[str], Counter[str], Counter[tuple[str, str]], dict[str, tuple[int, int]]]:
    """By annotator: judgements, flags, comparisons of each choice, and (first preferred, one preferred)."""
    own, flags, choices = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for vote in votes:
        (flags if vote.kind == "flag" else own)[vote.annotator] += 1
        if vote.choice is not None:
            choices[vote.annotator, vote.choice] += 1
    first = {name: (choices[name, "a"], choices[name, "a"] + choices[name, "b"]) for name in {*own, *flags}}
    return own, flags, choices, defaultdict(lambda: (0, 0), first)


def _check_annotators(judgements: Sequence[Judgement]) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """By annotator: (right, asked) of the known answers, and (as before, asked) of the repeats."""
    by_place = {(judgement.item_id, judgement.annotator): judgement for judgement in judgements}
    gold, consistent = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    for judgement in judgements:
        if judgement.gold is not None:
            gold[judgement.annotator].append(says_the_same(judgement.answer, judgement.gold))
        before = by_place.get((judgement.repeat_of or "", judgement.annotator))
        if before is not None:
            consistent[judgement.annotator].append(says_the_same(judgement.answer, before.answer))
    checks = {
        name: ((sum(gold[name]), len(gold[name])), (sum(consistent[name]), len(consistent[name])))
        for name in {*gold, *consistent}
    }
    return defaultdict(lambda: ((0, 0), (0, 0)), checks)


def _count_skips(connection: Connection, round: int | None) -> Counter[str]:
    query = select(leases.c.annotator, func.count()).where(leases.c.status == "skipped").group_by(leases.c.annotator)
    if round is not None:
        query = query.join(items, items.c.id == leases.c.item_id).where(items.c.round == round)
    return Counter(dict(connection.execute(query).tuples().all()))
