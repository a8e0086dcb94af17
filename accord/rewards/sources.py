"""From text rewards to score sources: how a function of one prompt and completion scores a whole rollout.

Implements the lift `as_source`. Leaves out the dictionary of names, which lives in `accord.rewards`.
"""

from __future__ import annotations

import torch

from accord.types import RewardSource, Rollout, TextReward


def as_source(text_reward: TextReward) -> RewardSource:
    """A `RewardSource` that scores each of a rollout's B decoded completions: Rollout -> (B,) float32 on the CPU."""

    def score(rollout: Rollout) -> torch.Tensor:
        pairs = zip(rollout.prompts, rollout.completions, strict=True)
        return torch.tensor([text_reward(p, c) for p, c in pairs], dtype=torch.float32)

    return score
