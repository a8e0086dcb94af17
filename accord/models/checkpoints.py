"""Roles and optimisers as plain tensors: PEFT folders that others can load, and flat dictionaries for checkpoints.

Implements, for an adapter, `adapter_model.safetensors` and `adapter_config.json` as peft writes them; for a scorer also
`head.safetensors` (`weight` (H,), `bias` ()); for a full copy, a whole transformers folder; and in each, `role.json`
(kind, split, the base's fingerprint). Nothing written depends on the clock or the machine, nothing read is unpickled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from accord.distributed import is_first
from accord.errors import ModelError
from accord.models.adapters import PEFT_PREFIX, AdapterSite, LoraSettings
from accord.models.sharding import gather_tensors, part_like
from accord.models.weights import copy_model

if TYPE_CHECKING:
    from accord.models.base import Base

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEAD_WEIGHTS = "head.safetensors"
ROLE_CARD = "role.json"
FULL_CONFIG = "config.json"
QUANTIZED = frozenset({"absmax1", "absmax2", "qmap1", "qmap2"})
"""What bitsandbytes keeps beside moments of a byte: each block's scale, and the numbers that the bytes stand for."""


def save_role(base: Base, role: str, folder: Path) -> None:
    """Write `role` to `folder` (made where missing); see the head of this file for the files.

    Raises:
        ModelError: it is a head on another role.
    """
    found = base.describe(role)
    if found.adapter not in (role, None):
        raise ModelError(f"{role!r} is a head on {found.adapter!r}", mend=f"save {found.adapter!r}")
    folder.mkdir(parents=True, exist_ok=True)
    card = {"base": base.fingerprint, "kind": found.kind, "split": found.site.split if found.site else 0}
    _write_json(folder / ROLE_CARD, card)
    if found.lora is None or found.site is None:
        found.model.config._name_or_path = ""
        whole = gather_tensors(base.state(role)) if found.sharded else None
        if found.sharded is None or is_first():
            found.model.save_pretrained(folder, state_dict=whole)
        base.tokens.inner.save_pretrained(folder)
        return
    state = {name: value.cpu().contiguous() for name, value in base.state(role).items()}
    head = {name.removeprefix("head."): state.pop(name) for name in list(state) if name.startswith("head.")}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / ADAPTER_CONFIG, _describe_adapter(base, found.site, found.lora))
    if head:
        save_file(head, folder / HEAD_WEIGHTS, metadata={"format": "pt"})


def load_role(base: Base, role: str, folder: Path, *, kind: Literal["policy", "scorer"]) -> None:
    """Add `role` to `base` from what `save_role` wrote to `folder`.

    Raises:
        ModelError: the folder holds no such role, or one made on another base or another split.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        if kind == "policy" and (folder / FULL_CONFIG).is_file():
            _load_full(base, role, folder)
            return
        raise ModelError(
            f"no {kind} here: {ADAPTER_CONFIG} is missing", where=str(folder), mend="give the role's folder"
        )
    _check_card(base, folder)
    settings, every_layer = _read_settings(base, folder, kind)
    state = _read_tensors(folder / ADAPTER_WEIGHTS)
    if kind == "scorer":
        state |= {f"head.{name}": value for name, value in _read_tensors(folder / HEAD_WEIGHTS).items()}
        base.add_scorer(role, lora=settings, seed=0)
    else:
        base.add_policy(role, lora=settings, seed=0, every_layer=every_layer)
    try:
        base.load_state(role, state)
    except ModelError as error:
        base.remove(role)
        raise ModelError(error.message, where=str(folder), mend=error.mend) from error


@torch.no_grad()
def save_merged(base: Base, role: str, folder: Path) -> None:
    """Write the policy `role` to `folder` as a whole model with its tokenizer: W + (alpha / r) B A in the base's dtype.

    `load_base(folder)` then stands on it, which is how a fine-tuned model becomes the reference of what follows.
    """
    found = base.describe(role)
    if found.lora is None:
        merged = found.sharded.gather() if found.sharded else copy.deepcopy(found.model)
    else:
        merged = copy_model(base.model)
        state, scale = base.state(role), found.lora.alpha / found.lora.rank
        for name, weight in merged.named_parameters():
            stem = f"{PEFT_PREFIX}{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in state:
                delta = scale * state[f"{stem}.lora_B.weight"] @ state[f"{stem}.lora_A.weight"]
                weight.add_(delta.t() if base.site.transposed else delta)
    torch.nn.Module.to(merged, base.dtype)
    merged.config._name_or_path = ""
    merged.save_pretrained(folder)
    base.tokens.inner.save_pretrained(folder)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as copies named `INDEX.NAME`: parameter number in its groups' order, and e.g. `exp_avg`.

    Hyper-parameters are not kept: they belong to the configuration and the schedule.
    """
    packed: dict[str, Tensor] = {}
    for index, parameter in enumerate(_optimized(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            packed[f"{index}.{name}"] = value.detach().clone() if torch.is_tensor(value) else torch.tensor(value)
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Put what `pack_optimizer` took back into an optimiser over the same parameters, on each parameter's device.

    Raises:
        ModelError: the state speaks of a parameter that the optimiser does not have, or of one of another shape.
    """
    parameters = _optimized(optimizer)
    optimizer.state.clear()
    for key, value in packed.items():
        index, _, name = key.partition(".")
        fits = index.isdigit() and int(index) < len(parameters)
        if not fits or (value.dim() and name not in QUANTIZED and value.shape != parameters[int(index)].shape):
            raise ModelError(f"optimiser state {key!r} fits no parameter", mend="use the roles it was saved with")
        parameter = parameters[int(index)]
        copied = value.detach().clone()
        if value.dim():
            optimizer.state[parameter][name] = part_like(copied, parameter)
        else:  # a whole number was a plain one, which bitsandbytes counts its steps with
            optimizer.state[parameter][name] = copied if value.is_floating_point() else int(copied)


def _optimized(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _describe_adapter(base: Base, site: AdapterSite, settings: LoraSettings) -> dict[str, Any]:
    """adapter_config.json, without what differs between machines: sets are sorted, a base in a folder has no name."""
    config = site.build_config(settings).to_dict()
    config["base_model_name_or_path"] = None if Path(base.name).is_dir() else base.name
    config["inference_mode"] = True
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def _check_card(base: Base, folder: Path) -> None:
    """A role that Accord saved goes on the very base it was made on; an adapter of PEFT's has no card to check."""
    if not (folder / ROLE_CARD).is_file():
        return
    card = json.loads((folder / ROLE_CARD).read_text())
    if card["base"] != base.fingerprint:
        raise ModelError(
            "the role was made on another base model", where=str(folder), mend="load that base, dtype included"
        )


def _read_settings(base: Base, folder: Path, kind: str) -> tuple[LoraSettings, bool]:
    """Rank and alpha of the adapter in `folder`, and whether it is a policy's on every layer.

    It must sit exactly where this base's adapters sit.
    """
    where = str(folder)
    try:
        config = LoraConfig.from_pretrained(where)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{ADAPTER_CONFIG} is not a LoRA configuration: {error}", where=where) from error
    settings = LoraSettings(config.r, config.lora_alpha)
    every_layer = kind == "policy" and config.layers_to_transform == list(range(base.layers))
    ours = (base.whole_site if every_layer else base.site).build_config(settings)
    for field in ("target_modules", "layers_to_transform", "use_rslora", "use_dora", "bias", "alpha_pattern"):
        if getattr(config, field) != getattr(ours, field):
            raise ModelError(
                f"the adapter's {field} is {getattr(config, field)}, this base's {getattr(ours, field)}",
                where=where,
                mend="load the base with the split that the adapter was trained with",
            )
    return settings, every_layer


def _load_full(base: Base, role: str, folder: Path) -> None:
    """Add a full policy with the weights of the transformers folder `folder`."""
    trained = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    state = {name: parameter.detach() for name, parameter in trained.named_parameters()}
    base.add_policy(role, lora=None, seed=0)
    try:
        base.load_state(role, state)
    except ModelError as error:
        base.remove(role)
        raise ModelError(error.message, where=str(folder), mend=error.mend) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read weights: {error}", where=str(path), mend="save the role again") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
