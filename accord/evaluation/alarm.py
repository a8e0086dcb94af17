"""The alarm: whether a policy in training wins by nonsense rather than by serving people better.

Implements tests on the looks of a run (`looks.Look`): the judge falls while the proxy claims a gain (`reversal`), the
judge confirms too little of what the proxy claims (`shortfall`), annotators who are asked at each look prefer an
earlier policy while the proxy claims a gain (`votes`), the ensemble's members part (`disagreement`), and KL out of its
budget (`kl`); the marks of degenerate text come from `degeneration`. Pure functions on numbers and texts. Leaves out
taking looks, and stopping (`training`), and asking annotators (`loop.challenging`).

Statistics. All looks have the same n prompts and seeds, so differences are paired by prompt. A run has K planned looks
after the start. The chance that any of the tests rings falsely in a run is at most `false_alarm_rate`: each of the
three, or with annotators four, gets as large a part of it, parted by Bonferroni over all comparisons that the whole run
could make (K for a comparison with the start or with the best look so far, whose votes are fresh at each look;
K (K + 1) / 2 for one with every earlier look). So it holds whichever look is the best so far, and however often one
looks. Each comparison is a one-sided paired t-test, of votes an exact sign test. Marks of text have thresholds instead,
and no rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from accord.config.schema import AlarmSection
from accord.evaluation.degeneration import find_degeneration
from accord.evaluation.wording import say_number
from accord.looks import Alarm, Challenge, Look

LEAST_PROMPTS = 8
"""With fewer validation prompts a look by itself cannot tell, and nothing rings but by annotators' votes."""

TESTS = 3
"""Tests that share the false-alarm rate: reversal, shortfall, disagreement; where annotators are asked, votes too."""

RATE_CONFIDENCE = 0.95
"""Of the lower limit of the exchange rate: one-sided."""

Values = NDArray[np.float64]


def check_looks(
    looks: Sequence[Look], cfg: AlarmSection, *, planned: int, max_kl_nats: float, challenge: Challenge | None = None
) -> list[Alarm]:
    """The alarms that ring at the last of `looks`, the first of which was taken before any update; most often none.

    planned: looks after the start that the whole run takes, if nothing stops it. challenge: what annotators said of the
    last look, where they were asked.
    """
    if not cfg.enabled or len(looks) < 2:
        return []
    tests = check_scores(looks, cfg, planned=planned, challenge=challenge)
    if len(looks[-1].proxy) < LEAST_PROMPTS:
        return tests
    far = _check_kl(looks[-1], cfg.kl_budgets * max_kl_nats)
    return [*([far] if far else []), *tests, *find_degeneration(looks[0], looks[-1], cfg)]


def check_scores(
    looks: Sequence[Look], cfg: AlarmSection, *, planned: int, challenge: Challenge | None = None
) -> list[Alarm]:
    """Those alarms that are tests, at the last of `looks`: their rate over a run is at most `cfg.false_alarm_rate`.

    The judge stands for annotators: where they are asked, it is heard only where they too hold the last look for worse
    than the best before.
    """
    level = cfg.false_alarm_rate / (TESTS + bool(challenge))
    proxy, heldout = (
        [np.asarray(getattr(look, name), dtype=np.float64) for look in looks] for name in ("proxy", "heldout")
    )
    updates = [look.update for look in looks]
    found = [check_votes(looks, challenge, level / planned)] if challenge else []
    if len(looks[-1].proxy) >= LEAST_PROMPTS:
        found.append(_test_ensemble(looks, level / planned, cfg.disagreement_ratio))
        if challenge is None or challenge.worse:
            found.append(check_reversal(proxy, heldout, updates, level / count_pairs(planned)))
            found.append(check_shortfall(proxy, heldout, updates, level / planned, cfg.confirmed_share))
    return [alarm for alarm in found if alarm is not None]


def count_pairs(planned: int) -> int:
    """Pairs of an earlier and a later look among the start and `planned` looks: K (K + 1) / 2."""
    return planned * (planned + 1) // 2


def check_reversal(
    proxy: Sequence[Values], heldout: Sequence[Values], updates: Sequence[int], level: float
) -> Alarm | None:
    """The judge's mean fell since an earlier look while the proxy's rose: p < `level`, against the worst such look.

    proxy, heldout: one (n,) array a look. H0: the judge's true mean has not fallen since that look.
    """
    last, claimed = heldout[-1], float(np.mean(proxy[-1]))
    drops = [
        (compute_p_below(last - before), i)
        for i, before in enumerate(heldout[:-1])
        if float(np.mean(proxy[i])) < claimed
    ]
    chance, since = min(drops, default=(1.0, 0))
    if chance >= level:
        return None
    lost = float(np.mean(last) - np.mean(heldout[since]))
    gain = claimed - float(np.mean(proxy[since]))
    when = "since the start" if updates[since] == 0 else f"since update {updates[since]}"
    reason = (
        f"The reward that is optimised has risen by {say_number(gain)} {when}, and the independent judge has fallen by "
        f"{say_number(-lost)}: answers please the reward and not the judge. {_say_chance(chance)}"
    )
    return Alarm("reversal", updates[-1], reason, {"claimed": gain, "judged": lost, "p": chance})


def check_shortfall(
    proxy: Sequence[Values], heldout: Sequence[Values], updates: Sequence[int], level: float, share: float
) -> Alarm | None:
    """The judge confirms less than `share` of what the proxy's gain since the start is worth: p < `level`.

    What it is worth is read off the start's own completions: `compute_exchange_rate` points of the judge a point of the
    proxy. H0: E[judge's gain] >= share * rate * E[proxy's gain]. The rate already discounts that part of a gain which
    is only the proxy's noise selected for (regressional Goodhart): for jointly normal scores, choosing by the proxy
    moves the judge by exactly its regression slope.
    """
    rate = compute_exchange_rate(proxy[0], heldout[0])
    claims, gains = proxy[-1] - proxy[0], heldout[-1] - heldout[0]
    claimed, judged = float(claims.mean()), float(gains.mean())
    chance = compute_p_below(gains - share * rate * claims)
    if claimed <= 0 or rate <= 0 or chance >= level:
        return None
    reason = (
        f"The reward that is optimised claims a gain of {say_number(claimed)} since the start. On the start's own "
        f"answers that went with at least {say_number(rate * claimed)} by the independent judge, who now sees "
        f"{say_number(judged)}: less than {share:.0%} of it. {_say_chance(chance)}"
    )
    measured = {"claimed": claimed, "judged": judged, "expected": rate * claimed, "p": chance}
    return Alarm("shortfall", updates[-1], reason, measured)


def check_votes(looks: Sequence[Look], challenge: Challenge, level: float) -> Alarm | None:
    """Annotators prefer the best look before to the last one, while the proxy claims a gain since: p < `level`.

    A sign test, exact for votes that do not depend on each other. H0: of the answers to a question of which they prefer
    one, it is the last look's at least every second time.
    """
    before = next(look for look in looks if look.update == challenge.rival)
    gain = float(np.mean(looks[-1].proxy) - np.mean(before.proxy))
    won, lost = challenge.won, challenge.lost
    chance = float(stats.binom.cdf(won, won + lost, 0.5)) if won + lost else 1.0
    if gain <= 0 or chance >= level:
        return None
    when = "since the start" if challenge.rival == 0 else f"since update {challenge.rival}"
    reason = (
        f"The reward that is optimised has risen by {say_number(gain)} {when}, and annotators prefer the policy as it "
        f"was then: in {lost} of {won + lost} pairs of answers between which they decided. {_say_chance(chance)}"
    )
    return Alarm("votes", looks[-1].update, reason, {"claimed": gain, "won": won, "lost": lost, "p": chance})


def check_disagreement(before: ArrayLike, after: ArrayLike, update: int, level: float, ratio: float) -> Alarm | None:
    """The ensemble's members part: mean disagreement above `ratio` times the start's, p < `level`; both (n,)."""
    start, now = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    chance = compute_p_below(ratio * start - now)
    if chance >= level:
        return None
    reason = (
        f"The reward models of the ensemble disagree {say_number(float(now.mean()))} on average, at the start "
        f"{say_number(float(start.mean()))}: the policy has gone where the votes say nothing. {_say_chance(chance)}"
    )
    measured = {"before": float(start.mean()), "after": float(now.mean()), "p": chance}
    return Alarm("disagreement", update, reason, measured)


def compute_p_below(differences: ArrayLike) -> float:
    """One-sided p of a t-test that the mean of `differences` (n,) is below 0; small where it is. No spread: 0 or 1."""
    values: Values = np.asarray(differences, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    if error == 0.0:
        return 0.0 if mean < 0 else 1.0
    return float(stats.t.cdf(mean / error, len(values) - 1))


def compute_exchange_rate(proxy: ArrayLike, heldout: ArrayLike) -> float:
    """Points of the judge that went with a point of the proxy among the start's completions, (n,) each; at least 0.

    The one-sided 95 % lower limit of the least-squares slope of judge on proxy, so that a rate that few prompts only
    seem to show claims nothing.
    """
    x, y = np.asarray(proxy, dtype=np.float64), np.asarray(heldout, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) == 0.0:
        return 0.0
    line = stats.linregress(x, y)
    limit = float(line.slope) - float(stats.t.ppf(RATE_CONFIDENCE, len(x) - 2)) * float(line.stderr)
    return max(0.0, limit)


def _test_ensemble(looks: Sequence[Look], level: float, ratio: float) -> Alarm | None:
    before, after = looks[0].disagreement, looks[-1].disagreement
    if before is None or after is None:
        return None
    return check_disagreement(before, after, looks[-1].update, level, ratio)


def _check_kl(look: Look, limit: float) -> Alarm | None:
    """Mean KL beyond its limit."""
    mean = float(np.mean(look.kl_nats))
    if mean <= limit:
        return None
    reason = (
        f"The policy has moved {say_number(mean, 1)} nats a sequence from its reference, beyond "
        f"{say_number(limit, 1)}: reward models know nothing of answers so far from those that people judged."
    )
    return Alarm("kl", look.update, reason, {"kl_nats": mean, "limit": limit})


def _say_chance(chance: float) -> str:
    if chance < 1e-6:
        return "Chance alone would do so less than once in a million looks."
    return f"Chance alone would do so once in {round(1 / chance):,} looks."
