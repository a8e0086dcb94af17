"""Statistics under a mask: sum, mean, variance, whitening, and where each row's last real token lies.

The mask is True where an entry counts, and no other polarity exists. A masked entry is selected away, never multiplied
by zero, so whatever it holds (infinity and NaN included) reaches neither the value nor the gradient. Leaves out
weighted statistics and any reduction across ranks: a caller that splits a batch passes the global `denominator`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.errors import DataError

VARIANCE_FLOOR = 1e-8
"""Below this variance `masked_whiten` centres but no longer stretches: noise around a constant stays small."""


def masked_sum(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum of x_i over the entries with mask_i = True; 0 where there is none.

    x and mask (*shape) -> scalar, in the units of x.
    """
    return torch.where(mask, x, 0.0).sum()


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], denominator: float | int | None = None
) -> Float[Tensor, ""]:
    """Sum of x_i under the mask, divided by `denominator`, or by the number of unmasked entries where it is None.

    With the denominator of the whole batch, the results of its parts add up to the result of the whole.
    x and mask (*shape) -> scalar, in the units of x.

    Raises:
        DataError: `denominator` is not above 0, or it is None and nothing is unmasked.
    """
    count = int(mask.sum()) if denominator is None else denominator
    if not count > 0:
        raise DataError(
            f"a mean over {count} entries", where="masked_mean", mend="leave out batches without one real token"
        )
    return masked_sum(x, mask) / count


def masked_variance(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Population variance under the mask: mean of (x_i - mean)^2, divided by the count n and not by n - 1.

    x and mask (*shape) -> scalar, in the units of x squared. Raises DataError where nothing is unmasked.
    """
    centred = torch.where(mask, x - masked_mean(x, mask), 0.0)
    return masked_mean(centred.square(), mask)


def masked_whiten(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(x - mean) / standard deviation, both under the mask: masked mean 0 *and* masked population variance 1.

    The mean is taken away for good; an implementation that adds it back leaves a constant in every advantage. To whiten
    over the global batch, hand in the global batch. Entries that do not vary (variance below `VARIANCE_FLOOR`) become
    about 0.
    x and mask (*shape) -> (*shape), without unit, 0 where masked.

    Raises:
        DataError: nothing is unmasked.
    """
    centred = torch.where(mask, x - masked_mean(x, mask), 0.0)
    return centred * masked_variance(x, mask).clamp_min(VARIANCE_FLOOR).rsqrt()


def compute_last_index(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Index of the last True of each row: max of t over mask_t = True. Padding may lie on either side.

    mask (B, T) -> (B,) int64.

    Raises:
        DataError: a row has no True, so there is no such token.
    """
    if not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise DataError("a sequence without one real token", where=f"mask row {row}", mend="leave empty sequences out")
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, -1).amax(dim=1)
