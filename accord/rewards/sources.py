"""Score sources: how a text reward scores a whole rollout, and how a source says more than one number.

Implements the lift `as_source`; `Scored`, scores together with the parts they are made of; and reading any source in
parts. A source that is made of others (a mixture, an ensemble) has a method `score` beside its call. One that steers
itself by what it saw (Lagrange multipliers) has `steer`, `state` and `load_state`. Leaves out the dictionary of names,
which lives in `accord.rewards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from accord.types import RewardSource, Rollout, TextReward


class Scored(NamedTuple):
    """`total` (B,) float32, and by name the (B,) numbers behind it: each source's own score, disagreement."""

    total: Float[Tensor, " B"]
    parts: dict[str, Float[Tensor, " B"]]


@runtime_checkable
class PartedSource(Protocol):
    """A source that can say what its scores are made of."""

    def score(self, rollout: Rollout) -> Scored:
        """Scores and parts; `total` is what calling the source gives."""
        ...


@runtime_checkable
class SteeredSource(Protocol):
    """A source that changes with what it scored, once an update; its state belongs in a checkpoint."""

    def steer(self, parts: Mapping[str, float]) -> None:
        """Move by the means of the parts over the update's rollout."""
        ...

    def state(self) -> dict[str, float]:
        """What has moved so far, as plain numbers."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from `state`."""
        ...


def score_in_parts(source: RewardSource, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Scored:
    """The scores of any source, with their parts where it has some.

    `trunk`: the frozen layers' output for this rollout. Sources whose `takes_trunk` is true are given it: they need not
    run those layers again.
    """
    given = (trunk,) if trunk is not None and getattr(source, "takes_trunk", False) else ()
    return source.score(rollout, *given) if isinstance(source, PartedSource) else Scored(source(rollout, *given), {})


def steer_source(source: RewardSource, parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Let a steered source move by the parts' means over one rollout; returns its state after that ({} for others)."""
    if not isinstance(source, SteeredSource):
        return {}
    source.steer({name: float(part.mean()) for name, part in parts.items()})
    return source.state()


def resume_source(source: RewardSource, state: Mapping[str, float]) -> None:
    """Let a steered source go on from its state in a checkpoint; nothing for others, or where there is no state."""
    if isinstance(source, SteeredSource) and state:
        source.load_state(state)


def name_parts(parts: Mapping[str, Tensor], state: Mapping[str, float]) -> dict[str, float]:
    """The row of metrics: `source_NAME`, the mean of each part, and `multiplier_NAME`, what steered this rollout."""
    means = {f"source_{name}": float(part.mean()) for name, part in parts.items()}
    return means | {f"multiplier_{name}": value for name, value in state.items()}


def as_source(text_reward: TextReward) -> RewardSource:
    """A `RewardSource` that scores each of a rollout's B decoded completions: Rollout -> (B,) float32 on the CPU."""

    def score(rollout: Rollout) -> torch.Tensor:
        pairs = zip(rollout.prompts, rollout.completions, strict=True)
        return torch.tensor([text_reward(p, c) for p, c in pairs], dtype=torch.float32)

    return score
