"""How much of the returns the critic foresaw.

Implements one number of the report; leaves out everything that is optimised.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.functional.masking import masked_variance


@torch.no_grad()
def compute_explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> float:
    """1 - Var(returns - values) / Var(returns). 1: foreseen; 0: no better than a constant; below 0: worse than one.

    It is not additive over micro-batches: hand in the whole rollout. Returns that do not vary give 1 where the error
    does not vary either, else 0, so that the number can always be logged.

    values, returns, mask (*shape) -> a number without unit. Raises DataError where nothing is unmasked.
    """
    error = float(masked_variance(returns - values, mask))
    spread = float(masked_variance(returns, mask))
    if spread == 0.0:
        return 1.0 if error == 0.0 else 0.0
    return 1.0 - error / spread
