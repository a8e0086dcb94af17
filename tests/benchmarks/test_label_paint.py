"""The benchmark of the labelling page in small: every key press is timed, waits for no round trip, and is a vote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from benchmarks.label_paint import Paints, find_chromium, measure, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_no_key_waits_for_a_server_that_takes_two_seconds(browser: Browser, screen: str) -> None:
    found = measure(browser, 8, screen=screen, slow_ms=2000.0, pause_seconds=0.05)
    assert len(found.milliseconds) == 8
    assert found.empty == 0
    assert 0 < max(found.milliseconds) < 2000.0, "one round trip takes two seconds"


def test_quantiles_of_known_times() -> None:
    assert Paints(tuple(float(n) for n in range(100, -1, -1)), 0).quantiles == (50.0, 95.0, 100.0)
