"""The loop chooses the pairs of a round by what it knows from the round before, with a random arm and propensities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from tiny_project import build_tiny_project

from accord import loop
from accord.config import load_config
from accord.errors import ConfigError
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.queue_schema import items
from accord.loop.asking import VotesMissing
from accord.loop.chatting import Silence
from accord.loop.context import RunContext
from accord.loop.graph import Stage, build_stages
from accord.rewards import EnsembleReward
from accord.types import Completion, Preference, Prompt
from accord.workspace import Workspace

SETTINGS = (
    "project.rounds=2", "policy.method=rejection_sampling", "rejection_sampling.candidates=2",
    "rejection_sampling.epochs=1", "feedback.heldout_fraction=0.5", "selection.pairs=16", "selection.random_share=0.25",
)  # fmt: skip


def run(folder: Path, *overrides: str) -> tuple[RunContext, list[Stage]]:
    config, workspace = load_config(folder, [*SETTINGS, *overrides]), Workspace(folder)
    loop.run(workspace, config, Silence())
    return RunContext(workspace, config, Silence()), build_stages(workspace, config)


def find(stages: list[Stage], kind: str, number: int) -> Stage:
    return next(stage for stage in stages if (stage.kind, stage.round) == (kind, number))


def read(context: RunContext, stage: Stage, name: str) -> list[dict[str, Any]]:
    artifact = context.workspace.find(stage.kind, stage.key)
    assert artifact is not None
    return artifact.read_jsonl(name)


def score(context: RunContext, stage: Stage, rows: list[dict[str, Any]]) -> torch.Tensor:
    """(pairs, models) margins under the reward models of the artifacts that the stage names."""
    columns = []
    for name in ("proxy", "heldout"):
        reward = context.load_reward(name, context.parent(stage, name))
        prompts = [Prompt.from_dict(row["prompt"]) for row in rows]
        a, b = ([Completion.from_dict(row[side]) for row in rows] for side in "ab")
        columns.append(reward.score_texts(prompts, a) - reward.score_texts(prompts, b))
    return torch.stack(columns, dim=1)


def test_round_two_asks_where_the_reward_models_of_round_one_disagree(tmp_path: Path) -> None:
    context, stages = run(build_tiny_project(tmp_path / "project"), "selection.strategy=uncertain")
    first, second = find(stages, "selection", 1), find(stages, "selection", 2)
    assert {row["arm"] for row in read(context, first, "pairs.jsonl")} == {"random"}
    assert second.parents["proxy"] == find(stages, "reward_model", 1).address
    assert second.parents["heldout"] == find(stages, "heldout_reward_model", 1).address

    candidates = [
        {"prompt": row["prompt"], "a": row["completions"][0], "b": row["completions"][1]}
        for row in read(context, find(stages, "samples", 2), "samples.jsonl")
        if row["completions"][0] != row["completions"][1]
    ]
    disagreement = torch.sigmoid(score(context, second, candidates)).var(dim=1, correction=0)
    ranked = [candidates[i] for i in disagreement.argsort(descending=True).tolist()]
    chosen = read(context, second, "pairs.jsonl")
    drawn = [row for row in chosen if row["arm"] == "random"]
    best = [row for row in chosen if row["arm"] == "uncertain"]
    assert (len(drawn), len(best)) == (4, 12)
    at_random = [row["a"] for row in drawn]
    expected = [row["a"] for row in ranked if row["a"] not in at_random][:12]
    assert [row["a"] for row in best] == expected
    certain = [row["a"] for row in ranked[:12]]  # drawn or not, there is room for them
    assert all(row["propensity"] > 0.999 for row in best if row["a"] in certain)

    arms = read(context, find(stages, "votes", 2), "arms.jsonl")
    votes = read(context, find(stages, "votes", 2), "votes.jsonl")
    assert [row["vote"] for row in arms] == [row["id"] for row in votes]
    assert len(votes) == 16 * 3
    by_text = {row["a"]["messages"][0]["content"]: (row["arm"], row["propensity"]) for row in chosen}
    assert all(
        by_text[vote["completions"][0]["messages"][0]["content"]] == (arm["arm"], arm["propensity"])
        for vote, arm in zip(votes, arms, strict=True)
    )


def test_each_member_of_an_ensemble_has_a_say(tmp_path: Path) -> None:
    overrides = ("selection.strategy=uncertain", "reward_model.members=3", "reward_model.own_layers=1")
    context, stages = run(build_tiny_project(tmp_path / "project"), *overrides)
    second = find(stages, "selection", 2)
    rows = read(context, second, "pairs.jsonl")
    reward = context.load_reward("proxy", context.parent(second, "proxy"))
    assert isinstance(reward, EnsembleReward)
    prompts = [Prompt.from_dict(row["prompt"]) for row in rows]
    a, b = ([Completion.from_dict(row[side]) for row in rows] for side in "ab")
    margins = reward.score_texts_by_member(prompts, a) - reward.score_texts_by_member(prompts, b)
    found = torch.tensor([row["margins"] for row in rows])
    assert found.shape == (16, 4)
    torch.testing.assert_close(found[:, :3], margins.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(margins.mean(dim=0), reward.score_texts(prompts, a) - reward.score_texts(prompts, b))


def test_taste_asks_what_sets_people_apart(tmp_path: Path) -> None:
    context, stages = run(build_tiny_project(tmp_path / "project"), "selection.strategy=taste", "reward.people=true")
    second = find(stages, "selection", 2)
    assert second.parents["people"] == find(stages, "people", 1).address
    assert second.parents["proxy"] == find(stages, "reward_model", 1).address
    assert [row["arm"] for row in read(context, second, "pairs.jsonl")].count("taste") == 12


def test_conflict_asks_again_where_the_votes_contradict_the_reward_model(tmp_path: Path) -> None:
    context, stages = run(build_tiny_project(tmp_path / "project"), "selection.strategy=conflict")
    second = find(stages, "selection", 2)
    judged = read(context, find(stages, "preferences", 1), "preferences.jsonl")
    preferences = [Preference.from_dict(row) for row in judged]
    people = torch.tensor([p.probability for p in preferences])
    conflict = (torch.sigmoid(score(context, second, judged)).mean(dim=1) - people).abs()
    chosen = [row for row in read(context, second, "pairs.jsonl") if row["arm"] == "conflict"]
    assert len(chosen) == 12
    names = [(p.prompt.id, p.a.id) for p in preferences]
    asked = [names.index((Prompt.from_dict(r["prompt"]).id, Completion.from_dict(r["a"]).id)) for r in chosen]
    assert asked == sorted(asked, key=lambda place: -float(conflict[place]))
    left = set(range(len(names))) - set(asked)
    at_random = {r["a"]["messages"][0]["content"] for r in read(context, second, "pairs.jsonl") if r["arm"] == "random"}
    left = {place for place in left if preferences[place].a.text not in at_random}
    assert not left or max(conflict[list(left)]) <= min(conflict[asked])


def test_people_are_asked_about_the_chosen_pairs_and_each_item_knows_why(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    workspace = Workspace(folder)
    overrides = ["feedback.source=people", "selection.pairs=6", "selection.strategy=coverage"]
    with pytest.raises(VotesMissing, match="of 7 votes"):
        loop.run(workspace, load_config(folder, [*overrides, "label.overlap=2"]), Silence(), wait=False)
    context = RunContext(workspace, load_config(folder, overrides), Silence())
    with context.store.database.read() as connection:
        rows = connection.execute(select(items.c.arm, items.c.propensity)).all()
    assert sorted(row.arm for row in rows) == ["coverage"] * 4 + ["random"] * 2
    assert all(0.0 < row.propensity <= 1.0 for row in rows)
    People(context.store.database).add("ada", actor="test")
    assert len(Queue(context.store.database).lease("ada", 10)) == 6


def test_the_plan_says_where_a_strategy_has_nothing_to_go_by(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    config = load_config(folder, [*SETTINGS, "selection.strategy=uncertain"])
    notes = {stage.round: stage.note for stage in loop.plan(Workspace(folder), config) if stage.kind == "selection"}
    assert notes == {
        1: "16 pairs at random: uncertain needs reward models, and round 1 has none yet",
        2: "16 pairs, strategy uncertain",
    }


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["selection.strategy=uncertain"], "selection.pairs = 0"),
        (["selection.pairs=4", "feedback.source=people", "label.ask=ranking"], "label.ask"),
        (["selection.pairs=4", "selection.random_share=0.0"], "random_share"),
        (["selection.pairs=4", "selection.strategy=taste"], "reward.people"),
    ],
)
def test_settings_that_choose_nothing_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(build_tiny_project(tmp_path / "project"), overrides)


def test_an_unknown_strategy_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    with pytest.raises(ConfigError, match="uncertian") as refused:
        loop.plan(Workspace(folder), load_config(folder, ["selection.pairs=4", "selection.strategy=uncertian"]))
    assert "uncertain" in json.dumps(refused.value.mend)
