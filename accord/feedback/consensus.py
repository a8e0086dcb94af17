"""Votes in, preferences out: what a set of votes says of each pair, with uncertainty.

Implements the choice of an aggregation by name, weights and strengths. Leaves out the aggregations themselves, one
file each (`fraction`, `dawid_skene`, `bradley_terry`): to add one, write a file and its line in CONSENSUS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from accord.errors import ConfigError
from accord.feedback.bradley_terry import fit_bradley_terry
from accord.feedback.dawid_skene import fit_dawid_skene
from accord.feedback.fraction import fit_fraction
from accord.feedback.pairs import PairFit, PairTable, build_pair_table
from accord.feedback.records import ADJUDICATION
from accord.types import Preference, Vote

CONSENSUS: dict[str, Callable[[PairTable], PairFit]] = {
    "fraction": fit_fraction,
    "dawid_skene": fit_dawid_skene,
    "bradley_terry": fit_bradley_terry,
}


@dataclass(frozen=True)
class AnnotatorReport:
    """One annotator as an aggregation sees them: skill and side bias in logits (None: not modelled), pairwise votes."""

    skill: float | None
    side_bias: float | None
    votes: int


@dataclass(frozen=True)
class ConsensusReport:
    """Which method, and what it found out about each annotator, by name."""

    method: str
    annotators: dict[str, AnnotatorReport]

    def to_dict(self) -> dict[str, Any]:
        """`{"method", "annotators": {name: {"skill", "side_bias", "votes"}}}`."""
        rows = {
            name: {"skill": report.skill, "side_bias": report.side_bias, "votes": report.votes}
            for name, report in self.annotators.items()
        }
        return {"method": self.method, "annotators": rows}


class Consensus(NamedTuple):
    """What `compute_consensus` returns."""

    preferences: list[Preference]
    report: ConsensusReport


def compute_consensus(votes: Iterable[Vote], method: str = "bradley_terry") -> Consensus:
    """One preference for each pair that comparisons, rankings or ratings speak of, sorted by ids of prompt, a and b.

    A pair seen as (a, b) and as (b, a) is one pair. weight = share of its votes that are not 'both bad': 0 where all
    are, and then probability is 0.5. strength = mean of the strengths that were given / 7. The result does not depend
    on the order of `votes`; give the current ones (`VoteStore.votes`).

    An owner's verdict (source "adjudication") settles its pair: probability 1, 0 or 0.5 with uncertainty 0, whatever
    the others say; the newest counts. It tells nothing of the annotators' skill.

    Raises ConfigError where `method` is not in CONSENSUS.
    """
    if method not in CONSENSUS:
        raise ConfigError(f"unknown consensus {method!r}", mend=f"use one of {', '.join(CONSENSUS)}")
    votes = list(votes)
    table = build_pair_table(vote for vote in votes if vote.source != ADJUDICATION)
    judged = table.judged()
    fit = CONSENSUS[method](judged)
    preferences = _settle(_build_preferences(table, judged, fit), [v for v in votes if v.source == ADJUDICATION])
    return Consensus(preferences, _build_report(table, fit, method))


def _settle(preferences: list[Preference], verdicts: list[Vote]) -> list[Preference]:
    """The preferences with those pairs replaced or added that a verdict speaks of."""
    settled = {(p.prompt.id, p.a.id, p.b.id): p for p in preferences} if verdicts else {}
    for vote in sorted(verdicts, key=lambda vote: (vote.created_at, vote.id)):
        table = build_pair_table([vote])
        for (prompt, a, b), outcome, strength in zip(table.pairs, table.outcome, table.strength, strict=True):
            key = (prompt.id, a.id, b.id)
            settled[key] = Preference(
                prompt,
                a,
                b,
                probability=0.5 if np.isnan(outcome) else float(outcome),
                uncertainty=0.0,
                weight=0.0 if np.isnan(outcome) else 1.0,
                strength=None if np.isnan(strength) else float(strength),
                votes=settled[key].votes if key in settled else 1,
            )
    return [settled[key] for key in sorted(settled)] if verdicts else preferences


def _build_preferences(table: PairTable, judged: PairTable, fit: PairFit) -> list[Preference]:
    size = len(table.pairs)
    cast = np.bincount(table.pair, minlength=size)
    weight = np.bincount(judged.pair, minlength=size) / np.maximum(cast, 1)
    given = ~np.isnan(table.strength)
    strengths = np.bincount(table.pair[given], minlength=size)
    strength = np.bincount(table.pair[given], table.strength[given], minlength=size) / np.maximum(strengths, 1)
    return [
        Preference(
            prompt,
            a,
            b,
            probability=float(np.clip(fit.probability[i], 0.0, 1.0)),
            uncertainty=float(fit.uncertainty[i]),
            weight=float(weight[i]),
            strength=float(strength[i]) if strengths[i] else None,
            votes=int(cast[i]),
        )
        for i, (prompt, a, b) in enumerate(table.pairs)
    ]


def _build_report(table: PairTable, fit: PairFit, method: str) -> ConsensusReport:
    cast = np.bincount(table.annotator, minlength=len(table.annotators))
    rows = {
        name: AnnotatorReport(
            skill=None if fit.skill is None else float(fit.skill[j]),
            side_bias=None if fit.side_bias is None else float(fit.side_bias[j]),
            votes=int(cast[j]),
        )
        for j, name in enumerate(table.annotators)
    }
    return ConsensusReport(method, rows)
