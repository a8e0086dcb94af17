"""Changing one's password: other sessions and tokens end, guesses are limited, forged forms and tokens get nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fastapi.testclient import TestClient

from accord.config import load_config
from accord.web.site import Site, open_site
from accord.workspace import Workspace
from tests.web.served import PASSWORD, Server, build_project
from tests.web.test_access import build_client, read_csrf, sign_up
from tests.web.test_http_api import give_token

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NEW = "a staple of another colour"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened = open_site(Workspace(tmp_path), load_config(build_project(tmp_path), ["label.accounts=always"]))
    yield opened
    opened.database.close()


def sign_in(site: Site, name: str, password: str) -> tuple[TestClient, int]:
    client = build_client(site)
    form = {"csrf": read_csrf(client, "/sign-in"), "name": name, "password": password}
    return client, client.post("/sign-in", data=form).status_code


def change(client: TestClient, present: str, password: str = NEW, again: str | None = None) -> int:
    form = {"csrf": read_csrf(client, "/password"), "present": present, "password": password}
    return client.post("/password", data={**form, "again": password if again is None else again}).status_code


def test_other_sessions_and_tokens_end_and_this_one_stays(site: Site) -> None:
    here = sign_up(site, "ada")
    elsewhere, status = sign_in(site, "ada", PASSWORD)
    assert status == 303
    program = build_client(site)
    program.headers["authorization"] = f"Bearer {give_token(site, 'ada')}"
    bystander = sign_up(site, "ben")
    assert program.get("/api/status").status_code == 200

    assert change(here, PASSWORD) == 303
    assert here.get("/label").status_code == 200
    assert elsewhere.get("/label").status_code == 303
    assert program.get("/api/status").status_code == 401
    assert bystander.get("/label").status_code == 200
    assert sign_in(site, "ada", PASSWORD)[1] == 403
    assert sign_in(site, "ada", NEW)[1] == 303


def test_what_does_not_fit_changes_nothing(site: Site) -> None:
    client = sign_up(site, "ada")
    assert change(client, "not my password") == 422
    assert change(client, PASSWORD, "short") == 422
    assert change(client, PASSWORD, NEW, "something else") == 422
    forged = {"present": PASSWORD, "password": NEW, "again": NEW}
    assert client.post("/password", data=forged).status_code == 403
    program = build_client(site)
    program.headers["authorization"] = f"Bearer {give_token(site, 'ada')}"
    assert program.post("/password", data=forged).status_code == 403
    assert sign_in(site, "ada", PASSWORD)[1] == 303


def test_guesses_of_the_present_password_are_limited(site: Site) -> None:
    client = sign_up(site, "ada")
    assert [change(client, f"guess number {n}") for n in range(6)] == [422] * 5 + [429]
    assert change(client, PASSWORD) == 429, "even the right one must wait"
    assert sign_in(site, "ada", PASSWORD)[1] == 429, "one limit for both forms"


def test_in_a_browser(server: Server, browser: Browser) -> None:
    server.options = ("--set", "label.accounts=always")
    server.start()
    link = server.log.read_text().split("make yourself the owner: ")[1].split()[0]
    first, second = browser.new_context(), browser.new_context()
    page, other = first.new_page(), second.new_page()
    page.goto(link)
    page.get_by_label("Name").fill("Olga")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("header.top")
    other.goto(f"{server.link}/sign-in")
    other.get_by_label("Name").fill("Olga")
    other.get_by_label("Password").fill(PASSWORD)
    other.keyboard.press("Enter")
    other.wait_for_selector("header.top")

    page.get_by_role("link", name="Olga").click()
    page.get_by_label("Present password").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW)
    page.get_by_label("The new one again").fill(NEW)
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=status]")
    assert page.locator("[role=status]").inner_text() == "Your password is changed."
    other.goto(f"{server.link}/people")
    assert "/sign-in" in other.url
    other.get_by_label("Password").fill(NEW)
    other.get_by_label("Name").fill("Olga")
    other.keyboard.press("Enter")
    other.wait_for_selector("header.top")
    first.close()
    second.close()
