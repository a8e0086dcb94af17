"""The labelling page in a real browser against a real server: keys, never lost, blind, quick."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from accord.feedback.queue import Queue
from accord.feedback.store import VoteStore
from accord.types import Vote
from tests.web.served import Server, build_items

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_SECONDS = 20.0
HEAR_OF_ANSWERS_BEFORE_ITEMS = """
    const reach = window.fetch;
    let tellListed;
    const listed = new Promise((resolve) => { tellListed = resolve; });
    window.fetch = async (path, options) => {
      if (path.endsWith("/answers")) await listed;
      const response = await reach(path, options);
      if (path.endsWith("/lease")) {
        tellListed();
        while (!document.querySelector("#unsaved").hidden) await new Promise((resolve) => setTimeout(resolve, 10));
      }
      return response;
    };
"""


def read_votes(server: Server, *, current: bool = True) -> list[Vote]:
    with server.database as database:
        return list(VoteStore(database).votes(current=current))


def begin(page: Page, server: Server) -> None:
    page.goto(f"{server.link}/label")
    page.wait_for_selector("#label[data-ready]")


def wait_for(page: Page, condition: str, argument: Any = None) -> None:
    """Polls from here: the page's policy forbids the text that playwright's own waiting would evaluate in it."""
    end = time.monotonic() + WAIT_SECONDS
    while not page.evaluate(condition, argument):
        assert time.monotonic() < end, f"waited in vain for {condition}"
        time.sleep(0.01)


def wait_until_saved(page: Page) -> None:
    wait_for(page, "() => document.querySelector('#unsaved').hidden")


def wait_until_kept(page: Page, answers: int) -> None:
    """Until IndexedDB holds so many: a person takes longer to close a tab."""
    condition = """(answers) => new Promise((resolve) => {
      indexedDB.open("accord", 1).onsuccess = ({ target: { result: database } }) => {
        const counting = database.transaction("answers").objectStore("answers").count();
        counting.onsuccess = () => { resolve(counting.result >= answers); database.close(); };
      };
    })"""
    wait_for(page, condition, answers)


def current_lease(page: Page) -> str:
    return str(page.get_attribute("#label", "data-lease"))


def read_shown(page: Page) -> list[str]:
    """The answers as they stand on the stage, from left to right."""
    return [text.strip() for text in page.locator("#stage .answer .said").all_inner_texts()]


def press_and_wait(page: Page, key: str) -> None:
    """A key that must bring another item, or none."""
    before = current_lease(page)
    page.keyboard.press(key)
    wait_for(page, "lease => document.querySelector('#label').dataset.lease !== lease", before)


def test_every_key_stores_what_it_says(server: Server, page: Page) -> None:
    server.add(build_items(9))
    server.start()
    begin(page, server)
    said: dict[str, tuple[str, list[str]]] = {}
    for key in ("1", "2", "3", "4", "5", "6", "7", "0", "ArrowLeft"):
        shown = read_shown(page)
        said[shown[0].split("question ")[1]] = (key, shown)
        press_and_wait(page, key)
    page.wait_for_selector("#stage .idle-note >> text=All done")
    wait_until_saved(page)
    expected = {
        "1": ("a", 7), "2": ("a", 4), "3": ("a", 1), "4": ("tie", None), "5": ("b", 1), "6": ("b", 4), "7": ("b", 7),
        "0": ("both_bad", None), "ArrowLeft": ("a", 4),
    }  # fmt: skip
    votes = read_votes(server)
    assert len(votes) == 9
    for vote in votes:
        key, shown = said[vote.completions[0].text.split("question ")[1]]
        assert [completion.text for completion in vote.completions] == shown, "sides as they were shown"
        assert (vote.choice, vote.strength) == expected[key]
        assert vote.annotator == "owner"


def test_undo_judges_again_and_a_skip_can_be_taken_back(server: Server, page: Page) -> None:
    server.add(build_items(2))
    server.start()
    begin(page, server)
    first = current_lease(page)
    press_and_wait(page, "1")
    press_and_wait(page, "u")
    assert current_lease(page) == first
    assert page.locator("#stage .was").get_attribute("data-key") == "1"
    press_and_wait(page, "7")
    page.keyboard.press("s")
    page.keyboard.press("1")
    page.wait_for_selector("#stage .idle-note")
    press_and_wait(page, "u")
    press_and_wait(page, "4")
    wait_until_saved(page)
    votes = read_votes(server)
    assert sorted(str(vote.choice) for vote in votes) == ["b", "tie"]
    assert len(read_votes(server, current=False)) == 3, "the vote that was changed is still there"


def test_escape_after_undo_leaves_the_answer_as_it_was(server: Server, page: Page) -> None:
    server.add(build_items(2))
    server.start()
    begin(page, server)
    press_and_wait(page, "1")
    second = current_lease(page)
    press_and_wait(page, "u")
    press_and_wait(page, "Escape")
    assert current_lease(page) == second
    wait_until_saved(page)
    assert [vote.choice for vote in read_votes(server, current=False)] == ["a"]


def test_flag_edit_and_skip(server: Server, page: Page) -> None:
    server.add(build_items(2))
    server.start()
    begin(page, server)
    shown = read_shown(page)
    page.keyboard.press("f")
    page.keyboard.press("b")
    page.keyboard.press("1")
    page.wait_for_selector("#stage .answer.flagged")
    page.keyboard.press("e")
    page.keyboard.type("Tea is a drink. 1 2 3 s u")
    page.keyboard.press("Control+Enter")
    assert page.locator("#edit[open]").count() == 0
    press_and_wait(page, "2")
    page.keyboard.press("s")
    page.locator("#skip input[type=text]").fill("Too long for me")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#stage .idle-note")
    wait_until_saved(page)
    votes = read_votes(server)
    flag = next(vote for vote in votes if vote.kind == "flag")
    assert (flag.completions[0].text, flag.flag) == (shown[1], "harmful or dangerous")
    assert Counter(vote.kind for vote in votes) == {"flag": 1, "comparison": 1}
    with server.database as database:
        from accord.feedback.demonstrations import read_demonstrations

        (demonstration,) = read_demonstrations(database)
        assert demonstration.completion.text == "Tea is a drink. 1 2 3 s u"
        assert Queue(database).progress().skipped == 1


def test_ranking_by_keys_and_rating(server: Server, page: Page) -> None:
    server.add(build_items(1, "ranking", answers=3))
    server.add(build_items(3, "rating", answers=1)[1:])
    server.start()
    begin(page, server)
    shown: list[str] = []
    for _ in range(3):
        if page.locator("#stage .item.ranking").count():
            shown = read_shown(page)
            for key in ("3", "1", "2", "="):
                page.keyboard.press(key)
            assert page.locator("#stage .order").inner_text() == "C › A = B"
            press_and_wait(page, "Enter")
        else:
            press_and_wait(page, "0" if page.locator("text=question 1").count() else "z")
    wait_until_saved(page)
    votes = read_votes(server)
    ranking = next(vote for vote in votes if vote.kind == "ranking")
    assert ranking.ranks is not None
    ranks = dict(zip((c.text for c in ranking.completions), ranking.ranks))
    assert [ranks[text] for text in shown] == [2, 2, 1]
    ratings = {vote.completions[0].text[-2]: vote.rating for vote in votes if vote.kind == "rating"}
    assert ratings == {"1": 1.0, "2": 0.0}


def test_ranking_by_dragging(server: Server, page: Page) -> None:
    server.add(build_items(1, "ranking", answers=3))
    server.start()
    page.set_viewport_size({"width": 1280, "height": 1400})
    begin(page, server)
    shown = read_shown(page)
    handles = page.locator("#stage .handle")
    start, goal = handles.nth(2).bounding_box(), page.locator("#stage .answer").nth(0).bounding_box()
    assert start is not None
    assert goal is not None
    page.mouse.move(start["x"] + 5, start["y"] + 5)
    page.mouse.down()
    page.mouse.move(goal["x"] + 40, goal["y"] + 20, steps=8)
    page.mouse.up()
    assert page.locator("#stage .order").inner_text() == "C › A › B"
    page.locator("[data-do=rank]").click()
    page.wait_for_selector("#stage .idle-note")
    wait_until_saved(page)
    (vote,) = read_votes(server)
    assert vote.ranks is not None
    assert dict(zip((c.text for c in vote.completions), vote.ranks)) == dict(zip(shown, (2, 3, 1)))


def test_twenty_items_offline_and_back(server: Server, page: Page) -> None:
    server.add(build_items(25))
    server.start()
    begin(page, server)
    page.context.set_offline(True)
    seen = set()
    for number in range(20):
        seen.add(current_lease(page))
        press_and_wait(page, str(1 + number % 7))
    assert len(seen) == 20
    assert page.locator("#unsaved").inner_text() == "20 unsaved"
    assert read_votes(server) == []
    page.context.set_offline(False)
    wait_until_saved(page)
    votes = read_votes(server, current=False)
    assert len(votes) == 20
    assert len({vote.prompt.id for vote in votes}) == 20


def test_a_server_that_is_killed_midway_loses_and_doubles_nothing(server: Server, page: Page) -> None:
    server.add(build_items(20))
    server.start()
    begin(page, server)
    for number in range(20):
        if number in (5, 12):
            server.kill()
        if number in (9, 16):
            server.start()
        press_and_wait(page, "2")
    wait_until_saved(page)
    votes = read_votes(server, current=False)
    assert len(votes) == 20
    assert len({vote.prompt.id for vote in votes}) == 20


def close_with_five_unsent(server: Server, page: Page) -> Page:
    """Five of eight items answered without a connection, and the tab closed; returns an empty tab with one."""
    server.add(build_items(8))
    server.start()
    begin(page, server)
    page.context.set_offline(True)
    for _ in range(5):
        press_and_wait(page, "6")
    wait_until_kept(page, 5)
    page.close()
    assert read_votes(server) == []
    context = page.context
    context.set_offline(False)
    return context.new_page()


def test_a_closed_tab_with_unsent_answers_is_opened_again(server: Server, page: Page) -> None:
    again = close_with_five_unsent(server, page)
    begin(again, server)
    wait_until_saved(again)
    assert len(read_votes(server, current=False)) == 5
    for _ in range(3):
        press_and_wait(again, "6")
    wait_until_saved(again)
    votes = read_votes(server, current=False)
    assert len(votes) == len({vote.prompt.id for vote in votes}) == 8


def test_items_that_were_listed_before_the_answers_arrived_are_not_asked_again(server: Server, page: Page) -> None:
    again = close_with_five_unsent(server, page)
    again.add_init_script(HEAR_OF_ANSWERS_BEFORE_ITEMS)
    again.goto(f"{server.link}/label")
    again.wait_for_selector("#label[data-ready]")
    while current_lease(again):
        press_and_wait(again, "6")
        assert len(read_votes(server, current=False)) <= 8
    again.wait_for_selector("#stage .idle-note >> text=All done", timeout=15_000)
    wait_until_saved(again)
    votes = read_votes(server, current=False)
    assert len(votes) == len({vote.prompt.id for vote in votes}) == 8


def test_nothing_that_the_browser_gets_tells_whose_answer_it_is(server: Server, page: Page) -> None:
    bodies: list[str] = []
    page.on("response", lambda response: bodies.append(_body(response)))
    server.add(build_items(4))
    server.start()
    begin(page, server)
    page.wait_for_timeout(200)
    everything = "\n".join([*bodies, page.content()])
    assert "Answer 1 to question" in everything, "the answers were there to see"
    for word in ("secret-origin", "origin", "gold", "propensity", "repeat_of"):
        assert word not in everything


def _body(response: Any) -> str:
    return response.text() if "/api/" in response.url or response.url.endswith("/label") else ""


def test_both_orders_are_drawn(server: Server, page: Page) -> None:
    server.add(build_items(24))
    server.start()
    begin(page, server)
    left = []
    for _ in range(24):
        left.append(read_shown(page)[0][:8])
        press_and_wait(page, "4")
    counts = Counter(left)
    assert set(counts) == {"Answer 0", "Answer 1"}, "2^-23 that a fair coin fails this"


def test_the_next_item_is_painted_at_once(server: Server, page: Page) -> None:
    server.add(build_items(28))
    server.start()
    begin(page, server)
    page.route("**/api/**", lambda route: None)  # no answer ever comes: whatever is painted was there before
    for _ in range(25):
        press_and_wait(page, "3")
    assert len(page.evaluate("performance.getEntriesByName('answer-to-next')")) >= 20


def test_a_page_with_nothing_to_show_asks_again_only_now_and_then(server: Server, page: Page) -> None:
    server.add(build_items(1))
    server.start()
    begin(page, server)
    press_and_wait(page, "3")
    page.wait_for_selector("#stage .idle-note >> text=You have judged 1")
    wait_until_saved(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(6000)
    assert 1 <= len(asked) <= 2, "once in four seconds"
    server.add(build_items(2)[1:])
    page.wait_for_selector("#stage .item", timeout=10_000)


def test_two_browsers_race_for_the_last_item(server: Server, browser: Browser) -> None:
    server.add(build_items(1))
    server.start()
    pages = [browser.new_context().new_page() for _ in range(2)]
    # one person in two browsers holds one lease: both see the item, and both answers are one vote of one person
    for one in pages:
        begin(one, server)
    for one, key in zip(pages, "17"):
        if one.locator("#stage .item").count():
            press_and_wait(one, key)
    for one in pages:
        wait_until_saved(one)
        one.context.close()
    assert len(read_votes(server)) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>window.hacked = 1</script>",
        "<img src=x onerror='window.hacked = 1'>",
        "[click](javascript:window.hacked=1)",
        "<svg><script>window.hacked = 1</script></svg><style>#stage { display: none }</style>",
        "\u202eright to left\u202c " + "x" * 100_000,
    ],
)
def test_a_hostile_answer_does_nothing(server: Server, page: Page, hostile: str) -> None:
    from accord.feedback.items import NewItem
    from accord.types import Completion, Prompt

    answers = (Completion.from_text(hostile), Completion.from_text("Kind."))
    server.add([NewItem("comparison", Prompt.from_user(hostile), answers)])
    server.start()
    begin(page, server)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#stage a, #stage img, #stage script, #stage style, #stage svg").count() == 0
    assert page.locator("#stage .judge").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    press_and_wait(page, "7")
    wait_until_saved(page)
    assert len(read_votes(server)) == 1
