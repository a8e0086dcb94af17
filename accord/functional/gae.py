"""Generalised advantage estimation over padded completions.

Implements Schulman et al. 2016 for episodes that end with the last real token. Leaves out whitening (`masked_whiten`)
and bootstrapping from a cut episode: the score of a cut completion is settled before it gets here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.errors import DataError


class Advantages(NamedTuple):
    """What `compute_gae` returns: advantages A_t and value targets R_t = A_t + V_t, (B, C) each, 0 where masked."""

    advantages: Float[Tensor, "B C"]
    returns: Float[Tensor, "B C"]


@torch.no_grad()
def compute_gae(
    rewards: Float[Tensor, "B C"],
    values: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    gamma: float | int,
    gae_lambda: float | int,
) -> Advantages:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, with delta_t = r_t + gamma V_{t+1} - V_t.

    V after the last real token is 0. values[:, t] is V of the state before token t. Masked rewards and values are never
    read. With lambda = 1, A_t = discounted return - V_t; with lambda = 0, A_t = delta_t. The results are constants: no
    gradient flows through.

    rewards, values, mask (B, C), padded on the right -> both (B, C), in the units of the rewards, 0 where masked.
    Source: Schulman et al. 2016, "High-dimensional continuous control using GAE", equations 11, 12 and 16.

    Raises:
        DataError: the mask of a row is not one run of True from column 0 (a hole, or padding on the left).
    """
    holes = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)
    if bool(holes.any()):
        raise DataError(
            "a completion mask has a hole, or starts with padding",
            where=f"mask row {int(holes.nonzero()[0])}",
            mend="pad completions on the right: real tokens first, then False to the end",
        )
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)  # so V after the last real token is 0
    advantages = torch.empty_like(values)
    next_value = next_advantage = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return Advantages(advantages, advantages + values)
