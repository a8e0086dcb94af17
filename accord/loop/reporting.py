"""report.json and report.html of each round, rebuilt at any time from artifacts and ledger.

Implements gathering the numbers under their documented keys. Leaves out how they are computed (`evaluation`) and how
they look (`evaluation.report`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from accord.config import Config
from accord.errors import WorkspaceError
from accord.evaluation.report import render_report
from accord.loop.comparing import gather_drift, gather_win_rate
from accord.loop.graph import Stage, build_stages
from accord.loop.rounds import tabulate_round
from accord.workspace import Artifact, Workspace, dump_json, replace_file

DISPUTED_SHOWN = 4
"""Disputed answers on the page; all of them lie in the policy's artifact."""


def build_report(workspace: Workspace, config: Config) -> list[Path]:
    """Write rounds/NNN/report.json and report.html of every finished round; returns the html files.

    Raises:
        WorkspaceError: no round is finished yet.
    """
    stages = build_stages(workspace, config)
    written = []
    for number in range(1, config.project.rounds + 1):
        own = [stage for stage in stages if stage.round == number]
        found = {stage.kind: workspace.find(stage.kind, stage.key) for stage in own}
        artifacts = {kind: artifact for kind, artifact in found.items() if artifact}
        if "evaluation" not in artifacts:
            continue
        report = gather_report(workspace, config, number, own, artifacts)
        report["rounds"] = [tabulate_round(workspace, stages, i) for i in range(1, number + 1)]
        report["feedback"] |= {
            "win_rate_against_earlier": gather_win_rate(artifacts),
            "anchors": gather_drift(workspace, stages, number, config.project.seed),
        }
        folder = workspace.round_folder(number)
        replace_file(folder / "report.json", dump_json(report))
        replace_file(folder / "report.html", render_report(report))
        written.append(folder / "report.html")
    if not written:
        raise WorkspaceError("no round is finished yet", where=str(workspace.root), mend=f"accord run {workspace.root}")
    return written


def gather_report(
    workspace: Workspace, config: Config, number: int, stages: list[Stage], artifacts: dict[str, Artifact]
) -> dict[str, Any]:
    """The round's report as one dictionary; docs/report.md explains every key."""
    ledger = workspace.read_ledger(number)
    keys = {stage.key for stage in stages}
    policy, contest = artifacts["policy"], artifacts.get("tournament")
    result = artifacts["evaluation"]
    return {
        "project": {
            "name": config.project.name,
            "round": number,
            "seed": config.project.seed,
            "model": config.model.name,
        },
        "feedback": _gather_feedback(workspace, stages, artifacts),
        "reward_model": _gather_reward_model(artifacts["reward_model"]),
        "heldout_reward_model": _gather_reward_model(artifacts["heldout_reward_model"]),
        "people": {"serve": config.reward.serve, **artifacts["people"].read_json("people.json")}
        if "people" in artifacts
        else None,
        "policy": {
            "method": policy.summary["method"],
            "best_update": contest.summary["update"] if contest else policy.summary["best_update"],
            "stopped": policy.summary["stopped"],
            "history": policy.read_jsonl("history.jsonl"),
            "max_kl_nats": config.policy.max_kl_nats,
            "anchor": config.rounds.reference if "anchor" in policy.manifest["parents"] else "base",
        },
        "tournament": contest.read_json("tournament.json") if contest else None,
        "evaluation": result.read_json("evaluation.json"),
        "gate": artifacts["gate"].read_json("gate.json") if "gate" in artifacts else None,
        "alarm": policy.read_json("alarm.json") | {"disputed": policy.read_jsonl("disputed.jsonl")[:DISPUTED_SHOWN]},
        "lineage": [
            {"kind": a.kind, "key": a.key, "parents": dict(a.manifest["parents"])} for a in workspace.ancestors(result)
        ],
        "timings_seconds": {row["stage"]: row["seconds"] for row in ledger if row["key"] in keys},
        "peak_rss_bytes": max((row["peak_rss_bytes"] for row in ledger if row["key"] in keys), default=0),
    }


def _gather_feedback(workspace: Workspace, stages: list[Stage], artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """Votes, annotators (the simulated marked as such), agreement and consensus."""
    preferences = artifacts["preferences"]
    consensus = preferences.read_json("consensus.json")
    votes = []
    for address in preferences.manifest["parents"].values():
        kind, _, key = address.partition("/")
        found = workspace.find(kind, key)
        votes += found.read_jsonl("votes.jsonl") if found else []
    cast = Counter(vote["annotator"] for vote in votes)
    simulated = {vote["annotator"] for vote in votes if vote["simulated"]}
    known = consensus["annotators"]["annotators"]
    return {
        "votes": len(votes),
        "pairs": preferences.summary["preferences"],
        "simulated": bool(simulated),
        "consensus": consensus["annotators"]["method"],
        "agreement": consensus["agreement"],
        "annotators": [
            {"name": name, "votes": count, "simulated": name in simulated, **known.get(name, {})}
            for name, count in sorted(cast.items())
        ],
    }


def _gather_reward_model(artifact: Artifact) -> dict[str, Any]:
    """The report card, the training history and the sizes of the splits."""
    sizes = {k: artifact.summary[k] for k in ("train_pairs", "validation_pairs", "test_pairs", "best_epoch")}
    return {**artifact.read_json("card.json"), **sizes, "history": artifact.read_jsonl("history.jsonl")}
