"""Full copies in parts: each process keeps its share of a wholly trained policy's weights, gradients and moments.

Implements fully sharded data parallelism (Rajbhandari et al. 2020, "ZeRO", stage 3) by torch's `fully_shard`, FSDP2: a
group of weights for each decoder layer and one for the rest. The float32 weights are DTensors parted on their first
dimension, so AdamW's moments are too. A pass with gradients gathers a layer's weights in the base's dtype when it comes
to it and parts them again; its gradients are summed in float32. Sampling and every other pass without gradients go
through a whole copy in the base's dtype, gathered once and freed when training goes on, so that only training passes
must be equally many in each process (`distributed.share_rounds`). Leaves out parting the frozen base and adapters, and
files in parts: what is written is whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from accord.distributed import build_mesh, is_first
from accord.models.trunk import find_layers
from accord.models.weights import copy_model


class ShardedCopy:
    """A trainable copy of the frozen model whose weights are parted over all processes.

    model: for passes with gradients; its parameters are float32 DTensors. Making one, `choose`, `gather` and each pass
    of `model`, forward and backward, are collective: every process does them equally often.
    """

    def __init__(self, frozen: PreTrainedModel) -> None:
        self.model = _shard(copy_model(frozen, frozen.dtype))
        self._frozen = frozen
        self._whole: PreTrainedModel | None = None

    def choose(self) -> PreTrainedModel:
        """The model for the next pass: `model` under autograd, which also frees what is whole; else `gather()`."""
        if torch.is_grad_enabled():
            self.release()
            return self.model
        return self.gather()

    @torch.no_grad()
    def gather(self) -> PreTrainedModel:
        """A whole copy of the weights as they are, in the frozen model's dtype; made anew only after `release`."""
        if self._whole is None:
            whole = copy_model(self._frozen, self._frozen.dtype).requires_grad_(False)
            parts = dict(self.model.named_parameters())
            for name, parameter in whole.named_parameters():
                parameter.copy_(gather_tensor(parts[name].detach().to(parameter.dtype)))
            self._whole = whole
        return self._whole

    def release(self) -> None:
        """Free the whole copy, which new weights make stale."""
        self._whole = None


def _shard(model: PreTrainedModel) -> PreTrainedModel:
    """Part the weights of `model` in float32, layer by layer: no more than one of them is ever whole in float32."""
    mixed = MixedPrecisionPolicy(param_dtype=model.dtype, reduce_dtype=torch.float32)
    mesh = build_mesh(model.device.type)
    for module in (*find_layers(model)[1], model):
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        fully_shard(module, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # a sum: each loss is divided by the denominator of the whole batch
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def gather_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is parted; any other as it is. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors for a file: in the first process, which writes it, on the CPU; the others get none that was parted.

    Tensors that are not parted stay as they are. One at a time is whole on the device. Collective.
    """
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            whole[name] = tensor
        elif is_first():
            whole[name] = tensor.full_tensor().cpu()
        else:
            tensor.full_tensor()
    return whole


def part_like(value: Tensor, model: Tensor) -> Tensor:
    """`value`, on the device of `model` and parted as it is: this process's part of a whole tensor. Nothing is sent."""
    if isinstance(value, DTensor) or not isinstance(model, DTensor):
        return value.to(model.device)
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
