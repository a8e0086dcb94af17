"""The stages of the loop, in order, with the key of each artifact: the only place that knows them all.

Implements the graph: which artifacts shape which stage, and what one round leaves to the next. Leaves out the settings
of a stage (`sections`), what it does (`work`), how long it may take (`estimate`) and running it (`runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accord.config import Config
from accord.loop import (
    anchoring,
    asking,
    choosing,
    fitting,
    gating,
    improving,
    preparing,
    sampling,
    sections,
    selecting,
    serving,
)
from accord.loop.context import RunContext, resolve_model
from accord.loop.sections import dump
from accord.models.size import compute_source_id
from accord.rewards.personal import COMMON
from accord.types import derive_seed
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
    graph = _Graph(workspace, config)
    for number in range(1, config.project.rounds + 1):
        graph.add_round(number)
    return graph.stages


class _Graph:
    """The stages so far, and the addresses ("KIND/KEY") that one round leaves to the next.

    champion: the gate of the round before, which names the policy that was promoted last. policies: each round's
    candidate, promoted or not. trained: the last run of a policy, which knows what its alarm disputed. voted: every
    stage with votes so far. judged: the last round's reward models and preferences.
    """

    def __init__(self, workspace: Workspace, config: Config) -> None:
        self.workspace, self.config = workspace, config
        self.stages: list[Stage] = []
        self.model = {
            "model": sections.describe_model(config),
            "source": compute_source_id(resolve_model(workspace, config)),
        }
        self.reference = self.add("doctor", 1, preparing.examine_model, self.model, {})
        self.prompts = self.champion = self.anchor = self.trained = ""
        self.policies: list[str] = []
        self.voted: dict[str, str] = {}
        self.judged: dict[str, str] = {}

    def add(self, kind: str, number: int, work: Work, section: Mapping[str, Any], parents: Mapping[str, str]) -> str:
        """Append one stage; returns its address."""
        seed = derive_seed(self.config.project.seed, kind, number)
        self.stages.append(Stage(kind, number, VERSIONS[kind], section, parents, seed, work))
        return self.stages[-1].address

    def add_round(self, number: int) -> None:
        """One time round the loop."""
        config = self.config
        self._add_votes(number)
        feedback = config.feedback
        consensus = {"consensus": feedback.consensus, "heldout_annotators": feedback.heldout_annotators}
        preferences = self.add("preferences", number, preparing.reach_consensus, consensus, self.voted)
        if config.sft.epochs and number == 1:
            grounds = {"prompts": self.prompts, "preferences": preferences, "reference": self.reference}
            settings = {"sft": dump(config.sft), **self.model}
            self.reference = self.add("sft", number, improving.fine_tune, settings, grounds)
        grounds = {"prompts": self.prompts, "preferences": preferences, "reference": self.reference}
        fit = sections.describe_fit(config)
        proxy = self.add("reward_model", number, fitting.fit_proxy, fit, grounds)
        heldout = self.add("heldout_reward_model", number, fitting.fit_heldout, fit, grounds)
        self.judged = {"proxy": proxy, "heldout": heldout, "preferences": preferences}
        judges = {"prompts": self.prompts, "proxy": proxy, "heldout": heldout, "reference": self.reference}
        self._add_policy(number, judges | self._add_people(number, grounds, proxy, heldout))

    def _add_people(self, number: int, grounds: Mapping[str, str], proxy: str, heldout: str) -> dict[str, str]:
        """Where people differ, on top of both reward models, if asked for; returns what a policy that serves needs."""
        reward, section = self.config.reward, sections.describe_people(self.config)
        if not reward.people and reward.serve == COMMON:
            return {}
        known = {
            "proxy_people": self.add("people", number, serving.fit_proxy_people, section, {**grounds, "proxy": proxy}),
            "heldout_people": self.add(
                "heldout_people", number, serving.fit_heldout_people, section, {**grounds, "heldout": heldout}
            ),
        }
        self.judged["people"] = known["proxy_people"]
        return {} if reward.serve == COMMON else known

    def _add_votes(self, number: int) -> None:
        """The stages up to the votes of a round. Prompts are chosen once, so that none changes sides later on.

        Votes that are there already come first and may name the prompts; annotators, simulated or not, who judge the
        round's own samples need prompts and samples before they vote.
        """
        config = self.config
        before = {"reference": self.reference}
        if config.feedback.source == "votes" and number == 1:
            snapshot = sections.describe_votes(self.workspace, config)
            self.voted = {"votes": self.add("votes", number, preparing.collect_votes, snapshot, {})}
            before |= self.voted
        if number == 1:
            chosen = sections.describe_prompts(self.workspace, config)
            self.prompts = self.add("prompts", number, preparing.choose_prompts, chosen, before)
        if config.feedback.source == "votes":
            return
        shown = {"samples": self._add_samples(number)}
        if config.selection.pairs:
            section, known = selecting.describe_choice(config, self.voted, self.judged)
            known = {**shown, "reference": self.reference, **known}
            shown["selection"] = self.add("selection", number, selecting.choose_pairs, section, known)
        section = sections.describe_asking(self.workspace, config)
        if number > 1:
            shown["disputed"] = self.trained
            if config.rounds.anchor_pairs:
                section["anchor_pairs"] = config.rounds.anchor_pairs
                shown["first_votes"] = self.voted["votes_1"]
        work = asking.ask_people if config.feedback.source == "people" else preparing.simulate_annotators
        self.voted = {**self.voted, f"votes_{number}": self.add("votes", number, work, section, shown)}

    def _add_samples(self, number: int) -> str:
        parents = {"prompts": self.prompts, "reference": self.reference}
        section: dict[str, Any] = {"sample": dump(self.config.sample)}
        if number > 1:
            parents["policy"] = self.champion
            section["earlier_share"] = self.config.rounds.earlier_share
            parents |= {f"policy_{i}": address for i, address in enumerate(self.policies, 1)}
        return self.add("samples", number, sampling.sample_completions, section, parents)

    def _add_policy(self, number: int, judges: Mapping[str, str]) -> None:
        """Policy, the choice among its looks, evaluation and gate of a round.

        The policy starts from the champion and stays near the anchor.
        """
        start = {"start": self.champion} if self.champion else {}
        anchored = {"anchor": self._add_anchor(number)} if number > 1 else {}
        anchored = {name: address for name, address in anchored.items() if address}
        settings = sections.describe_policy(self.workspace, self.config)
        policy = self.add("policy", number, improving.improve_policy, settings, {**judges, **start, **anchored})
        self.trained = policy
        if self.config.alarm.votes:
            self.voted = {**self.voted, f"votes_{number}_looks": policy}
        if self.config.tournament.votes:
            policy = self._add_tournament(number, policy)
        shown = sections.describe_evaluation(self.config)
        evaluation = self.add("evaluation", number, improving.evaluate, shown, {**judges, "policy": policy})
        champion = {"champion": self.champion} if self.champion else {}
        measured = {**judges, "policy": policy, "evaluation": evaluation, **champion}
        self.champion = self.add("gate", number, gating.pass_gate, sections.describe_gate(self.config), measured)
        self.policies.append(policy)

    def _add_tournament(self, number: int, policy: str) -> str:
        """Annotators choose among the looks of `policy`; what they say is fitted on from the next round on."""
        section = sections.describe_tournament(self.workspace, self.config)
        grounds = {"prompts": self.prompts, "reference": self.reference, "policy": policy}
        chosen = self.add("tournament", number, choosing.choose_look, section, grounds)
        self.voted = {**self.voted, f"votes_{number}_tournament": chosen}
        return chosen

    def _add_anchor(self, number: int) -> str:
        """What KL is measured from after round 1: "" for the base, the promoted policy, or the moving average."""
        rounds = self.config.rounds
        if rounds.reference == "base":
            return ""
        if rounds.reference == "previous":
            return self.champion
        older = {"older": self.anchor} if self.anchor else {}
        parents = {"promoted": self.champion, "reference": self.reference, **older}
        section = {"ema_decay": rounds.ema_decay, "adapter": self.config.model.adapter}
        self.anchor = self.add("anchor", number, anchoring.move_anchor, section, parents)
        return self.anchor


VERSIONS = {
    "doctor": 1,
    "prompts": 1,
    "samples": 1,
    "selection": 1,
    "votes": 1,
    "preferences": 1,
    "sft": 1,
    "reward_model": 2,
    "heldout_reward_model": 2,
    "people": 2,
    "heldout_people": 2,
    "policy": 4,
    "tournament": 1,
    "evaluation": 1,
    "gate": 2,
    "anchor": 1,
}
"""Raised when a stage's code would make another artifact from the same inputs; part of every key."""
