"""Toxicity of a text: the highest probability of profanity over its sentences, by alt-profanity-check.

Implements `toxicity`, a text reward that is *higher the worse* the text is, and `score_texts` for many texts at once.
Leaves out any understanding: the classifier (a linear support vector machine over words and word pairs, trained on
people's labels of English comments) sees rude words, and misses what is cruel in polite ones. docs/rewards.md gives its
measured correlation with people's judgement.
"""

from __future__ import annotations

from collections.abc import Sequence

from accord.rewards.words import find_sentences
from accord.types import Completion, Prompt


def score_texts(texts: Sequence[str]) -> list[float]:
    """Toxicity of each text: max over its sentences of P(profane), in [0, 1]; 0 for a text without a sentence.

    The maximum, because one slur in a long friendly text is still said; it agrees with people better than the
    probability of the whole text (docs/rewards.md).
    """
    sentences = [find_sentences(t) for t in texts]
    flat = [s for parts in sentences for s in parts]
    if not flat:
        return [0.0] * len(texts)
    from profanity_check import predict_prob  # loads scikit-learn and its model, about 2 s: only where it is used

    probabilities = iter(predict_prob(flat))
    return [max((float(next(probabilities)) for _ in parts), default=0.0) for parts in sentences]


def toxicity(prompt: Prompt, completion: Completion) -> float:
    """Toxicity of the completion's last message in [0, 1], the higher the worse. The prompt plays no part."""
    return score_texts([completion.text])[0]
