"""Which prompts are held out: a split by prompt that depends on nothing but the prompt, a seed and a label.

Implements one function on prompt ids. Leaves out pairs: whoever splits pairs asks on which side their prompt lies, so
that no two pairs of one prompt part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from accord.errors import DataError


def split_by_prompt(ids: Iterable[str], fraction: float, seed: int, label: str) -> set[str]:
    """The `round(fraction * n)` of the n distinct prompt ids whose SHA-256 of `seed:label:id` sorts first.

    Order and repeats of `ids` do not matter. When prompts are added, those chosen before mostly stay chosen: one leaves
    only where a newcomer sorts before it. Different labels give independent splits.

    Raises DataError where `fraction` is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise DataError(f"a split cannot take {fraction} of the prompts", mend="give a fraction from 0 to 1")
    distinct = set(ids)
    ordered = sorted(distinct, key=lambda prompt_id: hashlib.sha256(f"{seed}:{label}:{prompt_id}".encode()).hexdigest())
    return set(ordered[: round(fraction * len(distinct))])
