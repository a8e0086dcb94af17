"""The owner's view of the loop: what files say, half-written ones too, and the report in its sandbox."""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from accord.config import load_config
from accord.types import Completion, Prompt
from accord.web.app import create_app
from accord.web.curves import draw_curve
from accord.web.rounds import Curve, list_rounds, read_curves, read_round
from accord.web.site import Site, open_site
from accord.workspace import Workspace
from tests.web.served import build_items, build_project


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened = open_site(Workspace(tmp_path), load_config(build_project(tmp_path)))
    yield opened
    opened.database.close()


@pytest.fixture
def client(site: Site) -> TestClient:
    return TestClient(create_app(site), base_url="http://localhost:8400")


def write_round(root: Path, rows: list[dict[str, object]], tail: str = "") -> Path:
    folder = root / "rounds" / "001"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    done = {"stage": "samples", "key": "abc", "finished_at": "2026-01-01T00:00:00+00:00", "seconds": 3.5}
    (folder / "ledger.jsonl").write_text(json.dumps(done) + "\n")
    return folder


def test_curves_of_a_resumed_run_have_each_step_once(tmp_path: Path) -> None:
    updates = [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)]
    rows: list[dict[str, object]] = [{"stage": "policy", "update": u, "score": s, "note": "x"} for u, s in updates]
    folder = write_round(tmp_path, rows, tail='{"stage": "policy", "upd')
    (score,) = read_curves(folder)
    assert score == Curve("policy", "score", "update", ((1.0, 0.1), (2.0, 0.25), (3.0, 0.35)))


def test_important_curves_come_first(tmp_path: Path) -> None:
    row = {"stage": "policy", "update": 1, "checkpoint_seconds": 1.0, "kl_nats": 2.0, "score": 3.0}
    assert [curve.metric for curve in read_curves(write_round(tmp_path, [row]))][:2] == ["score", "kl_nats"]


def test_a_curve_is_drawn_to_scale() -> None:
    drawn = str(draw_curve(Curve("policy", "<b>", "update", ((1.0, -1.0), (2.0, 3.0), (3.0, 1.0)))))
    assert 'points="0.0,120.0 200.0,0.0 400.0,60.0"' in drawn
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    flat = str(draw_curve(Curve("policy", "score", "update", ((1.0, 2.0),))))
    assert 'points="0.0,60.0"' in flat


def test_a_round_is_live_while_its_files_change(tmp_path: Path) -> None:
    folder = write_round(tmp_path, [{"stage": "policy", "update": 1, "warning": "kl is high"}])
    assert read_round(folder).live
    assert read_round(folder).warnings == ("kl is high",)
    os.utime(folder / "metrics.jsonl", (time.time() - 900,) * 2)
    os.utime(folder / "ledger.jsonl", (time.time() - 900,) * 2)
    assert not read_round(folder).live
    assert [view.number for view in list_rounds(Workspace(tmp_path))] == [1]


def test_looking_makes_no_folder_and_takes_no_lock(site: Site, client: TestClient) -> None:
    before = sorted(path.name for path in site.workspace.root.iterdir() if not path.name.startswith("feedback.db"))
    with site.workspace.lock():
        assert "has not begun" in client.get("/dashboard").text
        assert client.get("/dashboard?round=7").status_code == 404
        assert client.get("/dashboard/1/report").status_code == 404
        assert client.get("/samples").status_code == 200
    after = sorted(path.name for path in site.workspace.root.iterdir() if not path.name.startswith("feedback.db"))
    assert [name for name in after if name != ".lock"] == before


def test_the_page_follows_the_run(site: Site, client: TestClient) -> None:
    write_round(site.workspace.root, [{"stage": "policy", "update": 1, "score": 0.25}])
    page = client.get("/dashboard").text
    assert "score: from 0.25 to 0.25 over 1 points" in page
    before = client.get("/dashboard/1/live").json()
    assert f'data-shape="{before["shape"]}"' in page
    assert before["texts"]["at"] == "policy, update 1"
    write_round(site.workspace.root, [{"stage": "policy", "update": u, "score": u / 4} for u in (1, 2, 3)])
    after = client.get("/dashboard/1/live").json()
    assert after["shape"] == before["shape"], "the same curves: only their lines move"
    assert after["curves"]["policy/score"]["line"] == "0.0,120.0 200.0,60.0 400.0,0.0"
    assert after["curves"]["policy/score"]["last"] == "0.75"
    assert after["texts"]["at"] == "policy, update 3"
    write_round(site.workspace.root, [{"stage": "policy", "update": 1, "score": 0.25, "kl_nats": 2.0}])
    assert client.get("/dashboard/1/live").json()["shape"] != before["shape"], "a new curve is not on the page yet"


def write_artifact(root: Path, kind: str, key: str, files: dict[str, object]) -> None:
    folder = root / "artifacts" / kind / key
    folder.mkdir(parents=True)
    for name, value in files.items():
        rows = value if isinstance(value, list) else [value]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = {"stage": kind, "key": key, "finished_at": "2026-01-01T00:00:00+00:00", "seconds": 60.5}
    with (root / "rounds" / "001" / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")


def test_verdicts_and_alarms_of_a_round_are_on_its_page(site: Site, client: TestClient) -> None:
    root = site.workspace.root
    write_round(root, [])
    assert "promoted" not in client.get("/dashboard").text
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    guards = [{"name": "refusal", "result": "broken", "margin": 0.05, "change": interval}]
    gate = {"promoted": False, "result": "better", "against": "reference", "gain": interval, "guards": guards}
    write_artifact(root, "gate", "old", {"gate.json": gate | {"promoted": True}})
    write_artifact(root, "gate", "new", {"gate.json": gate})
    alarm = {"kind": "heldout_falls", "update": 7, "reason": "The held-out judge <b>falls</b>.", "measured": {}}
    write_artifact(root, "policy", "p", {"alarm.json": {"alarms": [alarm], "suspects": []}})
    agreement = {"pairwise": {"estimate": 0.66, "low": 0.6, "high": 0.7}, "alpha": None}
    write_artifact(root, "preferences", "c", {"consensus.json": {"agreement": agreement, "annotators": {}}})
    write_artifact(root, "votes", "v", {"manifest.json": {"summary": {"votes": 1280}}})
    page = client.get("/dashboard").text
    assert "not promoted" in page, "the newest verdict stands"
    assert "refusal broken" in page
    assert "+0.50" in page
    assert "Alarm: heldout falls" in page
    assert "&lt;b&gt;falls" in page
    assert "66 %" in page
    assert "1,280" in page
    votes = client.get("/worth").text
    assert "1,280" in votes
    assert client.get("/worth?round=1").status_code == 200
    assert client.get("/worth?round=2").status_code == 404


def write_evaluation(root: Path) -> None:
    """Three prompts, answered before and after; the gains in gold are 0.1, -0.4 and 0.3."""
    rows = []
    for n, (before, after) in enumerate([(0.5, 0.6), (0.9, 0.5), (0.2, 0.5)]):
        sides = {
            side: {"completion": Completion.from_text(f"{side} {n}", finished=n != 1).to_dict(), "gold": value}
            for side, value in (("reference", before), ("policy", after))
        }
        rows.append({"prompt": Prompt.from_user(f"question {n}").to_dict(), **sides})
    write_artifact(root, "evaluation", "e", {"completions.jsonl": rows})


@pytest.mark.parametrize(
    "query, expected",
    [
        ({}, [0, 1, 2]),
        ({"q": "question policy"}, [0, 1, 2]),
        ({"q": "reference 1"}, [1]),
        ({"q": "reference policy"}, []),  # both words in one answer, or its prompt
        ({"who": "After", "q": "reference"}, []),
        ({"who": "After", "number": "gold", "low": "0.55"}, [0]),
        ({"who": "Before", "number": "gold", "high": "0.5", "order": "low"}, [2, 0]),
        ({"who": "Change", "number": "gold", "order": "low"}, [1, 0, 2]),
        ({"who": "Change", "number": "gold", "low": "0", "order": "high"}, [2, 0]),
        ({"number": "gold", "order": "high"}, [1, 0, 2]),
        ({"number": "toxicity", "low": "0"}, []),
        ({"ending": "cut"}, [1]),
        ({"source": "all", "ending": "finished"}, [0, 2]),
        ({"number": "gold", "low": "no number", "who": "nobody"}, [0, 1, 2]),
    ],
)
def test_samples_are_found_by_words_answers_and_numbers(
    site: Site, client: TestClient, query: dict[str, str], expected: list[int]
) -> None:
    write_round(site.workspace.root, [])
    write_evaluation(site.workspace.root)
    page = client.get("/samples", params=query).text
    assert [int(number) for number in re.findall(r"<p dir=\"auto\">question (\d)</p>", page)] == expected


def test_a_page_of_found_samples_keeps_what_was_asked(site: Site, client: TestClient) -> None:
    write_round(site.workspace.root, [])
    answers = [Completion.from_text(f"answer {k}").to_dict() for k in range(2)]
    rows = [{"prompt": Prompt.from_user(f"question {n}").to_dict(), "completions": answers} for n in range(25)]
    write_artifact(site.workspace.root, "samples", "s", {"samples.jsonl": rows})
    page = client.get("/samples", params={"q": "question", "source": "all", "order": "high"}).text
    (link,) = re.findall(r'href="(/samples\?[^"]+page=2)"', page)
    assert "2 of 3" in client.get(html.unescape(link)).text


def test_samples_are_searched_and_harmless(site: Site, client: TestClient) -> None:
    write_round(site.workspace.root, [])
    folder = site.workspace.root / "artifacts" / "samples" / "abc"
    folder.mkdir(parents=True)
    rows = [
        {
            "prompt": Prompt.from_user(f"question {n}").to_dict(),
            "completions": [Completion.from_text(f"<script>alert({n})</script> answer {n}").to_dict()] * 2,
        }
        for n in range(25)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "25 samples" in client.get("/samples").text
    found = client.get("/samples", params={"q": "Question 17"}).text
    assert ">1 sample<" in found
    assert "question 17" in found
    assert "<script>alert" not in found
    assert "3 of 3" in client.get("/samples", params={"page": 99}).text


def test_the_report_runs_in_a_sandbox(site: Site, client: TestClient) -> None:
    folder = write_round(site.workspace.root, [])
    (folder / "report.html").write_text("<title>report</title>")
    policy = client.get("/dashboard/1/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy
    assert 'sandbox="allow-scripts"' in client.get("/dashboard/1/report").text


def test_the_owner_can_go_on_with_the_votes_there_are(site: Site, client: TestClient) -> None:
    write_round(site.workspace.root, [])
    site.queue.add_items(build_items(4), round=1, seed=0)
    client.get("/dashboard")
    from accord.web.security import compute_csrf_token

    headers = {"x-csrf-token": compute_csrf_token(client.cookies["accord_open"])}
    before = site.queue.progress(round=1).missing
    answer = client.post("/dashboard/1/close", headers=headers, follow_redirects=False)
    assert answer.status_code == 303
    assert site.queue.progress(round=1).missing == 0
    assert "Ask for the rest again" in client.get("/dashboard").text
    client.post("/dashboard/1/reopen", headers=headers)
    assert site.queue.progress(round=1).missing == before > 0
