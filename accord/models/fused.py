"""FusedLoraLinear: peft's LoRA layer with a lean forward and backward pass; weights, names and files stay peft's own.

Implements h = x W^T + b + s (x A^T) B^T with the two thin products in the dtype of x, added in place, where peft casts
every activation to float32 and back (a third of the time of a training step on a CPU). A and B stay float32, and so do
their gradients' sums. Leaves out everything but one plain active adapter: then peft's own forward runs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class _LoraProduct(torch.autograd.Function):
    """x (N, in), W (out, in) frozen, b (out) or None, A (r, in) and B (out, r) float32, s: (N, out)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        thin_a, thin_b = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = x @ thin_a.t()
        result = nn.functional.linear(x, weight, bias).addmm_(inner, thin_b.t())
        ctx.save_for_backward(x, weight, inner, thin_a, thin_b)
        ctx.scale = scale  # type: ignore[attr-defined]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, inner, thin_a, thin_b = ctx.saved_tensors
        grad = grads[0]
        grad_inner = grad @ thin_b
        grad_x = (grad @ weight).addmm_(grad_inner, thin_a) if ctx.needs_input_grad[0] else None
        grad_a = (grad_inner.t() @ x).float()
        grad_b = (grad.t() @ inner).float() * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None


class FusedLoraLinear(LoraLinear):
    """A linear layer with adapters; the module's head says what it computes. Source: Hu et al. 2021, section 4.1."""

    def forward(self, x: Float[Tensor, "*B I"], *args: Any, **kwargs: Any) -> Float[Tensor, "*B O"]:
        """The layer's output under the active adapter, in the dtype of x."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or self.merged or self.disable_adapters or args or kwargs:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name, base = active[0], self.base_layer
        flat = x.reshape(-1, x.shape[-1])
        product = _LoraProduct.apply(
            flat, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return product.view(*x.shape[:-1], -1)
