"""What people write in place of an answer is learnt by fine-tuning, and its artifact says whose words they were."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from uuid import uuid4

from tiny_project import build_tiny_project

from accord import loop
from accord.config import load_config
from accord.feedback.answering import Answer
from accord.feedback.database import open_database
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.loop.context import RunContext
from accord.loop.graph import build_stages
from accord.loop.improving import fine_tune
from accord.types import Silence
from accord.workspace import Workspace

SETTINGS = (
    "feedback.source=people", "prompts.limit=16", "label.overlap_share=0.0", "label.repeat_share=0.0",
    "feedback.heldout_fraction=0.5", "sft.epochs=1", "policy.method=rejection_sampling",
    "rejection_sampling.candidates=2", "rejection_sampling.epochs=1",
)  # fmt: skip


def judge(folder: Path) -> None:
    """Ada writes something better for every second pair; one of these votes she takes back."""
    with open_database(Workspace(folder).database_url) as database:
        People(database).add("ada", actor="test")
        queue, count, done = Queue(database), 0, []
        end = time.monotonic() + 120
        while not done and time.monotonic() < end:
            for item in queue.lease("ada", 100):
                edit = f"Written {count // 2}." if count % 2 == 0 else None
                answer = Answer(str(uuid4()), "ada", item.lease_id, "a", strength=4, edit=edit, edit_place=0)
                queue.submit(Answer(**{**vars(answer), "edit_place": None}) if edit is None else answer)
                done.append((item.lease_id, answer.client_id))
                count += 1
                if count == 3:  # the second edit: taken back, and judged anew without one
                    queue.undo("ada", answer.client_id, str(uuid4()))
                    queue.submit(Answer(str(uuid4()), "ada", item.lease_id, "b", strength=4))
            time.sleep(0.1)


def test_edits_are_examples_and_the_artifact_says_whose(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    config, workspace = load_config(folder, SETTINGS), Workspace(folder)
    person = threading.Thread(target=judge, args=(folder,))
    person.start()
    loop.run(workspace, config, Silence())
    person.join()
    sft = next(stage for stage in build_stages(workspace, config) if stage.work is fine_tune)
    artifact = workspace.find(sft.kind, sft.key)
    assert artifact is not None
    rows = artifact.read_jsonl("demonstrations.jsonl")
    texts = {row["completion"]["messages"][0]["content"] for row in rows}
    assert texts <= {f"Written {n}." for n in range(8)}
    assert "Written 1." not in texts, "taken back"
    assert len(rows) >= 5
    assert {(row["annotator"], row["completion"]["origin"]) for row in rows} == {("ada", "person:ada")}
    context = RunContext(workspace, config, Silence())
    cast = context.parent(next(s for s in build_stages(workspace, config) if s.kind == "preferences"), "votes_1")
    assert {row["vote"] for row in rows} <= {vote["id"] for vote in cast.read_jsonl("votes.jsonl")}
    assert artifact.summary["demonstrations"] == len(rows)
    preferences = context.parent(sft, "preferences").read_jsonl("preferences.jsonl")
    assert artifact.summary["examples"] == len(rows) + sum(row["probability"] != 0.5 for row in preferences)
    assert json.loads((folder / "rounds/001/report.json").read_text())["feedback"]["votes"] == 16
