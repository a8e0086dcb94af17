"""The stages of the loop, in order, with the key of each artifact: the only place that knows them all.

Implements the graph: which settings and which artifacts shape which stage. Leaves out what a stage does (`work`), how
long it may take (`estimate`) and running it (`runner`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config import Config
from accord.errors import DataError
from accord.feedback.store import VoteStore
from accord.loop import fitting, improving, preparing
from accord.loop.context import RunContext
from accord.models.loading import compute_source_id
from accord.types import compute_content_id, derive_seed
from accord.workspace import Draft, Workspace, compute_key

Work = Callable[[RunContext, "Stage", Draft], None]


@dataclass(frozen=True)
class Stage:
    """One artifact to make: what shapes it, and the function that makes it. `parents` maps a name to "KIND/KEY"."""

    kind: str
    round: int
    version: int
    section: Mapping[str, Any]
    parents: Mapping[str, str]
    seed: int
    work: Work = field(compare=False)

    @property
    def key(self) -> str:
        """Hash of all of the above."""
        return compute_key(self.kind, self.version, self.section, self.parents, self.seed)

    @property
    def address(self) -> str:
        """ "KIND/KEY", how other manifests name it."""
        return f"{self.kind}/{self.key}"


def build_stages(workspace: Workspace, config: Config) -> list[Stage]:
    """Every stage of every round, in the order in which they run. Nothing is loaded and nothing is run.

    Raises:
        DataError: a prompt file is missing, or the loop rests on votes and there are none.
    """
    stages: list[Stage] = []

    def add(kind: str, number: int, work: Work, section: Mapping[str, Any], parents: Mapping[str, str]) -> str:
        seed = derive_seed(config.project.seed, kind, number)
        stages.append(Stage(kind, number, VERSIONS[kind], section, parents, seed, work))
        return stages[-1].address

    model = {"model": _dump(config.model), "source": compute_source_id(config.model.name)}
    people = config.feedback.source == "votes"
    doctor = add("doctor", 1, preparing.examine_model, model, {})
    policy = doctor
    voted: dict[str, str] = {}
    for number in range(1, config.project.rounds + 1):
        if people:
            voted["votes"] = add("votes", number, preparing.collect_votes, _snapshot(workspace), {})
            prompts = add("prompts", number, preparing.choose_prompts, _prompts(workspace, config), {"model": doctor, **voted})
        else:
            prompts = add("prompts", number, preparing.choose_prompts, _prompts(workspace, config), {"model": doctor})
            sampled = {"prompts": prompts, "policy": policy}
            samples = add("samples", number, preparing.sample_completions, {"sample": _dump(config.sample)}, sampled)
            simulation = {"simulation": _dump(config.simulation)}
            voted[f"votes_{number}"] = add("votes", number, preparing.simulate_annotators, simulation, {"samples": samples})
        consensus = {"consensus": config.feedback.consensus}
        preferences = add("preferences", number, preparing.reach_consensus, consensus, dict(voted))
        shared = {"prompts": prompts, "preferences": preferences}
        reference = doctor
        if config.sft.epochs:
            reference = add("sft", number, improving.fine_tune, {"sft": _dump(config.sft), **model}, {**shared, "model": doctor})
        fit = {"reward_model": _dump(config.reward_model), "sample": _dump(config.sample),
               "heldout_fraction": config.feedback.heldout_fraction}
        grounds = {**shared, "reference": reference}
        proxy = add("reward_model", number, fitting.fit_proxy, fit, grounds)
        heldout = add("heldout_reward_model", number, fitting.fit_heldout, fit, grounds)
        judges = {"prompts": prompts, "proxy": proxy, "heldout": heldout, "reference": reference}
        start = {**judges, "start": policy} if number > 1 else judges
        policy = add("policy", number, improving.improve_policy, _policy_section(config), start)
        shown = {"evaluation": _dump(config.evaluation), "sample": _dump(config.sample)}
        if not people:
            shown["gold"] = config.simulation.utility
        add("evaluation", number, improving.evaluate, shown, {**judges, "policy": policy})
    return stages


VERSIONS = {
    "doctor": 1,
    "prompts": 1,
    "samples": 1,
    "votes": 1,
    "preferences": 1,
    "sft": 1,
    "reward_model": 1,
    "heldout_reward_model": 1,
    "policy": 1,
    "evaluation": 1,
}
"""Raised when a stage's code would make another artifact from the same inputs; part of every key."""


def _dump(section: Any) -> dict[str, Any]:
    result: dict[str, Any] = section.model_dump(mode="json")
    return result


def _policy_section(config: Config) -> dict[str, Any]:
    """The settings of the chosen method only, so that another method's knobs do not spoil a finished policy."""
    method = config.policy.method
    own = {method: _dump(getattr(config, method))} if hasattr(config, method) else {}
    return {"policy": _dump(config.policy), "sample": _dump(config.sample), **own}


def _snapshot(workspace: Workspace) -> dict[str, Any]:
    """The votes that are in the database now, as one hash: more votes make another artifact."""
    store = VoteStore(workspace.database_url)
    ids = [vote.id for vote in store.votes(current=True) if not vote.simulated]
    if not ids:
        raise DataError(
            "no votes in feedback.db", where=str(workspace.root), mend=f"accord import {workspace.root} FILE"
        )
    return {"votes": len(ids), "snapshot": compute_content_id(ids)}


def _prompts(workspace: Workspace, config: Config) -> dict[str, Any]:
    """Settings of the prompts stage, with the hash of each file that it reads."""
    section = {"prompts": _dump(config.prompts)}
    for name in ("train", "evaluation"):
        source = getattr(config.prompts, name)
        if source in ("starter", "votes", "split"):
            continue
        path = preparing.find_prompt_file(workspace, source)
        section[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return section
