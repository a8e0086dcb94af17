"""Lanes: several roles read the same tokens in one pass, in which each frozen matrix is read once.

Implements stacking the roles' rows one below the other and giving each group its own low-rank product, where layers run
packed (models/packing.py) and nobody learns; elsewhere the roles run one after the other, to the same result. Roles
that act through one adapter share one lane. Leaves out what is read off the hidden states: logits, values, scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.models.packed_layer import Adapters
from accord.models.packing import find_packed, read_adapters

if TYPE_CHECKING:
    from accord.models.base import Base

Lane = Sequence[Adapters]
"""One role's adapters, layer by layer."""


def compute_hidden_of(
    base: Base,
    roles: Sequence[str | None],
    inputs: Mapping[str, Any],
    trunk: Float[Tensor, "B T H"] | None = None,
    *,
    wanted: Bool[Tensor, "B T"] | None = None,
) -> list[Float[Tensor, "B T H"]]:
    """`base.compute_hidden` of each role, None being the reference.

    Raises:
        ModelError: no such role, or a trunk of another shape.
    """
    acting = [_name_lane(base, role) for role in roles]
    names = list(dict.fromkeys(acting))
    lanes = None if len(names) == 1 or torch.is_grad_enabled() else _find_lanes(base, names, trunk)
    if lanes is None:
        found = {name: base.compute_hidden(name, inputs, trunk, wanted=wanted) for name in names}
    else:
        count = len(names)
        stacked = {key: _stack(value, count) if torch.is_tensor(value) else value for key, value in inputs.items()}
        states, rows = (None if tensor is None else _stack(tensor, count) for tensor in (trunk, wanted))
        with _running(base, lanes):
            hidden = base.compute_hidden(None, stacked, states, wanted=rows)
        found = dict(zip(names, hidden.chunk(count), strict=True))
    return [found[name] for name in acting]


def _name_lane(base: Base, role: str | None) -> str | None:
    """The role whose weights act when `role` does."""
    return role if role is None else base.describe(role).adapter or role


def _stack(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))


def _find_lanes(base: Base, names: Sequence[str | None], trunk: Tensor | None) -> list[Lane] | None:
    """Each role's adapters; None where the roles cannot run side by side."""
    described = [base.describe(name) for name in names if name is not None]
    if any(role.lora is None or (trunk is not None and not role.on_trunk) for role in described):
        return None
    if not base.packed or any(find_packed(layer) is None for layer in base.stack):
        return None
    lanes: list[Lane] = []
    for name in names:
        with base.activate(name):
            adapters = [read_adapters(layer) for layer in base.stack]
        plain = [found for found in adapters if found is not None]
        if len(plain) < len(adapters):
            return None
        lanes.append(plain)
    return lanes


@contextmanager
def _running(base: Base, lanes: Sequence[Lane]) -> Iterator[None]:
    """While open, each layer runs its rows in as many equal groups as there are lanes, each with its own adapters."""
    packed = [find_packed(layer) for layer in base.stack]
    for forward, adapters in zip(packed, zip(*lanes, strict=True), strict=True):
        assert forward is not None, "layers that run packed"
        forward.lanes = adapters
    try:
        yield
    finally:
        for forward in packed:
            assert forward is not None, "layers that run packed"
            forward.lanes = ()
