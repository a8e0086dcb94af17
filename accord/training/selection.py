"""The best checkpoint, and the watch over a run: looks at a policy in training, and which of them is kept.

Implements looks on validation prompts with fixed seeds, so that two policies are compared on the same draws; held-out
score within a KL budget; and asking, after each look, whether an alarm rings and what annotators say. Leaves out both
answers (`accord/evaluation` and `accord/loop`, through `looks.Watch`), and the final evaluation, which uses prompts
that chose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from accord.config.schema import SampleSection
from accord.functional import compute_sequence_kl
from accord.looks import Alarm, Judgement, Look, Watch
from accord.models import Base
from accord.rewards import EnsembleReward, LearnedReward
from accord.training.checks import check_finite
from accord.training.experience import compute_trunk, read_rollout
from accord.training.job import MetricRow
from accord.types import Generator, Prompt, RewardSource, Rollout, derive_seed

EVALUATION_BATCH = 16
"""Sequences in a pass without gradients; changes memory and speed only."""


@dataclass(frozen=True)
class Judge:
    """Who looks and chooses: a reward source that training never sees, the prompts it is asked on, and the KL budget.

    No prompts: nobody chooses, and the last weights are kept. proxy is what training optimises; gold and disagreement
    are only recorded. watch: what is asked after every look; None: no alarm.
    """

    base: Base
    policy: str
    reference: str | None
    generator: Generator
    heldout: RewardSource
    proxy: RewardSource
    prompts: Sequence[Prompt]
    sample: SampleSection
    max_kl_nats: float
    seed: int
    gold: RewardSource | None = None
    disagreement: RewardSource | None = None
    watch: Watch | None = None

    def take_look(self, update: int, where: str) -> Look | None:
        """What the policy as it is now answers to the validation prompts, and all scores; None without prompts."""
        if not self.prompts:
            return None
        rollout = self.generator.generate(
            self.policy,
            self.prompts,
            seeds=[derive_seed(self.seed, "validation", i) for i in range(len(self.prompts))],
            max_new_tokens=self.sample.max_new_tokens,
            temperature=self.sample.temperature,
        )
        trunk = compute_trunk(self.base, rollout, EVALUATION_BATCH)
        logprobs, ref_logprobs = (
            read_rollout(
                self.base,
                role,
                rollout,
                temperature=self.sample.temperature,
                micro_batch_size=EVALUATION_BATCH,
                trunk=trunk,
            )[0]
            for role in (self.policy, self.reference)
        )
        mask = rollout.completion_mask
        kl = compute_sequence_kl(logprobs, ref_logprobs, mask)
        sources = {"heldout": self.heldout, "proxy": self.proxy, "gold": self.gold, "disagreement": self.disagreement}
        scores = {name: score_with_trunk(s, rollout, trunk) for name, s in sources.items() if s is not None}
        check_finite({"KL": kl, **{f"{name} score": values for name, values in scores.items()}}, where=where)
        return Look(
            update=update,
            prompts=tuple(self.prompts),
            completions=rollout.completions,
            token_ids=tuple(_list_different(ids[row]) for ids, row in zip(rollout.completion_ids, mask, strict=True)),
            length_tokens=_list_numbers(mask.sum(1)),
            kl_nats=_list_numbers(kl),
            **{name: _list_numbers(values) for name, values in scores.items()},
        )

    def observe(self, rollout: Rollout, trunk: Tensor | None) -> MetricRow:
        """Mean judge's score, gold and disagreement of a rollout of training: drawn beside its score, never used."""
        sources = {"heldout": self.heldout, "gold": self.gold, "disagreement": self.disagreement}
        return {
            f"rollout_{name}": float(score_with_trunk(source, rollout, trunk).mean())
            for name, source in sources.items()
            if source is not None and source is not self.proxy
        }


def score_with_trunk(source: RewardSource, rollout: Rollout, trunk: Tensor | None) -> Tensor:
    """(B,) scores; a learned reward is spared the frozen layers, whose output for this rollout is `trunk`."""
    return source(rollout, trunk) if isinstance(source, LearnedReward | EnsembleReward) else source(rollout)


def summarise_look(look: Look | None) -> MetricRow:
    """The means of a look, as a history holds them; nothing without one.

    heldout_score: the judge's mean score. heldout_kl_nats: mean over sequences of log pi - log pi_ref, which estimates
    KL(policy || reference) per sequence. heldout_length_tokens: mean length. validation_proxy, validation_gold,
    validation_disagreement: means of what else was recorded on the same answers.
    """
    if look is None:
        return {}
    columns = {
        "heldout_score": look.heldout,
        "heldout_kl_nats": look.kl_nats,
        "heldout_length_tokens": look.length_tokens,
        "validation_proxy": look.proxy,
        "validation_gold": look.gold,
        "validation_disagreement": look.disagreement,
    }
    return {name: sum(values) / len(values) for name, values in columns.items() if values is not None}


def _list_different(ids: Tensor) -> tuple[int, ...]:
    return tuple(sorted({int(token) for token in ids.tolist()}))


def _list_numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values.tolist())


@dataclass
class Best:
    """The best policy so far: the update it was seen after, its held-out score, and a copy of its weights."""

    update: int = 0
    score: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, row: Mapping[str, float | int], judge: Judge, better: bool | None = None) -> None:
        """Keep the policy as it is now if it has the highest held-out score of those within the KL budget.

        better: what annotators say of it, beside the best so far; where they were asked, that decides and not the
        score. The first one considered (before any update) is kept whatever its KL, so that there always is one.
        """
        if "heldout_score" not in row:
            return
        within = row["heldout_kl_nats"] <= judge.max_kl_nats
        if better is None:
            better = self.score is None or row["heldout_score"] > self.score
        if self.score is None or (within and better):
            self.update = int(row["update"])
            self.score = row["heldout_score"]
            self.weights = judge.base.state(judge.policy)

    def restore(self, base: Base, policy: str) -> None:
        """Give the policy the best weights back; nothing where nobody judged."""
        if self.weights:
            base.load_state(policy, self.weights)


@dataclass
class Record:
    """All looks of a run, the alarms that rang, and the best policy so far."""

    looks: list[Look] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    best: Best = field(default_factory=Best)

    def add(self, look: Look | None, judge: Judge) -> None:
        """Ask the watch about the run with this look, and keep the policy where it is the best and nothing rings."""
        if look is None:
            return
        self.looks.append(look)
        said = judge.watch(self.looks, self.best.update) if judge.watch else Judgement()
        self.alarms.extend(said.alarms)
        if not said.alarms:
            self.best.consider({"update": look.update, **summarise_look(look)}, judge, said.better)

    @property
    def stopped(self) -> str | None:
        """Why the run should end, in words; None where no alarm rings."""
        if not self.alarms:
            return None
        return f"the alarm rang at update {self.alarms[0].update}. " + " ".join(alarm.reason for alarm in self.alarms)
