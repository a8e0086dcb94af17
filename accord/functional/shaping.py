"""Per-token rewards from one score a completion and the distance to the reference.

Implements the KL-shaped reward of Ziegler et al. 2019. Leaves out the score itself, its normalisation and the penalty
for a missing EOS: they are settled before.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional.kl import compute_k1
from accord.functional.masking import compute_last_index


def shape_rewards(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B C"],
    ref_logprobs: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    kl_coef: float | int,
) -> Float[Tensor, "B C"]:
    """r_t = -kl_coef (log pi_old(y_t) - log pi_ref(y_t)) + [t = T] score, T the last real token, not the first PAD.

    Summed over t it is score - kl_coef * k1 of the sequence: the objective E[score] - beta KL(pi || ref).

    scores (B,), the others (B, C) -> (B, C), in the units of the scores, 0 where masked. kl_coef: score units per nat.
    Source: Ziegler et al. 2019, "Fine-tuning language models from human preferences", equation 2.

    Raises:
        DataError: a completion has no real token.
    """
    rewards = torch.where(mask, -kl_coef * compute_k1(logprobs, ref_logprobs), 0.0)
    return rewards.scatter_add(1, compute_last_index(mask)[:, None], scores[:, None].to(rewards.dtype))
