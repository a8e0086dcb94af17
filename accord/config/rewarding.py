"""`[reward]`: what a policy is optimised for, beside or instead of the one learned proxy.

Implements the schema and its cross-checks. Leaves out the mixture itself (`rewards.mixture`), and whether a source of
such a name exists, which is checked where sources are known.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from accord.config.section import Section

PROXY = "proxy"
"""The name under which `[[reward.sources]]` speaks of the reward model."""


class SourceSection(Section):
    """One source of the mixed reward: a weight, a bound that its mean must reach, or both."""

    name: str = Field(description="`proxy`, the reward model; a text reward by name (docs/rewards.md); `even_handed`.")
    weight: float = Field(1.0, description="What a point of it is worth; 0: it is only held to its bound, and drawn.")
    at_least: float | None = Field(
        None, description="The mean over each rollout that it must reach; a Lagrange multiplier sees to it."
    )


class RewardSection(Section):
    """Whom the policy serves, and the mixed reward. Without sources the proxy alone is optimised."""

    serve: str = Field(
        "common",
        description="Whose reward: `common`, the reward model of all votes; `average`, the mean over annotators, each "
        "counted once; `worst_off`, the least over them; or one annotator by name. Proxy and judge alike: "
        "docs/personal.md.",
    )
    people: bool = Field(
        False, description="Learn where annotators differ and tell it in the report, even where `serve` is `common`."
    )

    combine: Literal["weighted", "worst"] = Field(
        "weighted",
        description="`weighted`: the sum, with multipliers for bounds; `worst`: the least weight * score.",
    )
    multiplier_start: float = Field(0.0, ge=0, description="Of the bounds' multipliers, at the start.")
    multiplier_rate: float = Field(0.1, ge=0, description="How far an update moves a multiplier for a point amiss.")
    sources: tuple[SourceSection, ...] = Field((), description="`[[reward.sources]]` tables; none: the proxy alone.")

    @model_validator(mode="after")
    def _sources_fit(self) -> RewardSection:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two reward sources have the same name")
        if self.combine == "worst" and any(source.at_least is not None for source in self.sources):
            raise ValueError('combine = "worst" knows no bounds: leave out at_least')
        return self
