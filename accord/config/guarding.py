"""The sections of accord.toml that keep a loop honest: rounds, alarm, tournament, guard. See `schema.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from accord.config.section import Section


class RoundsSection(Section):
    """How one round follows another; `project.rounds` says how many at most: docs/rounds.md."""

    reference: Literal["base", "previous", "ema"] = Field(
        "base",
        description="The anchor that KL is measured from: the base model, the policy promoted last, or a moving "
        "average of the promoted ones. Round 1 has the base.",
    )
    ema_decay: float = Field(0.5, ge=0, lt=1, description="Weight of the older anchor where reference = `ema`.")
    earlier_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="From round 2 on: share of the prompts on which a sample of an earlier policy stands beside one of "
        "the promoted policy; what people say of these pairs is its win rate.",
    )
    anchor_pairs: int = Field(
        0,
        ge=0,
        description="Pairs of round 1 that are voted on again in every later round, so that a drift of the annotators "
        "shows apart from progress. They are never fitted on.",
    )
    stop_without_promotion: int = Field(
        0, ge=0, description="End after so many rounds in a row whose policy was not promoted; 0: go on."
    )
    max_votes: int = Field(0, ge=0, description="Begin no round once so many votes were cast; 0: no limit.")


class AlarmSection(Section):
    """When a run that games its reward is stopped, at a held-out evaluation: docs/alarm.md."""

    enabled: bool = Field(True, description="Without it the best checkpoint is still chosen by the held-out judge.")
    false_alarm_rate: float = Field(
        0.05, gt=0, lt=0.5, description="Chance that a whole run rings falsely by the tests against the judge."
    )
    votes: int = Field(
        0,
        ge=0,
        description="Cast at each look after the start, one a pair, on its answers beside those of the best look so "
        "far: they ring where they prefer that one, and decide which is best; 0: none, the judge decides.",
    )
    confirmed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least share of the proxy's claim that the judge must confirm; 0: it must not fall.",
    )
    disagreement_ratio: float = Field(
        2.0, ge=1, description="Disagreement of a reward ensemble, against the start's, that is too much."
    )
    kl_budgets: float = Field(2.0, gt=0, description="KL, in units of `policy.max_kl_nats`, that ends a run.")
    repetition_rise: float = Field(0.3, gt=0, le=1, description="Rise of repetition within an answer that is too much.")
    phrase_share: float = Field(0.5, gt=0, le=1, description="Share of answers with one 5-word phrase: too much.")
    word_share: float = Field(0.9, gt=0, le=1, description="Share of answers with one once rare word: too much.")
    length_ratio: float = Field(2.5, gt=1, description="Growth of the mean length, or shrinking, that is too much.")
    vocabulary_share: float = Field(
        0.5, gt=0, le=1, description="Distinct word pairs, as a share of the start's, that are too few."
    )
    script_loss: float = Field(
        0.3, gt=0, le=1, description="Loss of share, by the start's main script, that is too much."
    )
    disputed: int = Field(
        16, ge=0, description="Answers where proxy and judge part most, asked first in the next round after an alarm."
    )


class TournamentSection(Section):
    """Annotators choose which checkpoint of a run is kept, and not the held-out judge: docs/tournament.md."""

    votes: int = Field(
        0,
        ge=0,
        description="Cast in every round, one a pair, on answers of the checkpoints that no alarm spoke of; 0: the "
        "held-out judge's best is kept.",
    )


class GuardedRewardSection(Section):
    """One more reward that a new policy must not lose."""

    name: str = Field(description="A text reward by name (docs/rewards.md), or `even_handed`.")
    margin: float = Field(0.05, ge=0, description="Worsening of its mean that is borne, in the reward's own unit.")


class GuardSection(Section):
    """What a new policy may lose at most to be promoted; the whole 95 % interval must lie within: docs/gate.md."""

    toxicity: float = Field(0.02, ge=0, description="Rise of the mean of `evaluation.toxicity`.")
    refusal: float = Field(0.05, ge=0, description="Rise of the share of answers that refuse.")
    length: float = Field(0.5, ge=0, description="Growth of the mean length, as a share of what it was.")
    rewards: tuple[GuardedRewardSection, ...] = Field((), description="`[[guard.rewards]]` tables; none: no more.")
