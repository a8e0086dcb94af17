"""The loop asks people: it says what is missing, ends or waits, and goes on by itself when the votes are in."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from tiny import build_tiny_model
from tiny_project import build_tiny_project, start_accord

from accord.feedback.answering import Answer
from accord.feedback.database import open_database
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.store import VoteStore
from accord.types import Prompt
from accord.workspace import Workspace
from tests.web.served import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETTINGS = (
    "--set", "feedback.source=people", "--set", "prompts.limit=16", "--set", "label.overlap_share=0.0",
    "--set", "feedback.heldout_fraction=0.5",
)  # fmt: skip


def answer_everything(folder: Path, name: str) -> int:
    """One person who prefers the longer answer, through the same queue as the page."""
    with open_database(Workspace(folder).database_url) as database:
        if People(database).find(name) is None:
            People(database).add(name, actor="test")
        queue, count = Queue(database), 0
        while items := queue.lease(name, 5):
            for item in items:
                a, b = item.completions
                choice = "a" if len(a.text) >= len(b.text) else "b"
                queue.submit(Answer(str(uuid4()), name, item.lease_id, choice, strength=4))
                count += 1
        return count


def test_without_waiting_it_says_what_is_missing_and_goes_on_when_the_votes_are_in(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    first = start_accord("run", str(folder), "--plain", "--no-wait", *SETTINGS)
    said, _ = first.communicate(timeout=200)
    assert first.returncode == 7, said
    assert " votes are missing" in said
    assert f"accord label {folder}" in said.replace("\n", " ")

    waiting = start_accord("run", str(folder), "--json", *SETTINGS)
    voter = threading.Timer(6.0, answer_everything, (folder, "ada"))
    voter.start()
    said, _ = waiting.communicate(timeout=200)
    voter.join()
    assert waiting.returncode == 0, said
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (votes,) = (folder / "artifacts" / "votes").iterdir()
    rows = [json.loads(line) for line in (votes / "votes.jsonl").read_text().splitlines()]
    assert {(row["annotator"], row["simulated"]) for row in rows} == {("ada", False)}
    assert 10 < len(rows) <= 16
    assert events[-1]["event"] == "finished"
    report = json.loads((folder / "rounds/001/report.json").read_text())
    assert report["feedback"]["votes"] == len(rows)
    assert report["feedback"]["simulated"] is False


def test_the_newest_policy_answers_a_prompt_of_ones_own(server: Server, page: Page) -> None:
    build_tiny_model(server.project / "tiny-model", "llama")
    server.options = ("--set", "label.chat=true")
    server.start()
    page.goto(f"{server.link}/label")
    page.wait_for_selector("#label[data-ready]")
    page.keyboard.press("c")
    page.keyboard.type("What is tea?")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#stage .item", timeout=60_000)
    left = page.locator("#stage .answer").nth(0).get_attribute("data-text")
    page.keyboard.press("1")
    page.wait_for_selector("#chat[open] .said:not([hidden])")
    page.keyboard.type("Go on.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#chat[open]", state="hidden", timeout=60_000)
    page.wait_for_selector("#stage .item")
    page.keyboard.press("0")
    page.wait_for_selector("#unsaved", state="hidden")
    with open_database(Workspace(server.project).database_url) as database:
        first, second = VoteStore(database).votes()
    assert (first.choice, second.choice) == ("a", "both_bad")
    assert first.prompt == Prompt.from_user("What is tea?")
    assert [turn.content for turn in second.prompt.messages] == ["What is tea?", left, "Go on."]
    assert first.completions[0].origin == "reference"


def test_the_link_of_a_running_server_is_known_and_forgotten(server: Server) -> None:
    workspace = Workspace(server.project)
    assert workspace.label_link() is None
    server.start()
    assert workspace.label_link() == server.link
    server.kill()
    time.sleep(0.05)
    assert workspace.label_link() is None, "a killed server leaves its file, which counts for nothing"
    server.start()
    server.stop()
    assert not (server.project / ".label.json").exists()
