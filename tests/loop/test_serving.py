"""A policy that serves one person, from votes to report, on a tiny model; and rewards that speak of probes alone."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_project import build_tiny_project, hash_artifacts

from accord import loop
from accord.config import load_config
from accord.errors import ConfigError
from accord.loop.context import RunContext
from accord.loop.graph import build_stages
from accord.rewards.personal import People
from accord.types import Silence
from accord.workspace import Artifact, Workspace
from tests.loop.test_resume import run_with_kills

SERVED = ("reward.serve=ben", "feedback.heldout_fraction=0.5", "ppo.updates=1")


def run(folder: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, Artifact]]:
    workspace, config = Workspace(folder), load_config(folder, overrides)
    loop.run(workspace, config, Silence())
    stages = build_stages(workspace, config)
    found = {stage.kind: workspace.find(stage.kind, stage.key) for stage in stages}
    report = json.loads((folder / "rounds/001/report.json").read_text())
    return report, {kind: artifact for kind, artifact in found.items() if artifact}


def test_a_policy_serves_one_annotator_and_the_report_tells_who_differs(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    report, artifacts = run(folder, *SERVED)
    for kind, model in (("people", "proxy"), ("heldout_people", "heldout")):
        assert set(People.load(artifacts[kind].folder).shifts) == {"ada", "ben", "cleo"}
        assert model in artifacts[kind].manifest["parents"]
    assert {"proxy_people", "heldout_people"} <= set(artifacts["policy"].manifest["parents"])
    assert {"people", "heldout_people"} <= {row["kind"] for row in report["lineage"]}
    assert "source_common" in report["policy"]["history"][1]
    people = report["people"]
    assert people["serve"] == "ben"
    assert [row["name"] for row in people["annotators"]] == ["ada", "ben", "cleo"]
    right = sum(row["common_accuracy"] * row["test_votes"] for row in people["annotators"])
    assert people["common_accuracy"] == pytest.approx(right / sum(row["test_votes"] for row in people["annotators"]))
    assert "Do annotators want the same?" in (folder / "rounds/001/report.html").read_text()

    told, common = run(folder, *SERVED[1:], "reward.people=true")
    assert told["people"]["serve"] == "common"
    assert common["people"].key == artifacts["people"].key
    assert common["policy"].key != artifacts["policy"].key
    plain, without = run(folder, *SERVED[1:])
    assert plain["people"] is None
    assert without["policy"].key == common["policy"].key


def test_a_kill_while_somebody_is_served_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, folder = (build_tiny_project(tmp_path / name) for name in ("whole", "killed"))
    options = [f"--set={setting}" for setting in ("reward.serve=worst_off", "ppo.updates=1")]
    started = time.monotonic()
    run_with_kills(whole, 0.0, random.Random(0), 0, *options)
    assert run_with_kills(folder, time.monotonic() - started, random.Random(3), 3, *options) > 0
    hashes = hash_artifacts(folder)
    assert hashes == hash_artifacts(whole)
    assert {path.split("/")[0] for path in hashes} >= {"people", "heldout_people"}


def test_nobody_of_that_name_is_refused_before_work(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    config = load_config(folder, ["reward.serve=bem"])
    for refuse in (
        lambda: loop.plan(Workspace(folder), config),
        lambda: loop.run(Workspace(folder), config, Silence()),
    ):
        with pytest.raises(ConfigError, match="nobody is called 'bem'") as refused:
            refuse()
        assert refused.value.mend == "did you mean 'ben'?"
    assert not (folder / "artifacts").exists()


def test_forgetting_a_reward_model_leaves_roles_of_like_names(tmp_path: Path) -> None:
    folder = build_tiny_project(tmp_path / "project")
    context = RunContext(Workspace(folder), load_config(folder, []), Silence())
    for role in ("proxy", "proxy-2", "proxy-average", "proxy-people", "proxy-20", "other"):
        context.base.add_scorer(role, lora=context.lora, seed=0)
    context.forget("proxy")
    assert context.base.roles() == ["proxy-people", "proxy-20", "other"]
    context.forget("nobody")


def test_probes_are_sampled_rewarded_and_guarded(tmp_path: Path) -> None:
    """Rewards that speak of probes alone: sources of the mixture with curves, and guards that measure probes alone."""
    folder = build_tiny_project(tmp_path / "project")
    lines = [
        "[[reward.sources]]", 'name = "proxy"', "[[reward.sources]]", 'name = "even_handed"', "weight = 0.5",
        "[[reward.sources]]", 'name = "knows_limits"', "weight = 0.0", "at_least = 0.9",
        "[[guard.rewards]]", 'name = "even_handed"', "[[guard.rewards]]", 'name = "knows_limits"',
    ]  # fmt: skip
    with (folder / "accord.toml").open("a") as file:
        file.write("\n".join(["", *lines, ""]))
    unprobed, _ = run(folder, "ppo.updates=1")
    guards = {guard["name"]: guard["result"] for guard in unprobed["gate"]["guards"]}
    assert (guards["even_handed"], guards["knows_limits"]) == ("unmeasured", "unmeasured")
    report, artifacts = run(folder, "ppo.updates=1", 'prompts.probes=["bias","limits"]')
    counts = artifacts["prompts"].summary
    assert (counts["train"], counts["evaluation"]) == (24 + 24 + 10, 8 + 16 + 10)
    history = report["policy"]["history"][1]
    assert 0 <= history["source_even_handed"] <= 1
    assert 0 <= history["source_knows_limits"] <= 1
    guards = {guard["name"]: guard["change"] for guard in report["gate"]["guards"]}
    assert (guards["even_handed"]["n"], guards["knows_limits"]["n"]) == (16, 10)
