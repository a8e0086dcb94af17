"""Annotators choose among the looks of a run: which may be kept, who is asked what, and what the choice leads to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tiny_project import build_tiny_project, find_stages
from tiny_project import run_rounds as run

from accord import loop
from accord.config import load_config
from accord.errors import ConfigError
from accord.feedback.answering import Answer
from accord.feedback.database import Database, open_database
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.records import vote_to_dict
from accord.looks import Alarm, Look
from accord.loop import choosing
from accord.loop.asking import VotesMissing
from accord.loop.choosing import read_wins
from accord.loop.context import adapter_folder, look_folder
from accord.loop.watching import record_looks
from accord.training import TrainingResult
from accord.types import Completion, Prompt, Silence
from accord.workspace import Draft, Workspace

LOOKS = ("ppo.updates=4", "ppo.evaluate_every=1", "ppo.epochs=1", "tournament.votes=90", "policy.max_kl_nats=100")
LONGEST = 2
"""The update whose answers are the longest, where `plant_answers` writes them."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return build_tiny_project(tmp_path / "project")


def plant_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look has one answer to everything, the longer the nearer it is to `LONGEST`."""

    def answer(context: Any, stage: Any, prompts: Any, update: int, questions: Sequence[int]) -> dict[int, Completion]:
        text = " ".join(["word"] * (9 - 2 * abs(update - LONGEST)))
        return {question: Completion.from_text(text, origin=f"looks/{update}") for question in questions}

    monkeypatch.setattr(choosing, "answer_as", answer)


def test_the_look_that_annotators_prefer_goes_on_and_not_the_judges(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_answers(monkeypatch)
    settings = [*LOOKS, "project.rounds=2", "simulation.utility=length_words"]
    first, second = run(project, settings)
    policies, contests = (find_stages(project, settings, kind) for kind in ("policy", "tournament"))
    assert [row["update"] for row in policies[0].read_jsonl("looks.jsonl")] == [0, 1, 2, 3, 4]
    chosen = contests[0].read_json("tournament.json")
    assert chosen["update"] == contests[0].summary["update"] == LONGEST
    shares = {row["update"]: row["share"]["value"] for row in chosen["standings"]}
    assert list(shares) == [0, 1, 2, 3, 4] and shares[LONGEST] == max(shares.values()) > 0.9
    assert sum(shares.values()) == pytest.approx(5 / 2)
    kept, own = adapter_folder(contests[0].folder), adapter_folder(look_folder(policies[0].folder, LONGEST))
    files = sorted(path.name for path in own.iterdir())
    assert files == sorted(path.name for path in kept.iterdir())
    assert all((kept / name).read_bytes() == (own / name).read_bytes() for name in files)
    other = adapter_folder(look_folder(policies[0].folder, 4)) / "adapter_model.safetensors"
    assert other.read_bytes() != (kept / "adapter_model.safetensors").read_bytes()
    address = f"tournament/{contests[0].key}"
    assert find_stages(project, settings, "evaluation")[0].manifest["parents"]["policy"] == address
    assert find_stages(project, settings, "gate")[0].summary["promoted_policy"] in ("", address)
    # the report says so, and counts the votes
    assert first["policy"]["best_update"] == LONGEST
    assert first["tournament"] == chosen
    page = (project / "rounds/001/report.html").read_text()
    assert f"Simulated annotators kept update {LONGEST}, " in page
    votes = find_stages(project, settings, "votes")
    assert first["rounds"][0]["votes"] == votes[0].summary["votes"] + contests[0].summary["votes"]
    # a later round is fitted on them, and asks first about what the run itself disputed
    fitted = [votes[0], contests[0], votes[1]]
    assert second["feedback"]["votes"] == sum(len(artifact.read_jsonl("votes.jsonl")) for artifact in fitted)
    assert votes[1].manifest["parents"]["disputed"] == f"policy/{policies[0].key}"
    samples = find_stages(project, settings, "samples")[1]
    assert samples.manifest["parents"]["policy_1"] == address


def test_votes_compare_answers_of_different_looks_and_no_pair_is_asked_about_twice(project: Path) -> None:
    settings = [*LOOKS, "ppo.learning_rate=2e-2"]
    (report,) = run(project, settings)
    (contest,), (policy,), (prompts,) = (
        find_stages(project, settings, kind) for kind in ("tournament", "policy", "prompts")
    )
    votes = contest.read_jsonl("votes.jsonl")
    assert 0 < len(votes) == contest.summary["votes"] <= 90 + 5
    updates = [row["update"] for row in policy.read_jsonl("looks.jsonl")]
    names = {f"policy/{policy.key}/looks/{update}" for update in updates}
    pairs = []
    for row in votes:
        a, b = row["completions"]
        assert {a["origin"], b["origin"]} <= names and a["origin"] != b["origin"]
        pairs.append((json.dumps(row["prompt"]), frozenset(json.dumps([c["messages"], c["finished"]]) for c in (a, b))))
    assert len(set(pairs)) == len(pairs)
    asked = {prompt for prompt, _ in pairs}
    assert asked <= {json.dumps(row) for row in prompts.read_jsonl("train.jsonl")}, "the evaluation chooses nothing"
    assert report["tournament"]["judged_update"] == policy.summary["best_update"]


def make_look(update: int, kl: float) -> Look:
    prompt, answer = Prompt.from_user("why?"), Completion.from_text("because")
    return Look(update, (prompt,), (answer,), ((1,),), (1.0,), (kl,), (0.0,), (0.0,))


def test_a_look_at_which_the_alarm_rang_or_beyond_the_budget_may_not_be_kept(tmp_path: Path) -> None:
    looks = [make_look(0, 0.0), make_look(2, 3.0), make_look(4, 9.0), make_look(6, 4.0)]
    scratch, draft = tmp_path / "scratch", Draft(tmp_path / "draft", {})
    for look in looks:
        look_folder(scratch, look.update).mkdir(parents=True)
        (look_folder(scratch, look.update) / "weights").write_text(str(look.update))
    draft.folder.mkdir()
    record_looks(scratch, draft, TrainingResult([], 2, "rang", looks, [Alarm("reversal", 6, "fell")]), 8.0)
    rows = [json.loads(line) for line in (draft.folder / "looks.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 2]
    assert sorted(path.name for path in (draft.folder / "looks").iterdir()) == ["00000", "00002"]
    assert (look_folder(draft.folder, 2) / "weights").read_text() == "2"


def test_an_answer_wins_by_its_votes_and_silence_loses_without_one() -> None:
    prompt = Prompt.from_user("why?")
    good, bad, silent = (Completion.from_text(text) for text in ("because", "no", " "))

    def vote(a: Completion, b: Completion, choice: str) -> dict[str, Any]:
        both = [a.to_dict(), b.to_dict()]
        return {"kind": "comparison", "choice": choice, "prompt": prompt.to_dict(), "completions": both}

    votes = [vote(bad, good, "b"), vote(good, bad, "tie"), vote(good, bad, "both_bad")]
    pairs = [(prompt, *pair) for pair in ((good, bad), (bad, good), (good, silent), (silent, bad), (silent, silent))]
    assert read_wins(pairs, votes) == [0.75, 0.25, 1.0, 0.0, 0.5]
    assert read_wins(pairs[:1], []) == [0.5]


def vote_for_length(database: Database) -> list[tuple[str, str]]:
    """Ada and Bo in turn prefer the longer answer, until nothing is left to judge: who, and the answer's id."""
    queue, done = Queue(database), list[tuple[str, str]]()
    while items := queue.lease(name := ("ada", "bo")[len(done) % 2], 1):
        lengths = [len(answer.text) for answer in items[0].completions]
        done.append((name, str(uuid4())))
        queue.submit(Answer(done[-1][1], name, items[0].lease_id, "a" if lengths[0] > lengths[1] else "b", strength=4))
    return done


def test_people_are_asked_and_a_stopped_run_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting the run ends at the round's votes and at the tournament, and people vote in between. A vote of
    the round that is taken back meanwhile is not waited for a second time."""
    plant_answers(monkeypatch)
    settings = [*LOOKS, "feedback.source=people", "label.overlap_share=0.0", "label.repeat_share=0.0"]
    settings += ["prompts.limit=16", "feedback.heldout_fraction=0.5"]
    workspace, config = Workspace(project), load_config(project, settings)
    with open_database(workspace.database_url) as database:
        for name in ("ada", "bo"):
            People(database).add(name, actor="test")
        queue, cast = Queue(database), list[list[tuple[str, str]]]()
        for _ in range(5):
            try:
                loop.run(workspace, config, Silence(), wait=False)
                break
            except VotesMissing:
                cast.append(vote_for_length(database))
            if len(cast) == 2:
                queue.undo(*cast[0][0], str(uuid4()))
        (contest,) = find_stages(project, settings, "tournament")
        votes = [vote_to_dict(vote) for vote in queue.votes(1) if vote.source.startswith("tournament/")]
    assert contest.summary["update"] == LONGEST
    assert len(cast) == 2, "the round's votes, then the tournament's"
    kept = contest.read_jsonl("votes.jsonl")
    assert kept == json.loads(json.dumps(votes)) and len(kept) == len(cast[1])
    assert {row["annotator"] for row in kept} == {"ada", "bo"} and not any(row["simulated"] for row in kept)
    assert {row["source"] for row in kept} == {f"tournament/{contest.key}"}


def test_votes_that_are_there_already_choose_among_no_looks(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"tournament\.votes asks annotators"):
        load_config(project, ["feedback.source=votes", "prompts.train=votes", "tournament.votes=10"])


def test_without_a_tournament_nothing_is_kept_for_one(project: Path) -> None:
    stages = {s.kind: s for s in loop.build_stages(Workspace(project), load_config(project, []))}
    assert "tournament" not in stages and "keep_looks" not in stages["policy"].section
    assert stages["evaluation"].parents["policy"] == stages["policy"].address
