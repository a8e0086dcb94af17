"""Annotators are asked at each look: whom they compare, what rings, which look is kept, and what becomes of votes."""

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
from accord.loop import challenging
from accord.loop.asking import VotesMissing
from accord.loop.context import adapter_folder, look_folder
from accord.types import Completion, Silence
from accord.workspace import Workspace

LOOKS = ("ppo.updates=4", "ppo.evaluate_every=1", "ppo.epochs=1", "policy.max_kl_nats=100", "alarm.votes=40")
SILENT = ("alarm.confirmed_share=0.0", "alarm.kl_budgets=100", "alarm.phrase_share=1.0", "alarm.word_share=1.0")
"""Only annotators and a judge that falls can ring."""
LENGTHS = {0: 3, 1: 5, 2: 9, 3: 4, 4: 9}
"""Words of every answer of the look after an update, where `plant_answers` writes them."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return build_tiny_project(tmp_path / "project")


def plant_answers(monkeypatch: pytest.MonkeyPatch, lengths: dict[int, int]) -> None:
    """Every look answers with so many words."""

    def answer(*arguments: Any, label: str, origin: str) -> dict[int, Completion]:
        questions, update = arguments[4], int(origin.rsplit("/", 1)[1])
        text = " ".join(["word"] * lengths[update])
        return {question: Completion.from_text(f"{question} {text}", origin=origin) for question in questions}

    monkeypatch.setattr(challenging, "answer_questions", answer)


def plant_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy rises with every update, and the judge is the same throughout, so that only votes tell looks apart."""
    check = challenging.Challenges.__call__

    def ask(self: challenging.Challenges, looks: Sequence[Any], best: int) -> Any:
        for look in looks:
            object.__setattr__(look, "proxy", (float(look.update),) * len(look.proxy))
            object.__setattr__(look, "heldout", (0.0,) * len(look.heldout))
        return check(self, looks, best)

    monkeypatch.setattr(challenging.Challenges, "__call__", ask)


def test_the_look_that_annotators_prefer_is_kept_and_a_worse_one_rings(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_answers(monkeypatch, LENGTHS)
    plant_scores(monkeypatch)
    settings = [*LOOKS, *SILENT, "simulation.utility=length_words", "project.rounds=2", "tournament.votes=30"]
    first, second = run(project, settings)
    policies, contests, votes = (find_stages(project, settings, kind) for kind in ("policy", "tournament", "votes"))
    told = policies[0].read_json("alarm.json")
    assert [(alarm["kind"], alarm["update"]) for alarm in told["alarms"]] == [("votes", 3)]
    assert [(row["update"], row["rival"], row["votes"]) for row in told["challenges"]] == [
        (1, 0, 40),
        (2, 1, 40),
        (3, 2, 40),
    ]
    shares = [row["share"]["value"] for row in told["challenges"]]
    assert min(shares[:2]) > 0.7 and shares[2] < 0.2
    assert policies[0].summary["best_update"] == 2
    assert "the alarm rang at update 3" in policies[0].summary["stopped"]
    kept = adapter_folder(policies[0].folder) / "adapter_model.safetensors"
    own = adapter_folder(look_folder(policies[0].folder, 2)) / "adapter_model.safetensors"
    assert kept.read_bytes() == own.read_bytes()
    # the report says so, and counts the votes, on which later rounds are fitted
    page = (project / "rounds/001/report.html").read_text()
    assert "annotators prefer an earlier policy" in page and "What annotators said on the way" in page
    spent = [votes[0].summary["votes"], 120, contests[0].summary["votes"]]
    assert policies[0].summary["votes"] == 120 and first["rounds"][0]["votes"] == sum(spent)
    assert second["feedback"]["votes"] == sum(spent) + len(votes[1].read_jsonl("votes.jsonl"))
    ledger = Workspace(project).read_ledger(1)
    assert [row["votes"] for row in ledger if row["stage"] == "policy"] == [120]


def test_no_two_looks_share_a_question_and_neither_side_is_favoured(project: Path) -> None:
    settings = [*LOOKS, *SILENT, "ppo.learning_rate=2e-2", "alarm.false_alarm_rate=1e-9", "alarm.votes=7"]
    run(project, settings)
    (policy,) = find_stages(project, settings, "policy")
    told = policy.read_json("alarm.json")["challenges"]
    rivals = {row["update"]: row["rival"] for row in told}
    assert list(rivals) == [1, 2, 3, 4]
    best = 0
    for row in told:
        assert row["rival"] == best
        best = row["update"] if row["better"] else best
    assert policy.summary["best_update"] == best
    firsts = dict.fromkeys(rivals, 0)
    asked: dict[int, list[str]] = {update: [] for update in rivals}
    for vote in policy.read_jsonl("votes.jsonl"):
        address, _, update = vote["source"].rpartition("/")
        assert address == f"policy/{policy.key}/looks"
        origins = [side["origin"].rsplit("/", 1)[1] for side in vote["completions"]]
        assert sorted(origins) == sorted([update, str(rivals[int(update)])])
        firsts[int(update)] += origins[0] == update
        asked[int(update)].append(json.dumps(vote["prompt"]))
    assert all(2 <= firsts[update] <= 5 and 5 <= len(asked[update]) <= 7 for update in rivals)
    assert not set(asked[1]) & set(asked[2]), "20 prompts, 7 questions a look"
    prompts = [json.dumps(row) for row in find_stages(project, settings, "prompts")[0].read_jsonl("train.jsonl")]
    first_asked = set(asked[1])
    assert first_asked <= set(prompts[: 40 + len(prompts) // 4])
    assert set(asked[1]) != set(asked[2]) or len(prompts) <= 40


def test_rejection_sampling_is_asked_about_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer answers of the first epoch become the best; the second's shorter ones ring."""
    plant_answers(monkeypatch, {0: 3, 1: 9, 2: 3})
    plant_scores(monkeypatch)
    settings = [*SILENT, "policy.max_kl_nats=100", "alarm.votes=40", "simulation.utility=length_words"]
    settings += ["policy.method=rejection_sampling", "rejection_sampling.candidates=2"]
    run(project, settings)
    (policy,) = find_stages(project, settings, "policy")
    told = policy.read_json("alarm.json")
    assert [(row["update"], row["rival"], row["better"]) for row in told["challenges"]] == [(1, 0, True), (2, 1, False)]
    assert [alarm["kind"] for alarm in told["alarms"]] == ["votes"] and policy.summary["best_update"] == 1


def vote_for_length(database: Database) -> int:
    """Ada and Bo in turn prefer the longer answer, until nothing is left to judge: how many votes."""
    queue, done = Queue(database), 0
    while items := queue.lease(name := ("ada", "bo")[done % 2], 1):
        lengths = [len(answer.text) for answer in items[0].completions]
        queue.submit(Answer(str(uuid4()), name, items[0].lease_id, "a" if lengths[0] > lengths[1] else "b", strength=4))
        done += 1
    return done


def test_people_are_asked_at_each_look_and_a_stopped_run_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting the run ends at the round's votes and at each look, and people vote in between."""
    plant_answers(monkeypatch, LENGTHS)
    plant_scores(monkeypatch)
    settings = [*LOOKS, *SILENT, "feedback.source=people", "label.overlap_share=0.0", "label.repeat_share=0.0"]
    settings += ["prompts.limit=16", "feedback.heldout_fraction=0.5"]
    workspace, config = Workspace(project), load_config(project, settings)
    with open_database(workspace.database_url) as database:
        for name in ("ada", "bo"):
            People(database).add(name, actor="test")
        cast = []
        for _ in range(6):
            try:
                loop.run(workspace, config, Silence(), wait=False)
                break
            except VotesMissing:
                cast.append(vote_for_length(database))
        (policy,) = find_stages(project, settings, "policy")
    assert cast[1:] == [40, 40, 40], "at update 3 the alarm rings"
    assert policy.summary["best_update"] == 2
    told = policy.read_json("alarm.json")
    assert [alarm["kind"] for alarm in told["alarms"]] == ["votes"]
    assert [row["share"]["value"] for row in told["challenges"]] == [1.0, 1.0, 0.0]
    assert {vote["annotator"] for vote in policy.read_jsonl("votes.jsonl")} == {"ada", "bo"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["feedback.source=votes", "prompts.train=votes"], r"alarm\.votes asks annotators"),
        (["alarm.enabled=false"], r"needs alarm\.enabled"),
    ],
)
def test_settings_that_leave_nobody_to_ask_are_refused(project: Path, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(project, [*settings, "alarm.votes=10"])


def test_without_votes_a_policy_is_what_it_was_before_they_could_be_asked(project: Path) -> None:
    stages = {s.kind: s for s in loop.build_stages(Workspace(project), load_config(project, []))}
    assert "votes" not in stages["policy"].section["alarm"] and "simulation" not in stages["policy"].section
    asked = {s.kind: s for s in loop.build_stages(Workspace(project), load_config(project, ["alarm.votes=10"]))}
    assert asked["policy"].section["simulation"]["utility"]
