"""Several score sources as one reward: a weighted sum, constraints with Lagrange multipliers, or the worst of them.

Implements the mixture, which keeps what each source said, and the multipliers' steering once an update. Leaves out
normalisation: bring the sources to one scale before they are mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from accord.errors import ConfigError
from accord.functional import update_multiplier
from accord.rewards.sources import Scored, score_in_parts
from accord.types import RewardSource, Rollout


class Mixture:
    """weighted: sum_s w_s score_s + sum_c lambda_c (score_c - bound_c). worst: min_s w_s score_s, over all sources.

    A source stands in `weights`, in `bounds`, or in both. bounds: the mean over an update's rollout that a source must
    reach; its lambda_c starts at `start`, and `steer` moves it by `functional.update_multiplier` with `rate`. A
    `RewardSource` itself; `score` returns the parts as well: each source's own score under its name, and below
    `NAME.PART` what it is made of.

    Raises: ConfigError where there is no source, where names do not fit, or for bounds beside "worst".
    """

    takes_trunk = True

    def __init__(
        self,
        sources: Mapping[str, RewardSource],
        weights: Mapping[str, float],
        bounds: Mapping[str, float] | None = None,
        *,
        combine: Literal["weighted", "worst"] = "weighted",
        start: float = 0.0,
        rate: float = 0.1,
    ) -> None:
        bounds = bounds or {}
        if not sources or set(sources) != set(weights) | set(bounds):
            raise ConfigError(
                f"sources {sorted(sources)}, weights {sorted(weights)} and bounds {sorted(bounds)}",
                where="Mixture",
                mend="give each of at least one source one weight, or a bound",
            )
        if combine == "worst" and bounds:
            raise ConfigError("the worst of sources knows no bounds", where="Mixture", mend="give weights alone")
        self.sources = dict(sources)
        self.weights = dict(weights)
        self.bounds = dict(bounds)
        self.combine = combine
        self.rate = rate
        self.multipliers = dict.fromkeys(bounds, start)

    def score(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Scored:
        """The mixed scores and their parts, moved to the first source's device; `trunk` is for those that take it."""
        parts: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            scored = score_in_parts(source, rollout, trunk)
            parts[name] = scored.total.float()
            parts |= {f"{name}.{part}": value.float() for part, value in scored.parts.items()}
        device = next(iter(parts.values())).device
        parts = {name: part.to(device) for name, part in parts.items()}
        weighted = [weight * parts[name] for name, weight in self.weights.items()]
        if self.combine == "worst":
            return Scored(torch.stack(weighted).amin(dim=0), parts)
        held = [self.multipliers[name] * (parts[name] - bound) for name, bound in self.bounds.items()]
        return Scored(torch.stack([*weighted, *held]).sum(dim=0), parts)

    def __call__(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, " B"]:
        """The mixed scores alone."""
        return self.score(rollout, trunk).total

    def steer(self, parts: Mapping[str, float]) -> None:
        """Move each multiplier by how far its source's mean over the rollout is from the bound."""
        for name, bound in self.bounds.items():
            self.multipliers[name] = update_multiplier(self.multipliers[name], parts[name], bound, self.rate)

    def state(self) -> dict[str, float]:
        """The multipliers by source."""
        return dict(self.multipliers)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on with these multipliers."""
        self.multipliers = {name: float(state[name]) for name in self.bounds}
