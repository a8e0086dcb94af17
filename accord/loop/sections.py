"""Which settings shape which stage: the part of a key that comes from accord.toml and from what lies in the project.

Implements one function a stage whose settings are more than one table. Leaves out the order of stages (`graph`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from accord.config import Config
from accord.errors import DataError
from accord.feedback.store import VoteStore
from accord.loop import asking, preparing
from accord.rewards.personal import COMMON
from accord.types import compute_content_id
from accord.workspace import Workspace


def dump(section: Any) -> dict[str, Any]:
    """A section of accord.toml as plain values."""
    result: dict[str, Any] = section.model_dump(mode="json")
    return result


def describe_model(config: Config) -> dict[str, Any]:
    """The base and how what stands on it learns."""
    section = dump(config.model)
    if config.model.optimizer == "adamw":
        del section["optimizer"]  # what was made before there was a choice stays as it is
    return section


def describe_policy(workspace: Workspace, config: Config) -> dict[str, Any]:
    """The settings of the chosen method only, so that another method's knobs do not spoil a finished policy."""
    method = config.policy.method
    own = {method: dump(getattr(config, method))} if hasattr(config, method) else {}
    section: dict[str, Any] = {
        "policy": dump(config.policy),
        "sample": dump(config.sample),
        "alarm": dump(config.alarm),
        **own,
    }
    if config.alarm.votes:
        section |= describe_voters(workspace, config)
    else:
        del section["alarm"]["votes"]  # what was made before annotators could be asked stays as it is
    mixed = {name: value for name, value in dump(config.reward).items() if name not in ("people", "serve")}
    section["reward"] = mixed | describe_served(config)
    if config.tournament.votes:
        section["keep_looks"] = True
    return section | describe_gold(config)


def describe_served(config: Config) -> dict[str, Any]:
    """Whose reward judges, where it is not everybody's."""
    return {} if config.reward.serve == COMMON else {"serve": config.reward.serve}


def describe_gold(config: Config) -> dict[str, Any]:
    """The hidden utility, where annotators are simulated: it is recorded beside what is measured."""
    return {"gold": config.simulation.utility} if config.feedback.source == "simulated" else {}


def describe_evaluation(config: Config) -> dict[str, Any]:
    """How policies are compared."""
    shown = {"evaluation": dump(config.evaluation), "sample": dump(config.sample)}
    return shown | describe_served(config) | describe_gold(config)


def describe_tournament(workspace: Workspace, config: Config) -> dict[str, Any]:
    """How annotators choose among the looks of a run: how many votes, and how those are cast."""
    voters = describe_voters(workspace, config)
    return {"tournament": dump(config.tournament), "sample": dump(config.sample), **voters}


def describe_voters(workspace: Workspace, config: Config) -> dict[str, Any]:
    """Who votes on looks: simulated annotators by their settings; people are asked for one vote a pair, whatever is."""
    return {} if config.feedback.source == "people" else describe_asking(workspace, config)


def describe_gate(config: Config) -> dict[str, Any]:
    """What a policy must not lose."""
    return {"guard": dump(config.guard), **describe_evaluation(config)}


def describe_asking(workspace: Workspace, config: Config) -> dict[str, Any]:
    """Who votes, and how they are asked."""
    if config.feedback.source == "people":
        return {"label": asking.describe_asking(workspace, config)}
    return {"simulation": dump(config.simulation)}


def describe_fit(config: Config) -> dict[str, Any]:
    """How reward models are fitted."""
    return {
        "reward_model": dump(config.reward_model),
        "sample": dump(config.sample),
        "heldout_fraction": config.feedback.heldout_fraction,
    }


def describe_people(config: Config) -> dict[str, Any]:
    """How votes are parted, as `describe_fit`: what a reward model was not fitted on, its people are tested on."""
    return {
        "fractions": [config.reward_model.test_fraction, config.reward_model.validation_fraction],
        "heldout_fraction": config.feedback.heldout_fraction,
        "combine": config.reward_model.combine,
    }


def describe_votes(workspace: Workspace, config: Config) -> dict[str, Any]:
    """The votes that are in the database now, as one hash: more votes make another artifact."""
    store = VoteStore(workspace.locate_votes(config.project.database))
    ids = [vote.id for vote in store.votes(current=True) if not vote.simulated]
    if not ids:
        raise DataError(
            "no votes in feedback.db", where=str(workspace.root), mend=f"accord import {workspace.root} FILE"
        )
    return {"votes": len(ids), "snapshot": compute_content_id(ids)}


def describe_prompts(workspace: Workspace, config: Config) -> dict[str, Any]:
    """Settings of the prompts stage, with the hash of each file that it reads."""
    section: dict[str, Any] = {"prompts": dump(config.prompts)}
    if not config.prompts.probes:
        del section["prompts"]["probes"]  # what was chosen before there were any stays as it is
    for name in ("train", "evaluation"):
        source = getattr(config.prompts, name)
        if source in ("starter", "votes", "split"):
            continue
        path = preparing.find_prompt_file(workspace, source)
        section[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return section
