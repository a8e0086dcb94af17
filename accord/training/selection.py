"""The best checkpoint: which of a run's policies is kept.

Implements held-out score within a KL budget, on validation prompts with fixed seeds, so that two policies are compared
on the same draws. Leaves out the final evaluation (`accord/evaluation`), which uses prompts that chose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from accord.config.schema import SampleSection
from accord.functional import compute_sequence_kl
from accord.models import Base
from accord.training.checks import check_finite
from accord.training.experience import compute_kl_terms, compute_trunk
from accord.training.job import MetricRow
from accord.types import Generator, Prompt, RewardSource, derive_seed

EVALUATION_BATCH = 16
"""Sequences in a pass without gradients; changes memory and speed only."""


@dataclass(frozen=True)
class Judge:
    """Who chooses: a reward source that training never sees, the prompts it is asked on, and the KL budget.

    No prompts: nobody chooses, and the last weights are kept.
    """

    base: Base
    policy: str
    reference: str | None
    generator: Generator
    reward: RewardSource
    prompts: Sequence[Prompt]
    sample: SampleSection
    max_kl_nats: float
    seed: int

    def evaluate(self, where: str) -> MetricRow:
        """Metrics of the policy as it is now; no metrics where there are no prompts.

        heldout_score: mean score. heldout_kl_nats: mean over sequences of log pi - log pi_ref, which estimates
        KL(policy || reference) per sequence. heldout_length_tokens: mean length.
        """
        if not self.prompts:
            return {}
        rollout = self.generator.generate(
            self.policy,
            self.prompts,
            seeds=[derive_seed(self.seed, "validation", i) for i in range(len(self.prompts))],
            max_new_tokens=self.sample.max_new_tokens,
            temperature=self.sample.temperature,
        )
        logprobs, _, ref_logprobs = compute_kl_terms(
            self.base,
            self.policy,
            rollout,
            reference=self.reference,
            temperature=self.sample.temperature,
            micro_batch_size=EVALUATION_BATCH,
            trunk=compute_trunk(self.base, rollout, EVALUATION_BATCH),
        )
        kl = compute_sequence_kl(logprobs, ref_logprobs, rollout.completion_mask)
        scores = self.reward(rollout)
        check_finite({"held-out score": scores, "KL": kl}, where=where)
        return {
            "heldout_score": float(scores.mean()),
            "heldout_kl_nats": float(kl.mean()),
            "heldout_length_tokens": float(rollout.completion_mask.sum(1).float().mean()),
        }


@dataclass
class Best:
    """The best policy so far: the update it was seen after, its held-out score, and a copy of its weights."""

    update: int = 0
    score: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, row: Mapping[str, float | int], judge: Judge) -> None:
        """Keep the policy as it is now if it has the highest held-out score of those within the KL budget.

        The first one considered (before any update) is kept whatever its KL, so that there always is one.
        """
        if "heldout_score" not in row:
            return
        within = row["heldout_kl_nats"] <= judge.max_kl_nats
        if self.score is None or (within and row["heldout_score"] > self.score):
            self.update = int(row["update"])
            self.score = row["heldout_score"]
            self.weights = judge.base.state(judge.policy)

    def restore(self, base: Base, policy: str) -> None:
        """Give the policy the best weights back; nothing where nobody judged."""
        if self.weights:
            base.load_state(policy, self.weights)
