"""Simulated annotators: votes drawn from a hidden utility, with known skill, side bias, ties and inconsistency.

Implements comparisons only. Every draw is seeded by the pair and the annotator, so adding a pair or an annotator's
setting changes nobody else's vote. Leaves out where the utility comes from (a text reward) and the store.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from accord.errors import DataError
from accord.feedback.records import build_vote
from accord.types import Choice, Completion, Prompt, Vote, compute_content_id, derive_seed

CLOCK_START = datetime(2000, 1, 1, tzinfo=UTC)


class AnnotatorSettings(Protocol):
    """How one simulated annotator judges; `config.AnnotatorSection` is one."""

    @property
    def name(self) -> str:
        """Unique among the annotators."""

    @property
    def skill(self) -> float:
        """Logits per unit of utility; 0 judges at random."""

    @property
    def side_bias(self) -> float:
        """Logits towards the first completion."""

    @property
    def tie_rate(self) -> float:
        """P(tie) between two completions of equal utility."""

    @property
    def inconsistency(self) -> float:
        """P(the choice is a coin toss)."""


def compute_choice_probability(annotator: AnnotatorSettings, difference: float) -> float:
    """P(a | no tie) = (1 - inconsistency) sigmoid(skill * difference + side_bias) + inconsistency / 2.

    difference: u(a) - u(b), where a is the completion shown first. Source: Bradley-Terry with the simulated noise of
    AlpacaFarm (Dubois et al. 2023, section 3), which flips a share of the labels.
    """
    logit = annotator.skill * difference + annotator.side_bias
    sure = 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
    return (1.0 - annotator.inconsistency) * sure + annotator.inconsistency / 2.0


def compute_tie_probability(annotator: AnnotatorSettings, difference: float) -> float:
    """P(tie) = tie_rate * exp(-|skill * difference|): `tie_rate` between equals, fading as the difference shows."""
    return annotator.tie_rate * math.exp(-abs(annotator.skill * difference))


def compute_strength(annotator: AnnotatorSettings, difference: float) -> int:
    """1 to 7 = 1 + floor(7 tanh(|skill * difference| / 4)), at most 7: how sure the annotator is of a choice."""
    return min(7, 1 + math.floor(7.0 * math.tanh(abs(annotator.skill * difference) / 4.0)))


def simulate_votes(
    pairs: Sequence[tuple[Prompt, Completion, Completion]],
    utility: Callable[[Prompt, Completion], float],
    annotators: Sequence[AnnotatorSettings],
    *,
    votes_per_pair: int,
    seed: int,
    source: str,
) -> list[Vote]:
    """`votes_per_pair` comparisons on each pair, by annotators in rotation from a start that the pair's id decides.

    The sides are as given. Votes are marked `simulated`; the k-th vote on a pair carries the simulated time
    2000-01-01T00:00:00Z + k seconds. Ids are content hashes, so the same call gives the same votes.

    Raises DataError where there are fewer annotators than votes a pair needs, two share a name, or a utility is not
    finite.
    """
    names = [annotator.name for annotator in annotators]
    if len(set(names)) < len(names):
        raise DataError("two simulated annotators have the same name", mend="name each once")
    if not 1 <= votes_per_pair <= len(names):
        raise DataError(
            f"{len(names)} simulated annotators cannot cast {votes_per_pair} votes on each pair",
            mend="add annotators or lower votes_per_pair",
        )
    votes = []
    for prompt, a, b in pairs:
        difference = utility(prompt, a) - utility(prompt, b)
        if not math.isfinite(difference):
            raise DataError("the hidden utility is not finite", where=f"prompt {prompt.id}", mend="mend the utility")
        pair_id = compute_content_id([prompt.id, a.id, b.id])
        start = derive_seed(seed, "rotation", pair_id) % len(annotators)
        for turn in range(votes_per_pair):
            annotator = annotators[(start + turn) % len(annotators)]
            stream = random.Random(derive_seed(seed, "vote", pair_id, annotator.name))
            choice = _choose(annotator, difference, stream)
            votes.append(
                build_vote(
                    kind="comparison",
                    prompt=prompt,
                    completions=(a, b),
                    annotator=annotator.name,
                    choice=choice,
                    strength=None if choice == "tie" else compute_strength(annotator, difference),
                    created_at=(CLOCK_START + timedelta(seconds=turn)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    simulated=True,
                    source=source,
                )
            )
    return votes


def _choose(annotator: AnnotatorSettings, difference: float, stream: random.Random) -> Choice:
    if stream.random() < compute_tie_probability(annotator, difference):
        return "tie"
    return "a" if stream.random() < compute_choice_probability(annotator, difference) else "b"
