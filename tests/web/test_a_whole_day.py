"""One day of two people with the built wheel, in the order in which it happens, and the database at its end.

Ada is invited, signs in, reads the guidelines, labels thirty items by keys alone (comparisons, rankings and ratings,
with an undo, a skip, a flag and an edit), goes offline for twenty more and comes back; then she and Olga race for the
last.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from accord.feedback.demonstrations import read_demonstrations
from accord.feedback.queue import Queue
from accord.feedback.queue_schema import answers, items, leases
from accord.feedback.replay import audit
from accord.feedback.store import VoteStore
from accord.types import Vote
from tests.web.served import PASSWORD, Server, build_items
from tests.web.test_label_page import (
    WAIT_SECONDS,
    current_lease,
    press_and_wait,
    read_shown,
    wait_until_saved,
)
from tests.web.test_people_in_a_browser import begin

if TYPE_CHECKING:
    from playwright.sync_api import Page

ONLINE, OFFLINE = 30, 20
MEANING: dict[str, tuple[str, int | None]] = {
    "1": ("a", 7), "2": ("a", 4), "3": ("a", 1), "4": ("tie", None), "5": ("b", 1), "6": ("b", 4), "7": ("b", 7),
    "0": ("both_bad", None), "ArrowLeft": ("a", 4), "ArrowRight": ("b", 4),
}  # fmt: skip
Said = dict[str, tuple[tuple[str, ...], Any]]


def test_every_vote_of_a_day_is_there_exactly_once(server: Server, people: tuple[Page, Page]) -> None:
    olga, ada = people
    server.add(build_items(46) + build_items(2, "ranking", answers=3) + build_items(2, "rating", answers=1))
    sign_in_again(ada, server)
    begin(ada, server)
    said: Said = {}

    skipped = current_lease(ada)
    skip(ada)
    special = [change_her_mind, flag_first, write_better]
    for number in range(1, ONLINE):
        if special and ada.locator("#stage .item.comparison").count():
            special.pop()(ada, said)
        judge(ada, said, number)
    wait_until_saved(ada)

    ada.context.set_offline(True)
    for number in range(OFFLINE):
        judge(ada, said, number)
    assert ada.locator("#unsaved").inner_text() == f"{OFFLINE} unsaved"
    assert len(read_stored(server)) == ONLINE - 1
    ada.context.set_offline(False)
    wait_until_saved(ada)
    assert len(read_stored(server)) == len(said) == ONLINE + OFFLINE - 1

    begin(olga, server)
    assert current_lease(olga), "what Ada has skipped is Olga's"
    judge(olga, said, 1)
    wait_until_saved(olga)
    race_for_the_last(server, (ada, olga), said)
    check_the_end(server, said, skipped)


def sign_in_again(page: Page, server: Server) -> None:
    """Out, and in with name and password."""
    page.goto(f"{server.link}/guidelines")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_selector("text=No account yet?")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("header.top")


def judge(page: Page, said: Said, number: int) -> None:
    """Judges what is on the stage by keys alone, and remembers what was shown and meant."""
    lease, shown = current_lease(page), tuple(read_shown(page))
    if page.locator("#stage .item.ranking").count():
        for key in "213":
            page.keyboard.press(key)
        press_and_wait(page, "Enter")
        said[lease] = shown, (2, 1, 3)
    elif page.locator("#stage .item.rating").count():
        press_and_wait(page, "7")
        said[lease] = shown, 0.7
    else:
        key = list(MEANING)[number % len(MEANING)]
        press_and_wait(page, key)
        said[lease] = shown, MEANING[key]


def skip(page: Page) -> None:
    before = current_lease(page)
    page.keyboard.press("s")
    page.keyboard.press("1")
    assert current_lease(page) != before


def change_her_mind(page: Page, said: Said) -> None:
    """Judges and takes it back; what she says next is what stands."""
    first = current_lease(page)
    judge(page, said, 0)
    press_and_wait(page, "u")
    assert current_lease(page) == first


def flag_first(page: Page, said: Said) -> None:
    page.keyboard.press("f")
    page.keyboard.press("a")
    page.keyboard.press("1")
    page.wait_for_selector("#stage .answer.flagged")


def write_better(page: Page, said: Said) -> None:
    page.keyboard.press("e")
    page.keyboard.type("Tea is a drink made from leaves.")
    page.keyboard.press("Control+Enter")
    assert page.locator("#edit[open]").count() == 0


def race_for_the_last(server: Server, pages: tuple[Page, Page], said: Said) -> None:
    """Both pages wait with nothing to show; one more item comes, and both press a key at whatever they are given."""
    for page in pages:
        page.wait_for_selector("#stage .idle-note")
    server.add(build_items(60)[-1:])
    end = time.monotonic() + WAIT_SECONDS
    while not any(current_lease(page) for page in pages):
        assert time.monotonic() < end, "nobody was given the last item"
        time.sleep(0.01)
    for page in pages:
        if current_lease(page):
            judge(page, said, 2)
    for page in pages:
        wait_until_saved(page)


def read_stored(server: Server) -> dict[str, Vote]:
    """The standing judgement of each lease."""
    with server.database as database, database.read() as connection:
        lease_of = dict(connection.execute(select(answers.c.vote_id, answers.c.lease_id)).tuples().all())
        standing = [vote for vote in VoteStore(database).votes(current=True) if vote.kind != "flag"]
    assert len({lease_of[vote.id] for vote in standing}) == len(standing), "one standing vote a lease"
    return {lease_of[vote.id]: vote for vote in standing}


def check_the_end(server: Server, said: Said, skipped: str) -> None:
    """Every vote once, as it was shown and meant; no item above its overlap; the log gives all of it."""
    stored = read_stored(server)
    assert stored.keys() == said.keys()
    for lease, (shown, meant) in said.items():
        vote = stored[lease]
        assert tuple(completion.text for completion in vote.completions) == shown, "as they were shown"
        kind = {"comparison": (vote.choice, vote.strength), "ranking": vote.ranks, "rating": vote.rating}
        assert kind[vote.kind] == meant
    with server.database as database:
        everything = Counter(vote.kind for vote in VoteStore(database).votes(current=False))
        assert everything["flag"] == 1
        assert sum(everything.values()) == len(said) + 2, "the flag, and the judgement before the undo"
        assert [one.completion.text for one in read_demonstrations(database)] == ["Tea is a drink made from leaves."]
        with database.read() as connection:
            rows = connection.execute(select(items)).all()
            held = connection.execute(select(leases).where(leases.c.status == "answered")).all()
            assert connection.scalar(select(leases.c.status).where(leases.c.id == skipped)) == "skipped"
        judged = Counter(row.item_id for row in held)
        assert [(row.answered, row.leased, judged[row.id]) for row in rows] == [(1, 0, 1)] * len(rows)
        progress = Queue(database).progress()
        assert (progress.items, progress.cast, progress.missing, progress.surplus) == (51, 51, 0, 0)
        assert audit(database) > len(said)
