"""Score sources: what says how good a completion is. The dictionary of text rewards, and the learned one.

To add a text reward: one file here, one line in `TEXT_REWARDS`, one row in docs/rewards.md, one test.
"""

from __future__ import annotations

import difflib

from accord.errors import ConfigError
from accord.rewards.best_of_n import choose_best
from accord.rewards.bias import EvenHanded
from accord.rewards.combine import COMBINATIONS, WEIGHT_AVERAGE
from accord.rewards.learned import EnsembleReward, LearnedReward, Scorer, load_learned_reward
from accord.rewards.limits import knows_limits
from accord.rewards.mixture import Mixture
from accord.rewards.refusal import refusal
from accord.rewards.rules import (
    brevity,
    build_pattern_reward,
    enough_words,
    finished,
    length_words,
    no_repetition,
    on_topic,
    plain_words,
    sentiment,
)
from accord.rewards.sources import Scored, as_source, name_parts, resume_source, score_in_parts, steer_source
from accord.rewards.toxicity import toxicity
from accord.rewards.utility import demo_utility, harmless, warmth
from accord.types import RewardSource, TextReward

TEXT_REWARDS: dict[str, TextReward] = {
    "brevity": brevity,
    "demo_utility": demo_utility,
    "enough_words": enough_words,
    "finished": finished,
    "harmless": harmless,
    "knows_limits": knows_limits,
    "length_words": length_words,
    "no_repetition": no_repetition,
    "on_topic": on_topic,
    "plain_words": plain_words,
    "refusal": refusal,
    "sentiment": sentiment,
    "toxicity": toxicity,
    "warmth": warmth,
}
"""What a setting may name. Higher is better, except for `toxicity` and `refusal`."""


SOURCES: dict[str, RewardSource] = {"even_handed": EvenHanded(sentiment)}
"""Rewards that need a whole rollout; `[[reward.sources]]` may name them beside the text rewards."""


def find_text_reward(name: str, *, where: str | None = None) -> TextReward:
    """The text reward of that name. `where`: the setting that named it, for the error.

    Raises: ConfigError, with the nearest valid name, where there is none.
    """
    if name in TEXT_REWARDS:
        return TEXT_REWARDS[name]
    near = difflib.get_close_matches(name, TEXT_REWARDS, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(TEXT_REWARDS)}"
    raise ConfigError(f"no text reward named {name!r}", where=where, mend=mend)


__all__ = [
    "COMBINATIONS",
    "SOURCES",
    "TEXT_REWARDS",
    "WEIGHT_AVERAGE",
    "EnsembleReward",
    "EvenHanded",
    "LearnedReward",
    "Mixture",
    "Scored",
    "Scorer",
    "as_source",
    "build_pattern_reward",
    "choose_best",
    "find_text_reward",
    "load_learned_reward",
    "name_parts",
    "resume_source",
    "score_in_parts",
    "steer_source",
]
