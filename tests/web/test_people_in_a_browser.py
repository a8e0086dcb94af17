"""Two people with accounts, each in their own browser: invited, guided, judging by keys, racing for the last item."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from accord.feedback.store import VoteStore
from tests.web.served import Server, build_items
from tests.web.test_label_page import current_lease, press_and_wait, wait_until_saved

if TYPE_CHECKING:
    from playwright.sync_api import Page


def begin(page: Page, server: Server) -> None:
    """Guidelines stand before the first item, once a version."""
    page.goto(f"{server.link}/label")
    page.wait_for_selector("#label[data-ready]")
    assert "Prefer the true answer." in page.locator("#guidelines[open]").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 0


def test_two_people_race_and_no_item_is_judged_twice(server: Server, people: tuple[Page, Page]) -> None:
    server.add(build_items(30))
    for page in people:
        begin(page, server)
    # the first holds all thirty ahead; closing the page gives back what was not judged
    held = sum(page.locator("#stage .item").count() for page in people)
    assert held >= 1
    first, second = sorted(people, key=lambda page: -page.locator("#stage .item").count())
    for _ in range(10):
        press_and_wait(first, "1")
    wait_until_saved(first)
    first.goto("about:blank")
    second.wait_for_selector("#stage .item", timeout=15_000)
    while current_lease(second):
        press_and_wait(second, "7")
    wait_until_saved(second)
    with server.database as database:
        votes = list(VoteStore(database).votes(current=False))
    assert len(votes) == len({vote.prompt.id for vote in votes}) == 30
    assert {vote.guideline_version for vote in votes} == {"1"}
    assert sorted(Counter(vote.annotator for vote in votes).values()) == [10, 20]


def test_the_owner_sees_what_the_votes_are_worth_and_decides(server: Server, people: tuple[Page, Page]) -> None:
    with server.database as database:
        from accord.feedback.queue import Queue

        Queue(database).add_items(build_items(3, overlap=2), round=1, seed=0)
    for page, key in zip(people, "17"):
        begin(page, server)
        while current_lease(page):
            press_and_wait(page, key)
        wait_until_saved(page)
    owner, ada = people
    owner.goto(f"{server.link}/worth")
    assert owner.get_by_role("rowheader", name="Ada").count() == 1
    disagreements = owner.locator("article.card").count()
    if disagreements:  # both press the same side where the orders differ
        owner.get_by_role("button", name="A is better").first.click()
        owner.wait_for_selector("#disagreements")
        assert owner.locator("article.card").count() == disagreements - 1
    ada.goto(f"{server.link}/worth")
    assert ada.locator("h1").inner_text() == "Not for you"
    ada.goto(f"{server.link}/label")
    ada.get_by_role("button", name="Sign out").click()
    ada.wait_for_selector("text=No account yet?")
