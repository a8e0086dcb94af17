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
from accord.loop import asking, fitting, improving, preparing, selecting
from accord.loop.context import RunContext, resolve_model
from accord.models.size import compute_source_id
from accord.types import compute_content_id, derive_seed
from accord.workspace import Draft, Workspace, compute_key

Work = Callable[[RunContext, "Stage", Draft], None]
Add = Callable[[str, int, Work, Mapping[str, Any], Mapping[str, str]], str]


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

    model = {"model": _dump(config.model), "source": compute_source_id(resolve_model(workspace, config))}
    doctor = add("doctor", 1, preparing.examine_model, model, {})
    reference, policy = doctor, ""
    voted: dict[str, str] = {}
    judged: dict[str, str] = {}
    for number in range(1, config.project.rounds + 1):
        prompts, voted = _add_votes(add, workspace, config, number, reference, policy, voted, judged)
        preferences = add(
            "preferences", number, preparing.reach_consensus, {"consensus": config.feedback.consensus}, voted
        )
        grounds = {"prompts": prompts, "preferences": preferences, "reference": reference}
        if config.sft.epochs and number == 1:
            reference = add("sft", number, improving.fine_tune, {"sft": _dump(config.sft), **model}, grounds)
            grounds = {**grounds, "reference": reference}
        fit = {
            "reward_model": _dump(config.reward_model),
            "sample": _dump(config.sample),
            "heldout_fraction": config.feedback.heldout_fraction,
        }
        proxy = add("reward_model", number, fitting.fit_proxy, fit, grounds)
        heldout = add("heldout_reward_model", number, fitting.fit_heldout, fit, grounds)
        judged = {"proxy": proxy, "heldout": heldout, "preferences": preferences}
        judges = {"prompts": prompts, "proxy": proxy, "heldout": heldout, "reference": reference}
        start = {"start": policy} if policy else {}
        policy = add("policy", number, improving.improve_policy, _policy_section(config), {**judges, **start})
        shown: dict[str, Any] = {"evaluation": _dump(config.evaluation), "sample": _dump(config.sample)}
        if config.feedback.source == "simulated":
            shown["gold"] = config.simulation.utility
        add("evaluation", number, improving.evaluate, shown, {**judges, "policy": policy})
    return stages


def _add_votes(
    add: Add,
    workspace: Workspace,
    config: Config,
    number: int,
    reference: str,
    policy: str,
    voted: dict[str, str],
    judged: dict[str, str],
) -> tuple[str, dict[str, str]]:
    """The stages up to the votes of one round; returns the prompts' address and all votes so far.

    Votes that are there already come first and may name the prompts; annotators, simulated or not, who judge the
    round's own samples need prompts and samples before they vote. `judged`: reward models and preferences of the round
    before, which may choose the pairs.
    """
    chosen = _prompts(workspace, config)
    if config.feedback.source == "votes":
        voted = {"votes": add("votes", number, preparing.collect_votes, _snapshot(workspace, config), {})}
        return add("prompts", number, preparing.choose_prompts, chosen, {"reference": reference, **voted}), voted
    prompts = add("prompts", number, preparing.choose_prompts, chosen, {"reference": reference})
    author = {"policy": policy} if policy else {}
    parents = {"prompts": prompts, "reference": reference, **author}
    samples = add("samples", number, preparing.sample_completions, {"sample": _dump(config.sample)}, parents)
    shown = {"samples": samples}
    if config.selection.pairs:
        section, known = selecting.describe_choice(config, voted, judged)
        known = {**shown, "reference": reference, **known}
        shown["selection"] = add("selection", number, selecting.choose_pairs, section, known)
    if config.feedback.source == "people":
        votes = add("votes", number, asking.ask_people, {"label": asking.describe_asking(workspace, config)}, shown)
        return prompts, {**voted, f"votes_{number}": votes}
    simulation = {"simulation": _dump(config.simulation)}
    votes = add("votes", number, preparing.simulate_annotators, simulation, shown)
    return prompts, {**voted, f"votes_{number}": votes}


VERSIONS = {
    "doctor": 1,
    "prompts": 1,
    "samples": 1,
    "selection": 1,
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


def _snapshot(workspace: Workspace, config: Config) -> dict[str, Any]:
    """The votes that are in the database now, as one hash: more votes make another artifact."""
    store = VoteStore(workspace.locate_votes(config.project.database))
    ids = [vote.id for vote in store.votes(current=True) if not vote.simulated]
    if not ids:
        raise DataError(
            "no votes in feedback.db", where=str(workspace.root), mend=f"accord import {workspace.root} FILE"
        )
    return {"votes": len(ids), "snapshot": compute_content_id(ids)}


def _prompts(workspace: Workspace, config: Config) -> dict[str, Any]:
    """Settings of the prompts stage, with the hash of each file that it reads."""
    section: dict[str, Any] = {"prompts": _dump(config.prompts)}
    for name in ("train", "evaluation"):
        source = getattr(config.prompts, name)
        if source in ("starter", "votes", "split"):
            continue
        path = preparing.find_prompt_file(workspace, source)
        section[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return section
