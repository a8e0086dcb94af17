"""From a key press to the next item painted, in a real Chromium on the real labelling page: what a person waits for.

`python -m benchmarks.label_paint` serves a project with `accord label`, presses keys on the page as a person does, on a
desktop's window and a phone's, with the server as it is and with every call made slow, and prints a table. The clock
runs in the page: from the moment of the key press to the second animation frame after the next item stands there. That
frame begins when the item has been painted: a time is too long by up to one frame (17 ms), and never too short. Leaves
out what the server needs for a vote (`label_load`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accord.cli.project import create_project
from accord.errors import ConfigError, WorkspaceError
from accord.feedback.database import open_database
from accord.feedback.items import NewItem, Overlap
from accord.feedback.queue import Queue
from accord.types import Completion, Message, Prompt
from benchmarks.label_load import Served
from benchmarks.tables import format_table

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}
SLOW_MS = 500.0
PAUSE_SECONDS = 0.25
"""Between an item and the next key: quicker than anybody reads."""
LOST_SECONDS = 20.0
KEYS = "1234567"

# Runs before the page's own scripts, outside of its content security policy.
CLOCK = """
window.paints = [];
let pressed = null;
addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
addEventListener("DOMContentLoaded", () => {
  const stage = document.querySelector("#stage");
  new MutationObserver(() => {
    const began = pressed, next = stage.querySelector(".item") !== null;
    pressed = null;
    if (began === null) return;
    requestAnimationFrame(() => requestAnimationFrame(() => window.paints.push([performance.now() - began, next])));
  }).observe(stage, { childList: true });
});
"""

ANSWER = """\
Begin with **what you have**, then look at what is missing:

1. Read the recipe to its end, and weigh everything before you heat the oven.
2. Mix flour, water and salt, and let the dough rest for an hour. It should be smooth, and give way when pressed.
3. Fold it four times, half an hour apart; a cold night in the refrigerator does the rest.

> Steam in the first ten minutes is what makes a crust crisp.

| part | grams |
| --- | --- |
| flour | 500 |
| water | 340 |

Answer {side} to question {number} ends here."""


@dataclass(frozen=True)
class Paints:
    """What one person's key presses took, in milliseconds, and how many of them found no next item to paint."""

    milliseconds: tuple[float, ...]
    empty: int

    @property
    def quantiles(self) -> tuple[float, float, float]:
        """Median, 95th percentile and longest."""
        ordered = sorted(self.milliseconds)
        median, late, longest = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95, 1.0))
        return median, late, longest


def find_chromium() -> str | None:
    """The program of a Chromium on this machine."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium without a window.

    Raises:
        ConfigError: there is none on this machine.
    """
    path = find_chromium()
    if path is None:
        raise ConfigError("no Chromium on this machine", mend="apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def build_items(count: int) -> list[NewItem]:
    """Comparisons of answers of a usual length, with lists and a table."""
    made = []
    for number in range(count):
        turns = (
            Message("user", "I would like to bake bread."),
            Message("assistant", "Which oven have you?"),
            Message("user", f"A plain electric one. Question {number}: where do I begin?"),
        )
        sides = tuple(Completion.from_text(ANSWER.format(side=side, number=number)) for side in ("one", "two"))
        made.append(NewItem("comparison", Prompt(messages=turns), sides))
    return made


def measure(browser: Browser, items: int, *, screen: str, slow_ms: float, pause_seconds: float) -> Paints:
    """One person on a `screen` labels `items` items by keys; every call to the server takes `slow_ms` more.

    Raises:
        WorkspaceError: the page stopped, or a vote is missing at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        create_project(project, "tiny")
        with open_database(project / "feedback.db") as database:
            Queue(database).add_items(build_items(items + 1), round=1, seed=0, overlap=Overlap(0.0, 1, 1))
            server = Served(project, ())
            server.start()
            try:
                paints = press_keys(browser, server, items, screen, slow_ms, pause_seconds)
            finally:
                server.kill()
            cast = Queue(database).progress().cast
    if cast != items:
        raise WorkspaceError(f"{cast} votes are stored where {items} keys were pressed", mend="look at tests/web")
    return paints


def press_keys(
    browser: Browser, server: Served, items: int, screen: str, slow_ms: float, pause_seconds: float
) -> Paints:
    """Key after key, as soon as each item is painted and `pause_seconds` have passed; until all is saved."""
    width, height = SCREENS[screen]
    phone = screen == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height}, is_mobile=phone, has_touch=phone, device_scale_factor=2
    )
    context.add_init_script(CLOCK)
    page = context.new_page()
    page.goto(f"http://localhost:{server.port}/label")
    page.wait_for_selector("#label[data-ready]")
    if slow_ms:
        slow = {"offline": False, "latency": slow_ms, "downloadThroughput": -1, "uploadThroughput": -1}
        context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    for number in range(items):
        time.sleep(pause_seconds)
        page.keyboard.press(KEYS[number % len(KEYS)])
        wait_until(page, f"window.paints.length === {number + 1}")
    wait_until(page, "document.querySelector('#unsaved').hidden")
    paints = page.evaluate("window.paints")
    context.close()
    return Paints(tuple(took for took, _ in paints), sum(not there for _, there in paints))


def wait_until(page: Page, condition: str) -> None:
    """Asks the page from here: its policy forbids what playwright's own waiting would evaluate in it.

    Raises:
        WorkspaceError: it never came true.
    """
    deadline = time.monotonic() + LOST_SECONDS
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise WorkspaceError(f"waited in vain for {condition}", mend="look at tests/web")
        time.sleep(0.005)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100, help="keys pressed in each run")
    parser.add_argument("--slow-ms", type=float, default=SLOW_MS, help="what each call takes more in the slow runs")
    parser.add_argument("--pause", type=float, default=PAUSE_SECONDS, help="seconds between an item and the next key")
    options = parser.parse_args(arguments)
    rows = []
    with open_browser() as browser:
        for screen in SCREENS:
            for slow_ms in (0.0, options.slow_ms):
                found = measure(browser, options.items, screen=screen, slow_ms=slow_ms, pause_seconds=options.pause)
                server = f"each call {slow_ms:.0f} ms slower" if slow_ms else "as it is"
                rows.append([screen, server, len(found.milliseconds), found.empty, *found.quantiles])
                print(rows[-1], file=sys.stderr, flush=True)
    heads = ["screen", "server", "keys", "next item was missing", "median ms", "p95 ms", "longest ms"]
    print(format_table(heads, rows))


if __name__ == "__main__":
    main()
