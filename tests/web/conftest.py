"""A server and a real browser for the tests of the web app; without Chromium those tests are skipped, with a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from built_wheel import build_wheel, install_wheel

from benchmarks.label_paint import find_chromium, open_browser
from tests.web.served import PASSWORD, Server, build_project

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel in a folder: what a browser sees comes from the package, not from the checkout."""
    return install_wheel(build_wheel(tmp_path_factory.mktemp("wheel")), tmp_path_factory.mktemp("installed"))


@pytest.fixture
def server(tmp_path: Path, installed: Path) -> Iterator[Server]:
    """The wheel's, open on loopback, without accounts; not started yet, so that a test may put items in first."""
    running = Server(build_project(tmp_path / "project"), installed=installed)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile that fails the test on any error in the console or request to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: _note(problems, message))
    opened.on("request", lambda request: _note_request(problems, request))
    yield opened
    context.close()
    assert problems == []


@pytest.fixture
def people(server: Server, browser: Browser) -> Iterator[tuple[Page, Page]]:
    """The owner, come in by the link that the server prints, and Ada, invited by the owner; guidelines are there."""
    server.options = ("--set", "label.accounts=always")
    server.start()
    contexts: list[BrowserContext] = []

    def accept(link: str, name: str) -> Page:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.goto(link)
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_selector("header.top")
        return page

    first = re.search(r"http://\S+/invitations/\S+", server.log.read_text())
    assert first
    owner = accept(first[0], "Olga")
    owner.goto(f"{server.link}/guidelines")
    owner.locator("#text").fill("Prefer the **true** answer.")
    owner.get_by_role("button", name="Publish").click()
    owner.goto(f"{server.link}/people")
    owner.get_by_role("button", name="Link for an annotator").click()
    yield owner, accept(owner.locator("#link").inner_text(), "Ada")
    for context in contexts:
        context.close()


def _note(problems: list[str], message: Any) -> None:
    unreachable = "net::ERR_" in message.text  # a test that goes offline or kills the server means to
    if message.type == "error" and not unreachable and "status of 4" not in message.text:
        problems.append(message.text)


def _note_request(problems: list[str], request: Any) -> None:
    if not request.url.startswith(("http://localhost:", "http://127.0.0.1:", "data:", "blob:", "about:")):
        problems.append(f"a request left the host: {request.url}")
