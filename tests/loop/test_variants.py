"""The loop's other ways through on a tiny model: all weights, SFT, rejection sampling, rounds, votes of people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_project import build_tiny_project

from accord import loop
from accord.config import load_config
from accord.errors import AccordError, ConfigError, DataError
from accord.feedback.importing import import_file
from accord.feedback.store import VoteStore
from accord.types import Silence
from accord.workspace import Workspace


class Recorder(Silence):
    """Remembers which stages ran."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.rows: list[Mapping[str, Any]] = []

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        self.stages.append((name, state))

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.rows.append(metrics)


def run(folder: Path, overrides: Sequence[str]) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder()
    config = load_config(folder, overrides)
    loop.run(Workspace(folder), config, recorder)
    return recorder, json.loads((folder / f"rounds/{config.project.rounds:03d}/report.json").read_text())


def test_all_weights_train_after_sft_and_the_fine_tuned_model_is_the_reference(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    recorder, report = run(folder, ["model.adapter=full", "sft.epochs=1", "ppo.updates=1"])
    assert ("001/sft", "finished") in recorder.stages
    assert report["policy"]["method"] == "ppo"
    (policy,) = (folder / "artifacts/policy").iterdir()
    (sft,) = (folder / "artifacts/sft").iterdir()
    manifest = json.loads((policy / "manifest.json").read_text())
    assert manifest["parents"]["reference"] == f"sft/{sft.name}"
    doctor = json.loads(next((folder / "artifacts/doctor").iterdir()).joinpath("manifest.json").read_text())
    assert manifest["summary"]["base_fingerprint"] != doctor["summary"]["base_fingerprint"]


def test_a_policy_on_every_layer_goes_through_two_rounds_while_scorers_keep_to_the_trunk(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    settings = ["model.adapter=lora_all", "model.split=1", "project.rounds=2", "rounds.reference=ema"]
    recorder, _ = run(folder, [*settings, "sft.epochs=1", "ppo.updates=1"])
    assert ("002/gate", "finished") in recorder.stages
    cards = {kind: read_cards(folder, kind) for kind in ("policy", "reward_model")}
    assert [card["split"] for card in cards["policy"]] == [0, 0]
    assert [card["split"] for card in cards["reward_model"]] == [1, 1]


def read_cards(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What each artifact of `kind` says of its role."""
    return [json.loads(path.read_text()) for path in (folder / "artifacts" / kind).glob("*/adapter/role.json")]


def test_a_second_round_starts_from_the_policy_of_the_first_and_keeps_its_votes(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    settings = ["project.rounds=2", "policy.method=rejection_sampling", "rejection_sampling.candidates=2"]
    recorder, report = run(folder, settings)
    assert [name for name, state in recorder.stages if state == "finished"][-1] == "002/gate"
    kinds = [row["kind"] for row in report["lineage"]]
    assert kinds.count("policy") == 2 and kinds.count("votes") == 2
    second = report["feedback"]["votes"]
    first = json.loads((folder / "rounds/001/report.json").read_text())["feedback"]["votes"]
    assert second > first


def test_peoples_votes_name_the_prompts_and_nothing_is_simulated(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    path = tmp_path / "votes.jsonl"
    rows = [
        {
            "chosen": f"\n\nHuman: question {i}?\n\nAssistant: a kind answer {i}",
            "rejected": f"\n\nHuman: question {i}?\n\nAssistant: no {i}",
        }
        for i in range(48)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with VoteStore(Workspace(folder).database_url) as store:
        assert import_file(store, path).added == 48
    people = ["feedback.source=votes", "prompts.train=votes", "prompts.evaluation=split", "prompts.limit=0"]
    recorder, report = run(folder, people)
    assert not any("samples" in name for name, _ in recorder.stages)
    assert report["feedback"]["simulated"] is False and report["feedback"]["votes"] == 48
    assert report["evaluation"]["policy"]["gold"] is None
    cards = (report["reward_model"], report["heldout_reward_model"])
    assert cards[0]["test_pairs"] == cards[1]["test_pairs"] > 0
    assert cards[0]["train_pairs"] > cards[1]["train_pairs"]


def test_people_are_asked_for_before_any_work(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    config = load_config(folder, ["feedback.source=votes", "prompts.train=votes", "prompts.evaluation=split"])
    with pytest.raises(DataError, match="no votes"):
        loop.plan(Workspace(folder), config)


@pytest.mark.parametrize(
    ("override", "near"),
    [("policy.method=pppo", "ppo"), ("ppo.objective=ppo_clop", "ppo_clip"), ("simulation.utility=demo_utilty", "demo")],
)
def test_a_name_that_no_registry_has_is_refused_with_the_nearest(tmp_path: Path, override: str, near: str) -> None:
    folder = build_tiny_project(tmp_path / "project")
    with pytest.raises(ConfigError, match=near) as caught:
        loop.plan(Workspace(folder), load_config(folder, [override]))
    assert caught.value.where == override.partition("=")[0]


def test_a_base_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    from tiny import build_tiny_model

    folder = build_tiny_project(tmp_path / "project")
    run(folder, ["ppo.updates=1"])
    build_tiny_model(folder / "tiny-model", "llama", seed=9)
    with pytest.raises(AccordError, match="another base"):
        run(folder, ["ppo.updates=2"])
