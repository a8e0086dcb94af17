"""The page of the loop in a real browser while it trains: lines move without a reload, and the loop is not held up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tiny import build_tiny_model
from tiny_project import start_accord

from tests.web.served import Server
from tests.web.test_label_page import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page


def write_updates(server: Server, count: int) -> None:
    folder = server.project / "rounds" / "001"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"measure {k}" for k in range(12)]
    rows = [{"stage": "policy", "update": u, "score": u / 4, **dict.fromkeys(names, 1.0)} for u in range(1, count + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lines_move_in_place(server: Server, page: Page) -> None:
    write_updates(server, 2)
    server.start()
    page.goto(f"{server.link}/dashboard")
    page.evaluate("document.querySelector('#live figure').marked = true")
    page.locator("#live details summary").click()
    line = page.locator("[data-curve='policy/score'] polyline")
    assert line.get_attribute("points") == "0.0,120.0 400.0,0.0"
    write_updates(server, 3)
    wait_for(page, "() => document.querySelector('[data-text=at]').textContent === 'policy, update 3'")
    assert line.get_attribute("points") == "0.0,120.0 200.0,60.0 400.0,0.0"
    assert page.locator("[data-curve='policy/score'] [data-part=last]").inner_text() == "0.75"
    assert page.evaluate("document.querySelector('#live figure').marked"), "the same figure, not a new one"
    (server.project / "rounds" / "001" / "report.html").write_text("<title>report</title>")
    page.wait_for_selector("#live .chip.good >> text=finished")
    assert page.locator("#live details[open] summary:focus").count() == 1, "what was open stays open"


def test_a_run_is_followed_to_its_report(server: Server, page: Page) -> None:
    build_tiny_model(server.project / "tiny-model", "llama")
    server.start()
    page.goto(f"{server.link}/dashboard")
    page.wait_for_selector("text=The loop has not begun.")
    page.evaluate("window.marked = true")
    run = start_accord("run", str(server.project), "--plain", "--yes")
    page.wait_for_selector("#live .curve", timeout=200_000)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    page.wait_for_selector("#live .chip.good >> text=finished", timeout=20_000)
    assert page.locator("#live table.rounds tr.shown").count() == 1
    assert page.evaluate("window.marked"), "without a reload"
