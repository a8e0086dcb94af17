"""How the metrics of micro-batches become those of the optimiser step.

One rule, by name: what ends in `_max` is a maximum; everything else is a masked sum over the global denominator, so it
adds. Leaves out means over several optimiser steps, which belong to the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def combine_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The metrics of the whole from those of its micro-batches: the largest of `*_max`, the sum of all others.

    parts: one mapping of scalars for each micro-batch, all made with the same global denominator -> plain floats. A
    name that some parts lack is combined from those that have it. No parts, no metrics.
    """
    columns: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            columns.setdefault(name, []).append(value.detach())
    return {
        name: float(torch.stack(values).max() if name.endswith("_max") else torch.stack(values).sum())
        for name, values in columns.items()
    }
