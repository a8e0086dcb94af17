"""Known answers and repeats: from the settings through the loop to the page that says who reads before they judge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from tiny_project import build_tiny_project

from accord import loop
from accord.config import load_config
from accord.errors import DataError
from accord.feedback.answering import Answer
from accord.feedback.disagreements import list_disagreements
from accord.feedback.gold import read_gold_file
from accord.feedback.queue_schema import items, leases
from accord.loop.asking import VotesMissing
from accord.types import Choice, Silence
from accord.web.app import create_app
from accord.web.site import Site, open_site
from accord.workspace import Workspace

GOLD = [
    {"prompt": f"What is {n} + 1?", "completions": [f"It is {n + 1}.", "It is a secret."], "choice": "a"}
    for n in range(4)
]
SETTINGS = ("feedback.source=people", "label.gold=gold.jsonl", "label.repeat_share=0.25", "label.overlap_share=0.0")


@pytest.fixture
def asked(tmp_path: Path) -> Site:
    """A project whose loop has put 24 pairs, 6 repeats and 4 gold items before Ada and Ben, and does not wait."""
    folder = build_tiny_project(tmp_path / "project")
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    config, workspace = load_config(folder, SETTINGS), Workspace(folder)
    with pytest.raises(VotesMissing, match="24 of 24"):
        loop.run(workspace, config, Silence(), wait=False)
    site = open_site(workspace, config)
    for name in ("ada", "ben"):
        site.people.add(name, actor="test")
    return site


def judge_all(site: Site, name: str, count: int, *, honest: bool) -> None:
    """Honest: the sum where there is one, else the smaller text; otherwise a coin that two looks at a pair turn."""
    turn = 0
    while given := site.queue.lease(name, count):
        for item in given:
            texts = [c.text for c in item.completions]
            best = min(texts, key=lambda text: ("secret" in text, text))
            choice: Choice = "a" if texts[0] == best else "b"
            if not honest:
                turn += 1
                choice = "a" if texts[0] == (min, max)[turn % 2](texts) else "b"
            site.queue.submit(Answer(str(uuid4()), name, item.lease_id, choice, strength=4))


def test_checks_go_from_the_settings_through_the_loop_to_the_page(asked: Site) -> None:
    with asked.database.read() as connection:
        rows = connection.execute(select(items).order_by(items.c.position)).all()
    place = {row.id: row.position for row in rows}
    repeats = [row for row in rows if row.repeat_of]
    assert (len(rows), len(repeats), sum(row.gold is not None for row in rows)) == (34, 6, 4)
    assert all(row.position - place[row.repeat_of] >= 14 for row in repeats), "half of all items come in between"
    assert any(row.position < max(place.values()) for row in repeats), "and not all of them stand at the end"

    judge_all(asked, "ada", 30, honest=True)
    judge_all(asked, "ben", 30, honest=False)
    assert asked.queue.progress(round=1).missing == 0
    client = TestClient(create_app(asked), base_url="http://localhost:8400")
    page = client.get("/worth").text
    ada = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index('<th scope="row">ada') :].split("</tr>")[0]))
    assert "100 % of 4" in ada, ada
    assert "100 % of 6" in ada, ada
    ben = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index('<th scope="row">ben') :].split("</tr>")[0]))
    assert "50 % of 4" in ben, "right every other time"
    assert "75 % of 8 known answers given" not in page
    assert re.search(r"75 %</div>\s*<span class=\"muted\">of 8 known answers given", page)
    assert "repeats judged as before" in page
    assert list_disagreements(asked.database) == [], "they differ on known answers alone, which need no verdict"


def test_checks_are_no_votes_of_the_loop(asked: Site) -> None:
    judge_all(asked, "ada", 30, honest=True)
    with asked.database.read() as connection:
        answered = connection.execute(select(leases.c.id).where(leases.c.status == "answered")).all()
    assert len(answered) == 24 + 6 + 4
    assert len(list(asked.queue.votes(1))) == 24, "neither repeats nor known answers"
    assert asked.queue.progress(round=1).checks == 6 + 4


def test_other_gold_items_make_other_votes(asked: Site) -> None:
    config = load_config(asked.workspace.root, SETTINGS)
    before = next(stage.key for stage in loop.plan(asked.workspace, config) if stage.kind == "votes")
    (asked.workspace.root / "gold.jsonl").write_text(json.dumps(GOLD[0]) + "\n")
    after = next(stage.key for stage in loop.plan(asked.workspace, config) if stage.kind == "votes")
    assert before != after


@pytest.mark.parametrize(
    "line, words",
    [
        ("{}", "needs prompt"),
        ('{"prompt": "p", "completions": ["x", "y"], "choice": "c"}', "no answer to a comparison"),
        ('{"prompt": "p", "completions": ["x", "x"], "choice": "a"}', "identical"),
        ('{"prompt": "p", "completions": ["x", "y"], "ranks": [1, "b"]}', "no answer to a ranking"),
        ('{"prompt": "p", "completions": ["x"], "rating": 2}', "no answer to a rating"),
        ('{"prompt": "p", "completions": ["x", "y"], "choice": "a", "rating": 1}', "one of"),
        ('{"prompt": "p", "completions": ["x", "y"], "choice": "a", "note": ""}', "'note'"),
        ("[]", "not an object"),
        ("{", "not a gold item"),
    ],
)
def test_a_line_that_is_no_gold_item_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text(f"{json.dumps(GOLD[0])}\n\n{line}\n")
    with pytest.raises(DataError, match=words) as refused:
        read_gold_file(path)
    assert refused.value.where == f"{path}:3"


def test_a_missing_file_stops_the_plan(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    with pytest.raises(DataError, match="cannot be read"):
        loop.plan(Workspace(folder), load_config(folder, SETTINGS))


def test_gold_items_come_by_the_api_and_never_show(asked: Site) -> None:
    client = TestClient(create_app(asked), base_url="http://localhost:8400")
    client.get("/label")
    from accord.web.security import compute_csrf_token

    headers = {"x-csrf-token": compute_csrf_token(client.cookies["accord_open"])}
    sent = {"prompt": "Which is a colour?", "completions": ["Red.", "Bread."], "gold": {"choice": "a"}}
    assert client.post("/api/items", json={"items": [sent]}, headers=headers).json()["added"] == 1
    for wrong in ({"choice": "z"}, {}, {"ranks": [1, 2]}, {"choice": ["a"]}):
        answer = client.post("/api/items", json={"items": [{**sent, "gold": wrong}]}, headers=headers)
        assert answer.status_code == 422, wrong
    given = client.post("/api/label/lease", json={"count": 100}, headers=headers).json()
    shown = [item for item in given["items"] if "Bread" in json.dumps(item)]
    assert len(shown) == 1
    assert "gold" not in json.dumps(given)
