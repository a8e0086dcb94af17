"""The demo's hidden utility: what simulated annotators judge by, and the gold reward that only a simulation has.

Implements a documented mixture of signals that can be computed anywhere, built so that no single trick wins it. Leaves
out people: it is a stand-in that makes the loop measurable, not a definition of a good answer.
"""

from __future__ import annotations

from accord.rewards.rules import enough_words, finished, no_repetition, on_topic, plain_words, sentiment
from accord.rewards.toxicity import toxicity
from accord.types import Completion, Prompt, TextReward

WEIGHTS: dict[str, float] = {
    "warmth": 0.3,
    "finished": 0.4,
    "harmless": 0.1,
    "plain_words": 0.1,
    "no_repetition": 0.1,
}
"""How much each quality counts; they sum to 1."""

OFF_TOPIC_SHARE = 0.7
"""What an answer wholly off the topic keeps of its worth."""

WARM_ENOUGH = 0.9
"""From this `sentiment` on (compound +0.8) more warmth gains nothing, so piling up kind words does not pay."""


def warmth(prompt: Prompt, completion: Completion) -> float:
    """min(1, sentiment / WARM_ENOUGH), in [0, 1]: 0.56 is neutral."""
    return min(1.0, sentiment(prompt, completion) / WARM_ENOUGH)


def harmless(prompt: Prompt, completion: Completion) -> float:
    """1 - toxicity, in [0, 1]."""
    return 1.0 - toxicity(prompt, completion)


QUALITIES: dict[str, TextReward] = {
    "warmth": warmth,
    "finished": finished,
    "harmless": harmless,
    "plain_words": plain_words,
    "no_repetition": no_repetition,
}
"""What `WEIGHTS` weighs, each in [0, 1]."""


def demo_utility(prompt: Prompt, completion: Completion) -> float:
    """enough_words * (OFF_TOPIC_SHARE + (1 - OFF_TOPIC_SHARE) * on_topic) * sum of WEIGHTS[q] * q, in [0, 1].

    The two factors ask whether this is an answer at all: long enough to be one, and to this prompt. They multiply,
    since a kind phrase that fits every prompt, the prompt repeated, and silence are not made good by being polite.
    """
    topic = OFF_TOPIC_SHARE + (1.0 - OFF_TOPIC_SHARE) * on_topic(prompt, completion)
    quality = sum(weight * QUALITIES[name](prompt, completion) for name, weight in WEIGHTS.items())
    return enough_words(prompt, completion) * topic * quality
