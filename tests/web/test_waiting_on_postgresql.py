"""The loop on PostgreSQL by URL: it asks people, ends without them, takes votes by HTTP, and runs to its end."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tiny_project import build_tiny_project, start_accord

from accord.feedback.database import open_database
from accord.feedback.people import People
from accord.feedback.replay import audit
from accord.web.client import VoteClient
from accord.web.site import hash_secret
from benchmarks.postgres import find_postgres, start_postgres
from tests.web.served import Server
from tests.web.test_waiting import SETTINGS

TOKEN = "the token of a test"


@pytest.fixture
def url() -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed: no initdb, pg_ctl and postgres")
    with start_postgres(durable=False) as server:
        yield server.create_database()


def call(server: Server, path: str, body: object) -> Any:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    request = urllib.request.Request(f"{server.link}/api/label/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def judge_everything(server: Server) -> int:
    """One person with a token, as the labelling page does it."""
    count = 0
    while given := call(server, "lease", {"count": 5})["items"]:
        answers = [
            {"id": str(uuid4()), "kind": "comparison", "lease": item["lease"], "choice": "a", "strength": 4}
            for item in given
        ]
        results = call(server, "answers", {"answers": answers})["results"]
        assert [result["stored"] for result in results] == [True] * len(answers)
        count += len(answers)
    return count


def test_a_loop_on_postgresql_asks_people_and_goes_on_with_their_votes(tmp_path: Path, url: str) -> None:
    folder = build_tiny_project(tmp_path / "project")
    database = ("--set", f"project.database={url}")
    asked = start_accord("run", str(folder), "--plain", "--no-wait", *SETTINGS, *database)
    said, _ = asked.communicate(timeout=200)
    assert asked.returncode == 7, said
    with open_database(url) as opened:
        People(opened).add("ada", actor="test")
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        People(opened).open_session(hash_secret("api", TOKEN), "ada", expires_at=tomorrow)

    server = Server(folder, database)
    server.start()
    try:
        wanted = VoteClient(server.link, TOKEN).status()["votes_wanted"]
        assert judge_everything(server) >= wanted > 10
        status = VoteClient(server.link, TOKEN).status()
        assert (status["votes_missing"], status["leased"]) == (0, 0)
        finished = start_accord("run", str(folder), "--plain", "--no-wait", *SETTINGS, *database)
        said, _ = finished.communicate(timeout=200)
        assert finished.returncode == 0, said
    finally:
        server.stop()

    report = json.loads((folder / "rounds/001/report.json").read_text())
    assert (report["feedback"]["votes"], report["feedback"]["simulated"]) == (wanted, False)
    assert list(folder.glob("feedback.db*")) == [], "nothing fell back to a file"
    with open_database(url) as opened:
        assert audit(opened) > wanted
