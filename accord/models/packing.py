"""Packing: the layers of Llama-shaped models run as `packed_layer` runs them, where that is proven on the model.

Implements finding such layers by their parts, laying the weights of Q, K, V and of gate, up side by side in memory (the
model's own parameters become views of them: nothing is held twice), and putting `packed_layer.run_layer` in the place
of a layer's forward. Whether the model still computes what it did is checked on the model itself; where it does not,
the layers stay as transformers wrote them. On CUDA the weights are laid out for decoding alone, and the layers' own
forward stays. Leaves out models with other layers, which this does not concern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from accord.models.packed_layer import NONE, Adapters, PackedLayer, advance_layer, build_thins, run_layer

MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = ("input_layernorm", "post_attention_layernorm")

PASSING, DECODING = ("cpu",), ("cpu", "cuda")
"""Devices on which layers run packed in passes, and on which packed weights are laid out for decoding."""


class PackedForward:
    """Stands in the place of `layer.forward`: one step of autograd on packed weights, under the active adapter.

    layer: the module, whose linear layers peft may wrap at any time. packed: its weights. original: its own forward,
    which runs where an adapter is not plain. wanted: rows of the output that are read (`reading_rows`). lanes: the
    adapters of as many equal groups of rows, in the active one's place (models/lanes.py). Hooks on the parts of the
    layer are not called.
    """

    def __init__(self, layer: nn.Module, packed: PackedLayer) -> None:
        self.layer = layer
        self.packed = packed
        self.wanted: Tensor | None = None
        self.lanes: Sequence[Adapters] = ()
        self.original: Callable[..., Any] = layer.forward

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output under the signature that transformers calls it by."""
        adapters, cache = read_adapters(self.layer), kwargs.get("past_key_values")
        learns = torch.is_grad_enabled() and cache is not None
        if args or learns or adapters is None or kwargs.get("position_embeddings") is None:
            return self.original(hidden_states, *args, **kwargs)
        cos, sin = kwargs["position_embeddings"]
        cos, sin = (angles.expand(len(hidden_states), -1, -1) for angles in (cos, sin))
        place: int = self.layer.get_submodule("self_attn").layer_idx  # type: ignore[assignment]
        length, seen = hidden_states.shape[1], hidden_states.shape[1]
        if cache is not None:
            seen += cache.get_seq_length(place)
        mask = _add_up(kwargs.get("attention_mask"), length, seen, hidden_states)
        if self.lanes:
            lanes = [build_thins(self.packed, own, hidden_states.dtype) for own in self.lanes]
            return advance_layer(self.packed, lanes, hidden_states, cos, sin, mask, wanted=self.wanted)
        if cache is None:
            return run_layer(self.packed, hidden_states, cos, sin, mask, adapters, self.wanted)
        thins = build_thins(self.packed, adapters, hidden_states.dtype)
        return advance_layer(
            self.packed, [thins], hidden_states, cos, sin, mask, lambda key, value: [cache.update(key, value, place)]
        )


def _add_up(mask: Tensor | None, length: int, seen: int, like: Tensor) -> Tensor:
    """What is added to scores (B, 1, T, S): of a mask that is True where a column is seen; None sees all before it."""
    if mask is None:
        mask = torch.ones(1, 1, length, seen, dtype=torch.bool, device=like.device).tril(seen - length)
    if mask.is_floating_point():
        return mask
    least = torch.finfo(like.dtype).min
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, least)


def read_adapters(layer: nn.Module) -> Adapters | None:
    """The active adapters of the seven matrices, or none; None where only some have one, or not all the same scale."""
    weights: list[Tensor] = []
    scales: list[float] = []
    for path in MATRICES:
        module = layer.get_submodule(path)
        if isinstance(module, LoraLinear) and not module.disable_adapters:
            for name in module.active_adapters:
                if name in module.lora_A:
                    weights += [part[name].get_parameter("weight") for part in (module.lora_A, module.lora_B)]
                    scales.append(module.scaling[name])
    if not scales:
        return NONE
    return Adapters(weights, scales[0]) if len(scales) == len(MATRICES) and len(set(scales)) == 1 else None


def pack_model(layers: nn.ModuleList, forward: Callable[[], Tensor]) -> tuple[PackedLayer, ...]:
    """Pack `layers` and run them so if the model allows it; the packed layers, or none where they stay as they are.

    On a device of `DECODING` alone their forward stays; whether decoding holds is checked when it is first wanted.
    `forward` runs the whole model on one batch and returns the logits of real tokens; it is run before and after.
    """
    device = next(layers.parameters()).device.type
    if device not in DECODING or not all(is_llama_shaped(layer) for layer in layers):
        return ()
    if device not in PASSING:
        return tuple(_pack(layer) for layer in layers)
    with torch.no_grad():
        before = forward()
        packed = tuple(_pack(layer) for layer in layers)
        for layer, weights in zip(layers, packed, strict=True):
            layer.forward = PackedForward(layer, weights)
        after = forward()
    gap = float((before.float() - after.float()).abs().max())
    if gap <= 64 * torch.finfo(before.dtype).eps * float(before.float().abs().max()):
        return packed
    for layer in layers:
        del layer.forward
    return ()


def find_packed(layer: nn.Module) -> PackedForward | None:
    """What stands in the place of `layer.forward`, alone or behind what recomputes it; None where it is not packed."""
    forward = layer.__dict__.get("forward")
    packed = forward if isinstance(forward, PackedForward) else getattr(forward, "original", None)
    return packed if isinstance(packed, PackedForward) else None


@contextmanager
def reading_rows(layer: nn.Module, wanted: Bool[Tensor, "B T"] | None) -> Iterator[None]:
    """While open, only the rows `wanted` of the output of `layer`, the last one, are read; others may be 0.

    A layer that is not packed computes all rows as ever.
    """
    packed = find_packed(layer)
    if wanted is None or packed is None:
        yield
        return
    packed.wanted = wanted.flatten().nonzero()[:, 0]
    try:
        yield
    finally:
        packed.wanted = None


@contextmanager
def unpacked(layers: nn.ModuleList) -> Iterator[None]:
    """While open, `layers` run as transformers and peft wrote them: what packed layers are measured against."""
    packed = [layer.__dict__.pop("forward", None) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, packed, strict=True):
            if forward is not None:
                layer.forward = forward


def is_llama_shaped(layer: nn.Module) -> bool:
    """Whether `layer` has the parts of a Llama layer and no other parameters, and sees all columns."""
    names = {name for name, _ in layer.named_parameters()}
    needed = {f"{path}.weight" for path in (*MATRICES, *NORMS)}
    biases = {f"{path}.bias" for path in MATRICES[:3]}
    if names - needed - {f"{MATRICES[3]}.bias"} not in (set(), biases) or not needed <= names:
        return False
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    linear = all(isinstance(layer.get_submodule(path), nn.Linear) for path in MATRICES)
    config = getattr(attention, "config", None)
    swish = getattr(config, "hidden_act", None) in ("silu", "swish") and hasattr(mlp, "act_fn")
    return linear and swish and getattr(attention, "sliding_window", None) is None and hasattr(attention, "scaling")


def _pack(layer: nn.Module) -> PackedLayer:
    """Lay the layer's matrices side by side; its own parameters become views of them."""
    attention: Any = layer.get_submodule("self_attn")
    q, k, v, o, gate, up, down = (layer.get_submodule(path) for path in MATRICES)
    norm: Any = layer.get_submodule(NORMS[0])
    width = attention.head_dim
    biases = [getattr(module, "bias", None) for module in (q, k, v)]
    return PackedLayer(
        input_norm=_weight(norm),
        qkv=_join([q, k, v], "weight"),
        qkv_bias=_join([q, k, v], "bias") if all(bias is not None for bias in biases) else None,
        o=_weight(o),
        o_bias=None if getattr(o, "bias", None) is None else o.get_parameter("bias").detach(),
        output_norm=_weight(layer.get_submodule(NORMS[1])),
        gate_up=_join([gate, up], "weight"),
        down=_weight(down),
        key_heads=len(_weight(k)) // width,
        groups=len(_weight(q)) // len(_weight(k)),
        head_width=width,
        epsilon=norm.variance_epsilon,
        scaling=attention.scaling,
    )


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach()


def _join(modules: Sequence[nn.Module], name: str) -> Tensor:
    """The parameters `name` of `modules` one below the other in one block of memory, which they point into."""
    parameters = [module.get_parameter(name) for module in modules]
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return joined
