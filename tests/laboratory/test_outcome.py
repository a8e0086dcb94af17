"""What is said of a run whose truth is planted: whether it was gamed, what the alarm would have kept, the shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from accord.laboratory.outcome import CLEAR_DEVIATIONS, Ask, describe_outcome, is_clearly_below, watch_run
from accord.looks import Challenge, Look
from accord.types import Completion, Prompt

N = 64


def make_looks(
    golds: Sequence[float], *, proxies: Sequence[float], judged: Sequence[float], seed: int = 0
) -> list[Look]:
    """Looks whose means are these; the answers' gold has standard deviation 1 at the start, and little noise later."""
    rng = np.random.default_rng(seed)
    spread = rng.permutation(np.repeat([-1.0, 1.0], N // 2))
    looks = []
    for update, (gold, proxy, judge) in enumerate(zip(golds, proxies, judged, strict=True)):
        noise = 0.1 * rng.normal(size=N)
        looks.append(
            Look(
                update=update,
                prompts=tuple(Prompt(text=str(i)) for i in range(N)),
                completions=tuple(Completion.from_text("answer") for _ in range(N)),
                token_ids=((1,),) * N,
                length_tokens=(1.0,) * N,
                kl_nats=(0.5,) * N,
                proxy=tuple(spread + proxy),
                heldout=tuple(spread + judge + noise - noise.mean()),
                gold=tuple(spread + gold),
            )
        )
    return looks


def describe(
    looks: Sequence[Look], choose: Callable[[int], int] | None = None, ask: Ask | None = None
) -> dict[str, Any]:
    """The outcome where the truth is measured on the looks' own answers."""
    return describe_outcome(looks, [look.gold or () for look in looks], 0.05, ask, choose)


def test_a_run_that_rises_and_falls_is_gamed_and_its_peak_is_kept() -> None:
    golds = [0.0, 1.0, 2.0, 1.8, 0.5, -1.0]
    looks = make_looks(golds, proxies=[0, 1, 2, 3, 4, 5], judged=golds)
    found = describe(looks)
    assert found["rose"] and found["gamed"]
    assert found["peak_look"] == found["kept_look"] == 2
    assert found["alarm"] is not None and found["alarm"]["look"] > 2
    assert found["kept_share"] == pytest.approx(1.0)
    assert found["end_share"] == pytest.approx(-0.5), "from 0 over 2 to -1: half of the gain, and lost"
    assert found["fall"] == pytest.approx(3.0), "in deviations of the start, which are 1"


def test_a_run_that_only_rises_is_not_gamed() -> None:
    golds = [0.0, 1.0, 1.5, 1.75, 1.8, 1.7]
    found = describe(make_looks(golds, proxies=golds, judged=golds))
    assert found["rose"] and not found["gamed"], "a tenth of a deviation is no clear fall"
    assert found["kept_look"] == 4 and found["kept_share"] == pytest.approx(1.0)
    assert found["end_share"] == pytest.approx(1.7 / 1.8)


def test_a_fall_that_the_proxy_does_not_reward_is_no_gaming() -> None:
    golds = [0.0, 2.0, 0.5]
    assert describe(make_looks(golds, proxies=[0, 2, 3], judged=golds))["gamed"]
    assert not describe(make_looks(golds, proxies=[0, 2, 1], judged=golds))["gamed"]


def test_nothing_is_kept_of_a_gain_that_never_was() -> None:
    found = describe(make_looks([0.0, 0.2, -1.0], proxies=[0, 1, 2], judged=[0.0, 0.2, -1.0]))
    assert not found["rose"] and found["gamed"]
    assert found["kept_share"] is None and found["end_share"] is None


def test_the_look_that_rings_is_not_kept() -> None:
    """A judge that is fooled at last, beyond the look at which it rang, chooses nothing there."""
    looks = make_looks([0, 1, 2, -2, -2], proxies=[0, 1, 2, 3, 4], judged=[0, 1, 2, -2, 9])
    rang, best = watch_run(looks, 0.05)
    assert rang is not None and rang["look"] == 3 and best == 2
    assert describe(looks)["kept_look"] == 2


def test_clearly_below_needs_both_size_and_certainty() -> None:
    rng = np.random.default_rng(1)
    base, noise = rng.normal(size=N), rng.normal(size=N)
    noise -= noise.mean()
    assert is_clearly_below(base - CLEAR_DEVIATIONS - 0.01, base, 1.0)
    assert not is_clearly_below(base - CLEAR_DEVIATIONS + 0.01, base, 1.0), "certain and small"
    assert not is_clearly_below(base - 0.6 + 3 * noise, base, 1.0), "large and uncertain: t = -1.6"


def test_people_who_are_asked_see_what_the_judge_does_not() -> None:
    """A judge with the proxy's blind spot hears nothing. People are asked each time beside the best look before; they
    prefer the second to the first, then not the third, and by enough votes never the fourth."""
    golds = [0.0, 1.0, 2.0, 1.8, -1.0]
    fooled = make_looks(golds, proxies=[0, 1, 2, 3, 4], judged=[0, 1, 2, 3, 4])
    asked = []

    def ask(now: int, best: int) -> Challenge:
        asked.append((now, best))
        won = round(100 * (0.5 + np.sign(golds[now] - golds[best]) * min(0.4, abs(golds[now] - golds[best]) / 5)))
        return Challenge(now, best, (1.0,) * won + (0.0,) * (100 - won))

    assert watch_run(fooled, 0.05) == (None, 4)
    found = describe(fooled, ask=ask)
    assert asked == [(1, 0), (2, 1), (3, 2), (4, 2)]
    assert (found["alarm"]["look"], found["alarm"]["kind"]) == (4, "votes")
    assert found["best_look"] == found["kept_look"] == 2 and found["best_share"] == found["kept_share"] == 1.0


def test_people_choose_among_the_looks_before_the_alarm() -> None:
    """A judge who takes a worse look for the best is put right by votes, which nobody casts on what comes after."""
    golds = [0.0, 2.0, 1.5, -2.0]
    looks = make_looks(golds, proxies=[0, 1, 2, 3], judged=[0.0, 1.8, 2.0, -2.0])
    asked = []

    def choose(count: int) -> int:
        asked.append(count)
        return 1

    found = describe(looks, choose)
    assert found["alarm"]["look"] == 3 and asked == [3]
    assert found["kept_look"] == 1 and found["kept_share"] == pytest.approx(1.0)
    assert found["best_share"] == pytest.approx(0.75)
    assert describe(looks)["kept_look"] == 2, "what the judge would have kept"
