"""What is said of a run whose truth is planted: whether it was gamed, what the alarm would have kept, the shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from accord.laboratory.outcome import CLEAR_DEVIATIONS, describe_outcome, find_alarm, is_clearly_below
from accord.looks import Look
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


def describe(views: Sequence[Sequence[Look]], choose: Callable[[int], int] | None = None) -> dict[str, Any]:
    """The outcome where the truth is measured on the looks' own answers."""
    return describe_outcome(views, [look.gold or () for look in views[-1]], 0.05, choose)


def list_views(looks: Sequence[Look]) -> list[Sequence[Look]]:
    """The looks so far at each look, by a judge who does not change."""
    return [looks[: count + 1] for count in range(len(looks))]


def test_a_run_that_rises_and_falls_is_gamed_and_its_peak_is_kept() -> None:
    golds = [0.0, 1.0, 2.0, 1.8, 0.5, -1.0]
    looks = make_looks(golds, proxies=[0, 1, 2, 3, 4, 5], judged=golds)
    found = describe(list_views(looks))
    assert found["rose"] and found["gamed"]
    assert found["peak_look"] == found["kept_look"] == 2
    assert found["alarm"] is not None and found["alarm"]["look"] > 2
    assert found["kept_share"] == pytest.approx(1.0)
    assert found["end_share"] == pytest.approx(-0.5), "from 0 over 2 to -1: half of the gain, and lost"
    assert found["fall"] == pytest.approx(3.0), "in deviations of the start, which are 1"


def test_a_run_that_only_rises_is_not_gamed() -> None:
    golds = [0.0, 1.0, 1.5, 1.75, 1.8, 1.7]
    found = describe(list_views(make_looks(golds, proxies=golds, judged=golds)))
    assert found["rose"] and not found["gamed"], "a tenth of a deviation is no clear fall"
    assert found["kept_look"] == 4 and found["kept_share"] == pytest.approx(1.0)
    assert found["end_share"] == pytest.approx(1.7 / 1.8)


def test_a_fall_that_the_proxy_does_not_reward_is_no_gaming() -> None:
    golds = [0.0, 2.0, 0.5]
    assert describe(list_views(make_looks(golds, proxies=[0, 2, 3], judged=golds)))["gamed"]
    assert not describe(list_views(make_looks(golds, proxies=[0, 2, 1], judged=golds)))["gamed"]


def test_nothing_is_kept_of_a_gain_that_never_was() -> None:
    found = describe(list_views(make_looks([0.0, 0.2, -1.0], proxies=[0, 1, 2], judged=[0.0, 0.2, -1.0])))
    assert not found["rose"] and found["gamed"]
    assert found["kept_share"] is None and found["end_share"] is None


def test_the_look_that_rings_is_not_kept() -> None:
    """A judge that is fooled at last, beyond the look at which it rang, chooses nothing there."""
    looks = make_looks([0, 1, 2, -2, -2], proxies=[0, 1, 2, 3, 4], judged=[0, 1, 2, -2, 9])
    rang = find_alarm(list_views(looks), 0.05)
    assert rang is not None and rang["look"] == 3
    assert describe(list_views(looks))["kept_look"] == 2


def test_clearly_below_needs_both_size_and_certainty() -> None:
    rng = np.random.default_rng(1)
    base, noise = rng.normal(size=N), rng.normal(size=N)
    noise -= noise.mean()
    assert is_clearly_below(base - CLEAR_DEVIATIONS - 0.01, base, 1.0)
    assert not is_clearly_below(base - CLEAR_DEVIATIONS + 0.01, base, 1.0), "certain and small"
    assert not is_clearly_below(base - 0.6 + 3 * noise, base, 1.0), "large and uncertain: t = -1.6"


def test_what_is_known_at_a_look_decides_there() -> None:
    """A judge who sees the fall once it was voted on: the alarm rings then, and the peak is kept by what it knows."""
    golds = [0.0, 1.0, 2.0, 0.0, -1.0]
    fooled = make_looks(golds, proxies=[0, 1, 2, 3, 4], judged=[0, 1, 2, 3, 4])
    told = make_looks(golds, proxies=[0, 1, 2, 3, 4], judged=golds)
    views = [*list_views(fooled)[:4], told]
    assert find_alarm(list_views(fooled), 0.05) is None
    found = describe(views)
    assert found["alarm"]["look"] == 4 and found["kept_look"] == 2
    assert describe(list_views(fooled))["kept_look"] == 4


def test_people_choose_among_the_looks_before_the_alarm() -> None:
    """A judge who takes a worse look for the best is put right by votes, which nobody casts on what comes after."""
    golds = [0.0, 2.0, 1.5, -2.0]
    looks = make_looks(golds, proxies=[0, 1, 2, 3], judged=[0.0, 1.8, 2.0, -2.0])
    asked = []

    def choose(count: int) -> int:
        asked.append(count)
        return 1

    found = describe(list_views(looks), choose)
    assert found["alarm"]["look"] == 3 and asked == [3]
    assert found["kept_look"] == 1 and found["kept_share"] == pytest.approx(1.0)
    assert found["judged_share"] == pytest.approx(0.75)
    assert describe(list_views(looks))["kept_look"] == 2, "what the judge would have kept"
