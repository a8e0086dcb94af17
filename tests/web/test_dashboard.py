"""The owner's view of the loop: what files say, half-written ones too, and the report in its sandbox."""

from __future__ import annotations

import json
import os
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
    assert "score: from 0.25 to 0.25 over 1 points" in client.get("/dashboard/1/body").text
    write_round(site.workspace.root, [{"stage": "policy", "update": u, "score": u / 4} for u in (1, 2)])
    assert "score: from 0.25 to 0.5 over 2 points" in client.get("/dashboard/1/body").text


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
    assert "1 match" in found
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
    answer = client.post("/dashboard/1/close", headers=headers, follow_redirects=False)
    assert answer.status_code == 303
    assert site.queue.progress(round=1).missing == 0
