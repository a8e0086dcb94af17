"""Which pairs to ask about next: part of them drawn at random, the rest the best by a rule, with exact propensities.

Implements the rules, the draw, and the probability with which each pair was chosen. To add a rule, write a function
and its line in SELECTORS. Leaves out where scores come from (`rewards`) and asking (`queue`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import hypergeom

from accord.errors import ConfigError, DataError
from accord.types import Completion, Prompt, derive_seed

RANDOM_SHARE = 0.2


@dataclass(frozen=True)
class Candidate:
    """A pair that could be asked about.

    margins: score(a) - score(b) under each reward model of an ensemble, in logits. human: what people say so far,
    P(a is better), None where nobody has judged. prompt_votes: how many votes the prompt has so far. places: where a
    differs from b on each taste, a direction in which people differ, in standard deviations of people.
    """

    prompt: Prompt
    a: Completion
    b: Completion
    margins: tuple[float, ...] = ()
    human: float | None = None
    prompt_votes: int = 0
    places: tuple[float, ...] = ()


@dataclass(frozen=True)
class Selected:
    """A chosen candidate: its index, the arm that chose it ("random" or the rule), and P(it is chosen by either)."""

    index: int
    arm: str
    propensity: float


def order_at_random(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """A uniformly random order."""
    order = list(range(len(candidates)))
    random.Random(derive_seed(seed, "random order")).shuffle(order)
    return order


def order_by_uncertainty(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """Largest ensemble disagreement first: the variance over models m of p_m = sigmoid(margin_m).

    Raises DataError where a candidate has fewer than two margins. Source: query by committee (Seung et al. 1992);
    reward-model ensembles for active preference queries (Christiano et al. 2017, section 2.2.4).
    """
    _require_margins(candidates, 2, "uncertain")
    return _order(candidates, seed, [-_variance([_sigmoid(m) for m in c.margins]) for c in candidates])


def order_by_conflict(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """Largest difference between people and reward model first: |human - mean_m sigmoid(margin_m)|; unjudged ones last.

    Raises DataError where a candidate that people judged has no margin.
    """
    _require_margins([c for c in candidates if c.human is not None], 1, "conflict")
    return _order(
        candidates,
        seed,
        [1.0 if c.human is None else -abs(c.human - _mean([_sigmoid(m) for m in c.margins])) for c in candidates],
    )


def order_by_coverage(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """Prompts with the fewest votes first, counting the pairs of the same prompt that come earlier in this order."""
    earlier, keys = Counter[Prompt](), [0.0] * len(candidates)
    for index in order_at_random(candidates, seed):
        keys[index] = candidates[index].prompt_votes + earlier[candidates[index].prompt]
        earlier[candidates[index].prompt] += 1
    return _order(candidates, seed, keys)


def order_by_taste(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """Those first whose answers say most of what sets somebody apart: greedy D-optimal design over `places`.

    Where no taste is known all are alike, and their order is random. Raises DataError where a candidate has no margin.
    """
    _require_margins(candidates, 1, "taste")
    order = order_at_random(candidates, seed)
    tastes = len(candidates[0].places) if candidates else 0
    places = np.array([candidates[i].places for i in order], dtype=np.float64).reshape(len(order), tastes)
    margins = np.array([_mean(candidates[i].margins) for i in order])
    return [order[i] for i in design_questions(margins, places, len(order))]


def design_questions(margins: NDArray[np.float64], places: NDArray[np.float64], count: int) -> list[int]:
    """Indices of `count` of n questions whose answers say most of delta ~ N(0, I), one after the other.

    margins (n,) in logits; places (n, K). An answer is worth log(1 + s (1 - s) d^T C d) / 2 nats to first order, C the
    covariance so far, s = sigmoid(margin); C is then as if it were answered (the D-optimal design of a logistic
    regression, Chaloner and Verdinelli 1995). Equals stay in their order.
    """
    covariance = np.eye(places.shape[1])
    weights = expit(margins) * expit(-margins)
    chosen: list[int] = []
    for _ in range(min(count, len(margins))):
        worth = weights * np.einsum("np,pq,nq->n", places, covariance, places)
        worth[chosen] = -1.0
        best = int(worth.argmax())
        chosen.append(best)
        along = covariance @ places[best]
        covariance = covariance - np.outer(along, along) * weights[best] / (1 + worth[best])
    return chosen


SELECTORS: dict[str, Callable[[Sequence[Candidate], int], list[int]]] = {
    "random": order_at_random,
    "uncertain": order_by_uncertainty,
    "conflict": order_by_conflict,
    "coverage": order_by_coverage,
    "taste": order_by_taste,
}


def select_pairs(
    candidates: Sequence[Candidate], count: int, *, selector: str, seed: int, random_share: float = RANDOM_SHARE
) -> list[Selected]:
    """`count` of the candidates (all, where there are fewer): the random arm's, then the rule's best of the rest.

    r = ceil(random_share * count) are drawn uniformly without replacement from all N; the other count - r are the first
    of the rule's order that were not drawn. Propensities are exact (`compute_propensities`). With the selector "random"
    all are drawn.

    Raises ConfigError for an unknown selector or a share outside (0, 1]: without a random arm, what the rule leaves out
    has propensity 0 and no later estimate can be corrected for the choice.
    """
    if selector not in SELECTORS:
        raise ConfigError(f"unknown selector {selector!r}", mend=f"use one of {', '.join(SELECTORS)}")
    if not 0.0 < random_share <= 1.0:
        raise ConfigError(f"a random share of {random_share}", mend="give a share above 0, up to 1")
    if count < 0:
        raise DataError(f"{count} pairs cannot be chosen", mend="give a number from 0 up")
    chosen = min(count, len(candidates))
    share = 1.0 if selector == "random" else random_share
    drawn = min(chosen, math.ceil(share * chosen - 1e-9))
    propensities = compute_propensities(len(candidates), drawn, chosen - drawn)
    order = SELECTORS[selector](candidates, seed)
    at_random = set(random.Random(derive_seed(seed, "random arm")).sample(range(len(candidates)), drawn))
    best = [index for index in order if index not in at_random][: chosen - drawn]
    place = {index: rank for rank, index in enumerate(order)}
    arms = [(index, "random") for index in sorted(at_random)] + [(index, selector) for index in best]
    return [Selected(index, arm, propensities[place[index]]) for index, arm in arms]


def compute_propensities(total: int, drawn: int, best: int) -> list[float]:
    """P(chosen) of the candidate at each rank k = 0 .. N-1 of the rule's order, N = total, r = drawn, n = best.

    It is drawn with r / N. If it is not, it is among the first n of those not drawn exactly if at most n - 1 of the k
    ranked above it are not drawn, that is if at least k - n + 1 of them are; of the N - 1 others r are drawn, so that
    number is hypergeometric:

        P = r / N + (1 - r / N) P(H >= k - n + 1),   H ~ Hypergeometric(N - 1, k, r)

    The sum over k is r + n.
    """
    if not total:
        return []
    chance = drawn / total
    if best == 0 or drawn == total:
        return [chance] * total
    return [
        min(1.0, chance + (1.0 - chance) * float(hypergeom.sf(rank - best, total - 1, rank, drawn)))
        for rank in range(total)
    ]


def _order(candidates: Sequence[Candidate], seed: int, keys: Sequence[float]) -> list[int]:
    """Smallest key first; equal ones in an order that the seed and the texts decide."""
    ties = [hashlib.sha256(f"{seed}:{c.prompt.id}:{c.a.id}:{c.b.id}".encode()).hexdigest() for c in candidates]
    return sorted(range(len(candidates)), key=lambda index: (keys[index], ties[index]))


def _require_margins(candidates: Sequence[Candidate], least: int, selector: str) -> None:
    if any(len(c.margins) < least or not all(map(math.isfinite, c.margins)) for c in candidates):
        raise DataError(
            f"the selector {selector!r} needs finite margins of at least {least} reward models for each pair",
            mend="score the pairs first, or choose another selector",
        )


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return _mean([(value - mean) ** 2 for value in values])
