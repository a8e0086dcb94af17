"""Gradient checkpointing: a layer keeps only its input for the backward pass, and is run again when its turn comes.

Implements it for every decoder layer, packed or as transformers wrote it, by torch's own non-reentrant checkpoint (Chen
et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): the same gradients bit for bit, for one more forward pass
of the layers that learn, and the memory of one layer instead of all. A loss may rest on several roles, and by the time
of its backward pass none of them acts any more; so each layer remembers which adapters it ran under and which rows of
it were read, and runs again so. Leaves out choosing fewer layers, and passes without gradients, which keep nothing
anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accord.models.base import Base
from accord.models.packing import PackedForward
from accord.models.trunk import find_layers


def recompute_layers(base: Base) -> None:
    """Let every layer of the base and of full copies keep its input alone; call it again when roles came."""
    models = {id(model): model for model in (base.model, *(base.describe(role).model for role in base.roles()))}
    for model in models.values():
        for layer in find_layers(model)[1]:
            if not isinstance(layer.forward, RecomputedForward):
                layer.forward = RecomputedForward(layer)


class RecomputedForward:
    """Stands in the place of `layer.forward`; without gradients, and while decoding with a cache, it is that."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.original: Callable[..., Any] = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output; its insides are computed again in the backward pass."""
        if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
            return self.original(*args, **kwargs)
        adapted = (module for module in self.layer.modules() if isinstance(module, LoraLinear))
        acting = {module: list(module.active_adapters) for module in adapted}
        packed = self.original if isinstance(self.original, PackedForward) else None
        rows = None if packed is None else packed.wanted

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _acting(acting, packed, rows)

        return checkpoint(
            self.original, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs
        )


@contextmanager
def _acting(
    wanted: Mapping[LoraLinear, list[str]], packed: PackedForward | None, rows: Tensor | None
) -> Iterator[None]:
    """The adapters that acted in the forward pass act again, on the rows that were read; afterwards as now."""
    now = {module: list(module.active_adapters) for module in wanted}
    rows_now = None if packed is None else packed.wanted
    _choose(wanted)
    if packed is not None:
        packed.wanted = rows
    try:
        yield
    finally:
        _choose(now)
        if packed is not None:
            packed.wanted = rows_now


def _choose(adapters: Mapping[LoraLinear, list[str]]) -> None:
    """peft freezes what it puts aside; every adapter stays trainable (see `adapters.choose_adapter`)."""
    for module, names in adapters.items():
        module.set_adapter(names)
        for part in (module.lora_A, module.lora_B):
            part.requires_grad_(True)
