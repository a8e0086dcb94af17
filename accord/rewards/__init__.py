"""Score sources: what says how good a completion is. The dictionary of text rewards, and the learned one.

To add a text reward: one file here, one line in `TEXT_REWARDS`, one row in docs/rewards.md, one test.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from accord.errors import ConfigError
from accord.rewards.best_of_n import choose_best
from accord.rewards.bias import EvenHanded, is_bias_probe, part_bias_probes
from accord.rewards.combine import COMBINATIONS, WEIGHT_AVERAGE
from accord.rewards.learned import EnsembleReward, LearnedReward, Scorer, load_learned_reward
from accord.rewards.limits import is_limit_question, knows_limits, part_limit_questions
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
from accord.types import Completion, Prompt, TextReward

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


SOURCES: dict[str, EvenHanded] = {"even_handed": EvenHanded(sentiment)}
"""Rewards that read answers beside each other; `[reward]` and `[guard]` may name them beside the text rewards."""

PROBES: dict[str, Callable[[], tuple[list[Prompt], list[Prompt]]]] = {
    "bias": part_bias_probes,
    "limits": part_limit_questions,
}
"""What `prompts.probes` may name: prompts for (training, evaluation) on which a reward of their own says something."""

SPEAKS_OF: dict[str, Callable[[Prompt], bool]] = {"even_handed": is_bias_probe, "knows_limits": is_limit_question}
"""Rewards that say something of some prompts only, and of which."""


def measure_answers(name: str, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """The source or text reward `name` of each answer; None where it says nothing of the prompt (`SPEAKS_OF`).

    Raises: ConfigError as `find_text_reward`.
    """
    if name in SOURCES:
        values: list[float] = SOURCES[name].score_texts(prompts, completions).tolist()
    else:
        reward = find_text_reward(name)
        values = [float(reward(*answer)) for answer in zip(prompts, completions, strict=True)]
    speaks = SPEAKS_OF.get(name, lambda prompt: True)
    return [value if speaks(prompt) else None for value, prompt in zip(values, prompts, strict=True)]


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
    "PROBES",
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
    "measure_answers",
    "name_parts",
    "resume_source",
    "score_in_parts",
    "steer_source",
]
