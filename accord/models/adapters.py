"""LoRA adapters on one shared base, through peft.

Implements adding, choosing, naming and removing adapters on the linear layers of `layers[split:]` (Hu et al. 2021:
h = W x + (alpha / r) B A x, with B = 0 at the start, so that a new role equals the base). Leaves out merging an adapter
into the base, which is never written to, and dropout, which is off everywhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, delete_adapter, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from accord.errors import ModelError
from accord.models.fused import FusedLoraLinear
from accord.types import derive_seed

PEFT_PREFIX = "base_model.model."
"""What peft puts before the name of a module in a saved adapter."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank r and alpha of an adapter; its update is scaled by alpha / r."""

    rank: int = 16
    alpha: int = 32


@dataclass(frozen=True, slots=True)
class AdapterSite:
    """Where adapters sit: the linear layers `targets` inside layers `split` to `layers` - 1 of list `layers_name`."""

    layers_name: str
    layers: int
    split: int
    targets: tuple[str, ...]
    transposed: bool  # weights are (in, out), as GPT-2's Conv1D keeps them

    def build_config(self, settings: LoraSettings) -> LoraConfig:
        """The peft configuration of one adapter, as it is saved beside the weights."""
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(self.targets),
            layers_to_transform=list(range(self.split, self.layers)),
            layers_pattern=self.layers_name.rpartition(".")[2],
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=self.transposed,
            task_type="CAUSAL_LM",
        )
        if not self.transposed:
            config._register_custom_module({nn.Linear: FusedLoraLinear})
        return config


def find_site(layers_name: str, layers: nn.ModuleList, split: int) -> AdapterSite:
    """Every linear layer inside `layers[split:]`; never the LM head, which is outside. Call it before adapters come.

    Raises:
        ModelError: there is none.
    """
    linear = {
        name.rpartition(".")[2]: module
        for layer in layers[split:]
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if not linear:
        raise ModelError(
            "the decoder layers hold no linear layer that LoRA can adapt", mend='set model.adapter = "full"'
        )
    transposed = any(isinstance(module, Conv1D) for module in linear.values())
    return AdapterSite(layers_name, len(layers), split, tuple(sorted(linear)), transposed)


def add_adapter(model: PreTrainedModel, role: str, site: AdapterSite, settings: LoraSettings, seed: int) -> None:
    """Add the adapter of `role`, in float32: A uniform in +-1/sqrt(fan_in) (peft's initialisation), B zero.

    A depends on `seed` and the layer's name alone. No adapter is active afterwards; the global generator is untouched.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        inject_adapter_in_model(site.build_config(settings), model, adapter_name=_key(role))
    cast_adapter_dtype(model, _key(role))
    with torch.no_grad():
        for name, parameter in adapter_parameters(model, role).items():
            if ".lora_B." in name:
                parameter.zero_()
                continue
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    choose_adapter(dict(find_adapted_layers(model)).values(), None)


def choose_adapter(layers: Iterable[LoraLinear], role: str | None) -> None:
    """Let the adapter of `role` act, or none: then every layer is exactly the base's.

    peft freezes the adapters it puts aside, and a backward pass that comes later would silently lose their gradients;
    so every adapter stays trainable, and which one learns is decided by which one was in the forward pass.
    """
    names = [] if role is None else [_key(role)]
    for layer in layers:
        layer.set_adapter(names)
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(True)


def remove_adapter(model: PreTrainedModel, role: str) -> None:
    """Take the adapter of `role` out of the model."""
    choose_adapter(dict(find_adapted_layers(model)).values(), None)
    delete_adapter(model, _key(role), prefix="lora_")
    model.peft_config.pop(_key(role))


def adapter_parameters(model: PreTrainedModel, role: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter under the names that peft saves them by, in the order of the layers."""
    key = _key(role)
    return {
        f"{PEFT_PREFIX}{name}.{part}.weight": layer.get_parameter(f"{part}.{key}.weight")
        for name, layer in find_adapted_layers(model)
        for part in ("lora_A", "lora_B")
        if key in layer.lora_A
    }


def share_adapter(layer: LoraLinear, role: str, others: Iterable[str]) -> None:
    """Give the roles `others` the adapter of `role` in this layer: the very same tensors from now on; none has none."""
    if _key(role) not in layer.lora_A:
        return
    for other in others:
        for part in (layer.lora_A, layer.lora_B):
            part[_key(other)] = part[_key(role)]


def find_adapted_layers(model: PreTrainedModel) -> Iterator[tuple[str, LoraLinear]]:
    """Names and modules of the layers that carry adapters, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def _key(role: str) -> str:
    """peft's name of the adapter: the prefix keeps "train" or "keys" from hiding a method of `nn.ModuleDict`."""
    return f"role_{role}"
