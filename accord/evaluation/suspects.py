"""Which token or word bought the reward: what the policy says now and did not say before, and what it is paid for it.

Implements log-odds of use, now against the start, and the price of a token by the proxy and by the judge among answers
of the same look. Leaves out alarms (`alarm`), and phrases (`degeneration`): a name for the trick, not a test for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accord.evaluation.diversity import split_words
from accord.looks import Look

LEAST_Z = 2.0
"""Log-odds of fewer standard errors are chance. More would be asked of a test; this looks for a name after one rang."""

LEAST_RISE = 0.2
"""A token whose share of answers has risen by less explains little."""

LEAST_EXPLAINED = 0.1
"""A token that accounts for less of the proxy's gain did not buy it."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """A token or word with what it does.

    share_before, share_after: of answers that have it. log_odds_z: log-odds of having it, after against before, in
    standard errors. proxy_price, judge_price: by how much the score is higher for an answer that has it than for one of
    the same look that has not. explained: (share_after - share_before) * proxy_price / the proxy's whole gain.
    """

    text: str
    kind: str
    share_before: float
    share_after: float
    log_odds_z: float
    proxy_price: float
    judge_price: float
    explained: float | None

    def to_dict(self) -> dict[str, Any]:
        """Every field under its name."""
        return dict(vars(self))


def find_suspects(looks: Sequence[Look], decode: Callable[[int], str], count: int = 5) -> list[Suspect]:
    """The `count` tokens and words that explain most of the proxy's gain from the first look to the last; often none.

    Only those whose use rose (log-odds by `LEAST_Z` standard errors, share by `LEAST_RISE`) and that the proxy pays
    for. Where a word and its tokens occur in the very same answers, the longest text stands for all of them.
    """
    if len(looks) < 2:
        return []
    start, now = looks[0], looks[-1]
    proxy, judge = (np.concatenate([getattr(look, name) for look in looks]) for name in ("proxy", "heldout"))
    place = np.repeat(np.arange(len(looks)), [len(look.proxy) for look in looks])
    gain = float(np.mean(now.proxy) - np.mean(start.proxy))
    found: dict[bytes, Suspect] = {}
    for kind, text, presence in _list_units(looks, decode):
        before, after = presence[place == 0], presence[place == len(looks) - 1]
        rise, z = float(after.mean() - before.mean()), compute_log_odds_z(after, before)
        if z < LEAST_Z or rise < LEAST_RISE or not text.strip():
            continue
        price = compute_price(presence, proxy, place)
        explained = rise * price / gain if gain > 0 else None
        if price <= 0 or (explained is not None and explained < LEAST_EXPLAINED):
            continue
        suspect = Suspect(
            text=text.strip(),
            kind=kind,
            share_before=float(before.mean()),
            share_after=float(after.mean()),
            log_odds_z=z,
            proxy_price=price,
            judge_price=compute_price(presence, judge, place),
            explained=explained,
        )
        twin = found.get(presence.tobytes())
        if twin is None or len(suspect.text) > len(twin.text):
            found[presence.tobytes()] = suspect
    by_effect = sorted(found.values(), key=lambda s: (s.share_before - s.share_after) * s.proxy_price)
    return by_effect[:count]


def compute_log_odds_z(after: Values, before: Values) -> float:
    """log odds(after) - log odds(before) in standard errors, half an answer added to each count.

    With a of n and b of m: delta = log((a + 1/2) / (n - a + 1/2)) - the same of b, variance = the sum of the four
    reciprocals (Haldane 1956; Monroe, Colaresi and Quinn 2008 use the same statistic with an informative prior).
    """
    a, b = float(after.sum()), float(before.sum())
    counts = [a + 0.5, len(after) - a + 0.5, b + 0.5, len(before) - b + 0.5]
    delta = math.log(counts[0] / counts[1]) - math.log(counts[2] / counts[3])
    return delta / math.sqrt(sum(1 / count for count in counts))


def compute_price(presence: Values, scores: Values, place: NDArray[np.intp]) -> float:
    """Mean score with less mean score without, among answers of the same look: the within-look least-squares slope.

    sum x~ y~ / sum x~^2, where ~ takes out the look's mean, so that what rose meanwhile for other reasons is not put
    down to the token. Where no look has both kinds, over all looks together; 0 where there is only one kind.
    """
    inside = [(_centre(presence, place), _centre(scores, place)), (_centre(presence), _centre(scores))]
    for x, y in inside:
        if float(x @ x) > 1e-9:
            return float(x @ y) / float(x @ x)
    return 0.0


def _centre(values: Values, place: NDArray[np.intp] | None = None) -> Values:
    """`values` less their mean, or less the mean of their own place."""
    if place is None:
        return values - values.mean()
    means = np.bincount(place, weights=values) / np.bincount(place)
    return values - means[place]


def _list_units(looks: Sequence[Look], decode: Callable[[int], str]) -> Iterator[tuple[str, str, Values]]:
    """(kind, text, presence over all answers of all looks) of each token and word of the last look."""
    tokens = [frozenset(ids) for look in looks for ids in look.token_ids]
    words = [frozenset(split_words(answer.text)) for look in looks for answer in look.completions]
    last = len(looks[-1].proxy)
    for token in sorted(frozenset().union(*tokens[-last:])):
        yield "token", decode(token), np.array([token in own for own in tokens], dtype=np.float64)
    for word in sorted(frozenset().union(*words[-last:])):
        yield "word", word, np.array([word in own for own in words], dtype=np.float64)
