"""The frozen trunk: the lower decoder layers, run once and shared by every role.

Implements, for any Hugging Face causal LM, running the model up to layer `split` (a hook takes the hidden states there
and ends the pass) and running it again from those states (the lower layers are bypassed for the length of one call).
The model's own forward does everything else: masks, positions, scaling, soft-capping. Leaves out any knowledge of an
architecture; whether the split holds is checked on the model itself (`find_trunk`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.errors import ModelError


class _TrunkReached(Exception):
    """Ends a forward pass at layer `split`; carries nothing and never leaves this module."""


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the `ModuleList` with one entry for each of the model's hidden layers.

    Raises:
        ModelError: there is none.
    """
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ModelError(
        f"found no list of {count} decoder layers in a {type(model).__name__}",
        mend="use a decoder-only causal LM",
    )


def choose_split(split: int, layers: int) -> int:
    """-1: two thirds of the layers, rounded, at least one layer left above; otherwise `split` itself.

    Raises:
        ModelError: `split` leaves no layer for the adapters, or is negative and not -1.
    """
    if split == -1:
        return min(round(2 * layers / 3), layers - 1)
    if not 0 <= split < layers:
        raise ModelError(
            f"split {split} does not fit a model of {layers} layers",
            where="model.split",
            mend=f"use -1, or 0 to {layers - 1}",
        )
    return split


class Trunk:
    """Layers `[:split]` of `layers`, which may be run alone or left out."""

    def __init__(self, layers: nn.ModuleList, split: int) -> None:
        self.layers = layers
        self.split = split
        self._returns_tuple = False

    def compute(self, forward: Callable[[], Any], *, grad: bool = False) -> Float[Tensor, "B T H"]:
        """The hidden states that enter layer `split` when `forward` runs the model; nothing above runs.

        `grad`: under the caller's grad mode, for layers that carry adapters; otherwise without gradients.
        """
        captured: list[Tensor] = []

        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append(args[0] if args else kwargs["hidden_states"])
            raise _TrunkReached

        def watch(_: nn.Module, __: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        handles = [
            self.layers[self.split].register_forward_pre_hook(capture, with_kwargs=True),
            self.layers[0].register_forward_hook(watch),
        ]
        try:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                forward()
        except _TrunkReached:
            return captured[0]
        finally:
            for handle in handles:
                handle.remove()
        raise ModelError(f"the model never reached decoder layer {self.split}", mend="set model.split = 0")

    @contextmanager
    def resume(self, states: Float[Tensor, "B T H"]) -> Iterator[None]:
        """While open, a forward pass of the model starts at layer `split` with `states`; layers below do nothing."""

        def substitute(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        def bypass(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if self._returns_tuple else hidden

        lower = list(self.layers[: self.split])
        own = [layer.__dict__.get("forward") for layer in lower]
        handle = self.layers[self.split].register_forward_pre_hook(substitute, with_kwargs=True)
        for layer in lower:
            layer.forward = bypass
        try:
            yield
        finally:
            handle.remove()
            for layer, forward in zip(lower, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def find_trunk(layers: nn.ModuleList, split: int, forward: Callable[[], Tensor]) -> tuple[Trunk | None, str]:
    """The trunk below layer `split` if the model allows one, and in words how exactly it holds or why it does not.

    `forward` runs the whole model on one batch and returns its logits; it is run whole, and again from the trunk.
    """
    if split == 0:
        return None, "no split: every role runs every layer"
    trunk = Trunk(layers, split)
    try:
        with torch.no_grad():
            whole = forward()
            with trunk.resume(trunk.compute(forward)):
                resumed = forward()
    except (ModelError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return None, f"no split: the model does not run from the states of layer {split} ({error})"
    if torch.equal(whole, resumed):
        return trunk, f"split at layer {split}: outputs equal the unsplit ones bit for bit"
    gap = float((whole.float() - resumed.float()).abs().max())
    if gap <= 16 * torch.finfo(whole.dtype).eps * float(whole.float().abs().max()):
        return trunk, f"split at layer {split}: outputs equal the unsplit ones to {gap:.1e}, float noise"
    return None, f"no split: outputs from the states of layer {split} differ by {gap:.1e}, more than float noise"


def build_probe(vocabulary: int, device: torch.device) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Random ids in four rows of 24: unpadded, padded on the left, on the right, and on both sides."""
    ids = torch.randint(vocabulary, (4, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[1, :5] = mask[2, -7:] = mask[3, :3] = mask[3, -4:] = False
    return ids.to(device), mask.to(device)
