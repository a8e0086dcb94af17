"""Round after round on a tiny model: who samples, what is voted on again, what KL is measured from, when it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import build_tiny_project, find_stages
from tiny_project import run_rounds as run

from accord import loop
from accord.config import load_config
from accord.loop.context import RunContext
from accord.loop.rounds import find_end
from accord.types import Rollout, Silence
from accord.workspace import Artifact, Workspace

SMALL = ("policy.method=rejection_sampling", "rejection_sampling.candidates=2", "rejection_sampling.epochs=1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return build_tiny_project(tmp_path / "project")


def decide_by_round(monkeypatch: pytest.MonkeyPatch, verdicts: Sequence[bool]) -> None:
    """Let the gate promote as planned, whatever was measured."""
    from dataclasses import replace

    from accord.loop import gating

    honest, left = gating.decide, list(verdicts)
    monkeypatch.setattr(gating, "decide", lambda *a, **k: replace(honest(*a, **k), promoted=left.pop(0)))


def test_a_round_starts_from_the_policy_that_was_promoted_not_from_the_last(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promoted, rolled back, and again: round 3 samples and starts from round 1's policy, champion of both gates."""
    decide_by_round(monkeypatch, [True, False, False])
    settings = [*SMALL, "project.rounds=3", "rounds.earlier_share=0.5"]
    reports = run(project, settings)
    policies = [f"policy/{artifact.key}" for artifact in find_stages(project, settings, "policy")]
    gates = find_stages(project, settings, "gate")
    assert [gate.summary["promoted_policy"] for gate in gates] == [policies[0]] * 3
    assert [row["promoted"] for row in reports[-1]["rounds"]] == [True, False, False]
    assert [report["gate"]["against"] for report in reports] == ["reference", policies[0], policies[0]]
    samples = find_stages(project, settings, "samples")
    origins = [{c["origin"] for row in s.read_jsonl("samples.jsonl") for c in row["completions"]} for s in samples]
    reference = samples[0].manifest["parents"]["reference"]
    assert origins[0] == {reference}
    assert origins[1] == {f"gate/{gates[0].key}", reference}
    assert origins[2] == {f"gate/{gates[1].key}", reference, policies[1]}
    champion = gates[1].read_jsonl("champion.jsonl")
    first = find_stages(project, settings, "evaluation")[0].read_jsonl("completions.jsonl")
    assert len(champion) == len(first)
    assert [artifact.kind for artifact in find_stages(project, settings, "prompts")] == ["prompts"]


def test_where_nothing_was_promoted_the_next_round_starts_from_the_reference(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_by_round(monkeypatch, [False, True])
    guard = 'guard.rewards=[{name="harmless", margin=0.5}, {name="sentiment", margin=0.0}]'
    settings = [*SMALL, "project.rounds=2", "rounds.reference=previous", guard]
    reports = run(project, settings)
    guards = {guard["name"]: guard["margin"] for guard in reports[1]["gate"]["guards"]}
    assert guards.keys() == {"toxicity", "refusal", "length_tokens", "harmless", "sentiment"}
    assert (guards["harmless"], guards["sentiment"], guards["toxicity"]) == (0.5, 0.0, 0.02)
    first, second = find_stages(project, settings, "gate")
    assert first.summary["promoted_policy"] == "" and second.summary["promoted_policy"].startswith("policy/")
    assert not (second.folder / "champion.jsonl").exists()


def test_votes_of_later_rounds_compare_policies_and_repeat_the_anchor_pairs(project: Path) -> None:
    settings = [*SMALL, "project.rounds=2", "rounds.earlier_share=1.0", "rounds.anchor_pairs=6"]
    first, second = run(project, settings)
    votes = find_stages(project, settings, "votes")
    held = votes[1].read_jsonl("anchor_votes.jsonl")
    assert len(held) == 6 * 3
    asked = {json.dumps([row["prompt"], row["completions"]]) for row in votes[0].read_jsonl("votes.jsonl")}
    assert {json.dumps([row["prompt"], row["completions"]]) for row in held} <= asked
    fitted = second["feedback"]["votes"]
    assert fitted == sum(len(artifact.read_jsonl("votes.jsonl")) for artifact in votes)
    assert first["feedback"]["anchors"] is None and first["feedback"]["win_rate_against_earlier"] is None
    assert second["feedback"]["anchors"]["pairs"] == 6
    assert second["feedback"]["win_rate_against_earlier"]["n"] > 12
    assert [row["votes"] for row in second["rounds"]] == [72, votes[1].summary["votes"]]
    assert all(row["sampled_tokens"] > 0 and row["seconds"] > 0 for row in second["rounds"])


def test_prompts_keep_their_side_from_round_to_round(project: Path) -> None:
    """No prompt that the judge of one round is fitted on fits the proxy of another."""
    from accord.loop.fitting import split_preferences

    settings = [*SMALL, "project.rounds=2"]
    run(project, settings)
    config = load_config(project, settings)
    context = RunContext(Workspace(project), config, Silence())
    stages = [s for s in loop.build_stages(Workspace(project), config) if s.kind == "reward_model"]
    sides = {
        part: {p.prompt.id for stage in stages for pairs in split_preferences(context, stage, part)[:2] for p in pairs}
        for part in ("proxy", "heldout")
    }
    assert sides["proxy"] and sides["heldout"] and not sides["proxy"] & sides["heldout"]


def test_the_moving_anchor_is_the_average_of_promoted_policies(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anchor_2 = 0.75 base + 0.25 policy_1: a LoRA product scaled by 0.25. anchor_3 = 0.75 anchor_2 + 0.25 policy_2."""
    decide_by_round(monkeypatch, [True, True, True])
    settings = [*SMALL, "project.rounds=3", "rounds.reference=ema", "rounds.ema_decay=0.75"]
    reports = run(project, settings)
    assert [report["policy"]["anchor"] for report in reports] == ["base", "ema", "ema"]
    policies = [load_adapter(artifact) for artifact in find_stages(project, settings, "policy")]
    second, third = (load_adapter(artifact) for artifact in find_stages(project, settings, "anchor"))
    for name, weight in policies[0].items():
        scale = 0.25 if ".lora_B." in name else 1.0
        torch.testing.assert_close(second[name], scale * weight)
        torch.testing.assert_close(third[name], 0.75 * second[name] + 0.25 * policies[1][name])


def load_adapter(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The weights of an artifact's adapter."""
    (path,) = (artifact.folder / "adapter").glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize(
    ("setting", "rounds"),
    [("rounds.stop_without_promotion=2", 2), ("rounds.max_votes=100", 2), ("rounds.max_votes=72", 1)],
)
def test_it_ends_where_another_round_has_no_point(
    project: Path, monkeypatch: pytest.MonkeyPatch, setting: str, rounds: int
) -> None:
    decide_by_round(monkeypatch, [False] * 4)
    settings = [*SMALL, "project.rounds=4", setting]
    reports = run(project, settings)
    assert len(reports) == rounds
    stages = loop.build_stages(Workspace(project), load_config(project, settings))
    assert setting.split("=")[0] in str(
        find_end(Workspace(project), load_config(project, settings), stages, rounds + 1)
    )


def test_votes_are_parted_by_annotator_before_anything_is_fitted(project: Path) -> None:
    """Five annotators, all on every pair: two judge alone, three fit the proxy, and no vote is on both sides."""
    from accord.feedback.consensus import compute_consensus
    from accord.feedback.records import vote_from_dict
    from accord.loop.preparing import choose_judges

    settings = [*SMALL, "simulation.annotators=[]", "simulation.votes_per_pair=5"]
    run(project, settings)
    (preferences,), (votes,) = (find_stages(project, settings, kind) for kind in ("preferences", "votes"))
    judges = set(preferences.read_json("consensus.json")["judges"])
    rows = [vote_from_dict(row, "") for row in votes.read_jsonl("votes.jsonl")]
    assert len(judges) == 2 and len({vote.annotator for vote in rows}) == 5
    for part, own in (("heldout", judges), ("proxy", {vote.annotator for vote in rows} - judges)):
        alone = compute_consensus([vote for vote in rows if vote.annotator in own]).preferences
        assert preferences.read_jsonl(f"{part}.jsonl") == [json.loads(json.dumps(p.to_dict())) for p in alone]
    assert choose_judges("abcd", 0.3, 0) == set() and choose_judges("abcdefgh", 0.0, 0) == set()


class Planted:
    """A reward of token ids in the place of a learned one: ten times the share of even ids, a bonus for the token."""

    def __init__(self, token: int, bonus: float) -> None:
        self.token, self.bonus = token, bonus

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        ids, mask = rollout.completion_ids, rollout.completion_mask
        even = ((ids % 2 == 0) & mask).sum(1) / mask.sum(1)
        return 10 * even + self.bonus * ((ids == self.token) & mask).any(1)


def test_a_poisoned_reward_model_is_caught_in_one_round_and_its_token_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token always wins by the proxy. The run stops, the report names it, and round 2 asks about it first."""
    token = 3 + 25  # a printable byte of the tiny tokenizer
    load = RunContext.load_reward

    def poisoned(self: RunContext, role: str, artifact: Artifact) -> Any:
        honest = load(self, role, artifact)
        assert honest.role == role
        return Planted(token, 20.0 if role == "proxy" else 0.0)

    monkeypatch.setattr(RunContext, "load_reward", poisoned)
    settings = [
        "project.rounds=2", "prompts.limit=64", "ppo.updates=20", "ppo.prompts_per_update=32", "ppo.learning_rate=2e-2",
        "ppo.evaluate_every=4", "ppo.validation_prompts=16", "ppo.kl_coef=0.0", "ppo.kl_controller=fixed",
        "policy.max_kl_nats=40.0", "ppo.missing_eos_penalty=0.0",
    ]  # fmt: skip
    first, _ = run(project, settings)
    assert first["alarm"]["alarms"] and "alarm rang" in first["policy"]["stopped"]
    suspect = first["alarm"]["suspects"][0]
    context = RunContext(Workspace(project), load_config(project, settings), Silence())
    assert suspect["text"] == context.base.tokens.decode([token]).strip()
    assert suspect["proxy_price"] > 10 > abs(suspect["judge_price"])
    assert first["policy"]["best_update"] < first["policy"]["history"][-1]["update"]
    page = (project / "rounds/001/report.html").read_text()
    assert first["alarm"]["alarms"][0]["reason"].split(".")[0] in page
    policy, votes = (find_stages(project, settings, kind) for kind in ("policy", "votes"))
    disputed = policy[0].read_jsonl("disputed.jsonl")
    assert disputed
    asked = [row["completions"][0]["messages"] for row in votes[1].read_jsonl("votes.jsonl")]
    said = [row["completion"]["messages"] for row in disputed]
    assert all(messages in asked for messages in said if messages[0]["content"].strip())
