"""A weighted sum of score sources that keeps what each of them said.

Implements the sum with fixed weights. Leaves out normalisation: bring the sources to one scale before they are mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from accord.errors import ConfigError
from accord.types import RewardSource, Rollout


class MixtureScores(NamedTuple):
    """`total` (B,) float32, and each source's own scores, unweighted, by name."""

    total: Float[Tensor, " B"]
    parts: dict[str, Float[Tensor, " B"]]


class Mixture:
    """score = sum over sources s of weight_s * score_s. A `RewardSource` itself; `score` returns the parts as well.

    Raises: ConfigError where there is no source, or where weights and sources have different names.
    """

    def __init__(self, sources: Mapping[str, RewardSource], weights: Mapping[str, float]) -> None:
        if not sources or set(sources) != set(weights):
            raise ConfigError(
                f"sources {sorted(sources)} and weights {sorted(weights)}",
                where="Mixture",
                mend="give each of at least one source one weight",
            )
        self.sources = dict(sources)
        self.weights = dict(weights)

    def score(self, rollout: Rollout) -> MixtureScores:
        """The weighted sum and its parts; the parts are moved to the first source's device."""
        parts = {name: source(rollout).float() for name, source in self.sources.items()}
        device = next(iter(parts.values())).device
        parts = {name: part.to(device) for name, part in parts.items()}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(dim=0)
        return MixtureScores(total, parts)

    def __call__(self, rollout: Rollout) -> Float[Tensor, " B"]:
        """The weighted sum alone."""
        return self.score(rollout).total
