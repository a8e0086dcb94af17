"""A Llama-shaped decoder layer as one step of autograd, on packed weights, with low-rank adapters.

Implements, for x (B, T, H):

    h = x + O attend(rotate(Q n1(x)), rotate(K n1(x)), V n1(x))        n1, n2: RMSNorm (Zhang and Sennrich 2019)
    y = h + D (silu(G n2(h)) * U n2(h))                                silu(G z) * U z: SwiGLU (Shazeer 2020)

with rotary positions (Su et al. 2021), grouped keys (Ainslie et al. 2023), and in place of each frozen matrix W its
adapted W + s B A (Hu et al. 2021). Q, K, V are one matrix product and G, U another; the backward pass is written out,
so that it keeps twelve narrow tensors a layer where autograd keeps some forty, half of them in float32, and runs no
product that nobody reads. Of a last layer only some rows are read, those that predict a token or are scored: given
these, all behind the attention is computed for them alone. Sums and norms are float32, products in the dtype of x, as
in transformers' own layers. Leaves out gradients of the frozen weights, dropout, sliding windows and norms of queries
and keys (`packing` checks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

aten = torch.ops.aten

Store = Callable[[Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]
"""Takes a layer's new keys and values (B, K, T, D) and returns those to attend to, in as many equal groups of rows as
it keeps apart: G of (B / G, K, S, D)."""


@dataclass(frozen=True)
class PackedLayer:
    """The frozen weights of one layer: K key heads of width D, each for `groups` query heads; I hidden units.

    qkv ((groups + 2) K D, H) and its bias or None; o (H, groups K D); gate_up (2 I, H); down (H, I); norms (H,).
    `parts` are the rows of each matrix in its pack: (Q, K, V), (O,), (G, U), (D,).
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    output_norm: Tensor
    gate_up: Tensor
    down: Tensor
    key_heads: int
    groups: int
    head_width: int
    epsilon: float
    scaling: float

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Output rows of the seven adapted matrices, pack by pack."""
        keys, hidden = self.key_heads * self.head_width, len(self.gate_up) // 2
        return (self.groups * keys, keys, keys), (len(self.o),), (hidden, hidden), (len(self.down),)


class Thin(NamedTuple):
    """The adapters of one packed matrix in the dtype of the activations: a (R, in), b (out, R) with the scale in it."""

    a: Tensor
    b: Tensor


class Adapters(NamedTuple):
    """A (r, in) and B (out, r) of Q, K, V, O, G, U, D in turn, float32, and their scale s; or no weights at all."""

    weights: Sequence[Tensor]
    scale: float


NONE = Adapters((), 1.0)


def build_thins(layer: PackedLayer, adapters: Adapters, dtype: torch.dtype) -> list[Thin | None]:
    """The adapters pack by pack: A stacked, s B on the diagonal of a block matrix; None where there are none."""
    if not adapters.weights:
        return [None] * len(layer.parts)
    thins: list[Thin | None] = []
    start = 0
    for rows in layer.parts:
        end = start + 2 * len(rows)
        a, b = adapters.weights[start:end:2], adapters.weights[start + 1 : end : 2]
        thins.append(Thin(torch.cat(list(a)).to(dtype), torch.block_diag(*b).mul_(adapters.scale).to(dtype)))
        start = end
    return thins


def project(
    x: Float[Tensor, "N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, thin: Thin | None
) -> tuple[Float[Tensor, "N O"], Float[Tensor, "N R"] | None]:
    """(x W^T + bias + (x A^T) B^T, x A^T)."""
    result = functional.linear(x, weight, bias)
    if thin is None:
        return result, None
    inner = x @ thin.a.t()
    return result.addmm_(inner, thin.b.t()), inner


def project_lanes(
    x: Float[Tensor, "N I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    thins: Sequence[Thin | None],
) -> Float[Tensor, "N O"]:
    """`project` where x holds as many equal groups of rows as there are `thins`, each with its own: W is read once."""
    result = functional.linear(x, weight, bias)
    for rows, onto, thin in zip(x.chunk(len(thins)), result.chunk(len(thins)), thins, strict=True):
        if thin is not None:
            onto.addmm_(rows @ thin.a.t(), thin.b.t())
    return result


def normalize(
    x: Float[Tensor, "N H"], weight: Float[Tensor, " H"], epsilon: float
) -> tuple[Float[Tensor, "N H"], Float[Tensor, "N 1"]]:
    """(weight * x / sqrt(mean(x^2) + epsilon), the reciprocal root in float32 at least)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    reciprocal = torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + epsilon)
    return (wide * reciprocal).to(x.dtype) * weight, reciprocal


def rotate(
    x: Float[Tensor, "B T N D"], cos: Float[Tensor, "B T D"], sin: Float[Tensor, "B T D"], out: Tensor
) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its position's angle, into `out`, of the same shape in any layout.

    cos, sin hold each angle twice, as transformers gives them. With -sin it is the inverse, which is the gradient.
    """
    half = x.shape[-1] // 2
    c, s = cos[:, :, None, :half], sin[:, :, None, :half]
    low, high = x[..., :half], x[..., half:]
    torch.mul(low, c, out=out[..., :half]).addcmul_(high, s, value=-1)
    torch.mul(high, c, out=out[..., half:]).addcmul_(low, s)
    return out


class Heads(NamedTuple):
    """Rotated queries, scaled, with those that share a key side by side, and keys and values."""

    query: Float[Tensor, "B K R D"]
    key: Float[Tensor, "B K T D"]
    value: Float[Tensor, "B K T D"]


def split_heads(
    layer: PackedLayer, qkv: Float[Tensor, "B T O"], cos: Float[Tensor, "B T D"], sin: Float[Tensor, "B T D"]
) -> Heads:
    """Queries, keys and values out of their common product, positions turned in."""
    batch, length, _ = qkv.shape
    keys, groups, width = layer.key_heads, layer.groups, layer.head_width
    parts = qkv.view(batch, length, -1, width)
    query = qkv.new_empty(batch, keys * groups, length, width)
    rotate(parts[:, :, : keys * groups], cos, sin, query.transpose(1, 2)).mul_(layer.scaling)
    key = qkv.new_empty(batch, keys, length, width)
    rotate(parts[:, :, keys * groups : keys * (groups + 1)], cos, sin, key.transpose(1, 2))
    value = parts[:, :, keys * (groups + 1) :].transpose(1, 2).contiguous()
    return Heads(query.view(batch, keys, groups * length, width), key, value)


def attend(
    layer: PackedLayer, heads: Heads, mask: Float[Tensor, "_ 1 T S"]
) -> tuple[Float[Tensor, "N O"], Float[Tensor, "B K R S"]]:
    """(softmax(q k^T + mask) v as N = B T rows, the weights); the softmax in float32."""
    batch, length = len(heads.query), heads.query.shape[2] // layer.groups
    scores = torch.matmul(heads.query, heads.key.transpose(2, 3))
    scores.view(batch, layer.key_heads, layer.groups, length, -1).add_(mask[:, :, None])
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    output = torch.matmul(weights, heads.value).view(batch, -1, length, layer.head_width)
    return output.transpose(1, 2).reshape(batch * length, -1), weights


class _PackedStep(torch.autograd.Function):
    """`run_layer` with gradients for x and, where there are any, the seven matrices' A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, layer: PackedLayer, wanted: Tensor | None,
        scale: float, *weights: Tensor,
    ) -> Tensor:  # fmt: skip
        thins = build_thins(layer, Adapters(weights, scale), x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        first, root1 = normalize(rows, layer.input_norm, layer.epsilon)
        qkv, inner1 = project(first, layer.qkv, layer.qkv_bias, thins[0])
        heads = split_heads(layer, qkv.view(*x.shape[:2], -1), cos, sin)
        attended, chances = attend(layer, heads, mask)
        attended = _gather(attended, wanted)
        middle, inner2 = project(attended, layer.o, layer.o_bias, thins[1])
        middle.add_(_gather(rows, wanted))
        second, root2 = normalize(middle, layer.output_norm, layer.epsilon)
        gate_up, inner3 = project(second, layer.gate_up, None, thins[2])
        gate, up = gate_up.chunk(2, dim=1)
        output, inner4 = project(functional.silu(gate).mul_(up), layer.down, None, thins[3])
        output.add_(middle)
        saved = (rows, first, root1, *heads, chances, attended, middle, second, root2, gate_up, cos, sin, wanted)
        inner = (inner1, inner2, inner3, inner4)
        flat = [t for thin, z in zip(thins, inner, strict=True) if thin is not None for t in (*thin, z)]
        ctx.save_for_backward(*saved, *flat)
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        return _scatter(output, wanted, len(rows)).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        rows, first, root1, query, key, value, chances, attended, middle, second, root2, gate_up, cos, sin = saved[:14]
        layer, heads, wanted, rest = ctx.layer, Heads(query, key, value), saved[14], saved[15:]
        thin = [rest[i : i + 3] for i in range(0, len(rest), 3)] or [()] * len(layer.parts)
        steps = [_Backward(*pair, ctx.scale) for pair in zip(thin, layer.parts, strict=True)]
        onto_output = _gather(grad.reshape(rows.shape), wanted)
        onto_gate_up = _pull_back_swiglu(onto_output, gate_up, layer.down, steps[3])
        onto_second = steps[2].pull_back(onto_gate_up, second, layer.gate_up)
        onto_middle = _pull_back_norm(onto_second, middle, root2, layer.output_norm).add_(onto_output)
        onto_attended = _scatter(steps[1].pull_back(onto_middle, attended, layer.o), wanted, len(rows))
        onto_qkv = _pull_back_attention(onto_attended, heads, chances, cos, sin, layer)
        through = ctx.needs_input_grad[0]
        onto_first = steps[0].pull_back(onto_qkv, first, layer.qkv, through=through)
        onto_x = None
        if through:
            onto_x = _pull_back_norm(onto_first, rows, root1, layer.input_norm)
            onto_x = onto_x.add_(_scatter(onto_middle, wanted, len(rows))).view(ctx.shape)
        return onto_x, None, None, None, None, None, None, *(g for step in steps for g in step.gradients)


def _gather(rows: Float[Tensor, "N H"], wanted: Int[Tensor, " M"] | None) -> Float[Tensor, "M H"]:
    """The rows that are wanted; all of them for None."""
    return rows if wanted is None else rows[wanted]


def _scatter(rows: Float[Tensor, "M H"], wanted: Int[Tensor, " M"] | None, count: int) -> Float[Tensor, "N H"]:
    """`count` rows: `rows` in the places `wanted`, zeros elsewhere; `rows` themselves for None."""
    return rows if wanted is None else rows.new_zeros(count, rows.shape[1]).index_copy_(0, wanted, rows)


class _Backward:
    """The gradients of one pack; `gradients` holds those of its A and B in turn, once `pull_back` has run.

    thin: (a, b, x a^T) where there are adapters, else empty.
    """

    def __init__(self, thin: Sequence[Tensor], parts: Sequence[int], scale: float) -> None:
        self.thin = thin
        self.parts = parts
        self.scale = scale
        self.gradients: list[Tensor] = []

    def pull_back(self, grad: Tensor, x: Tensor, weight: Tensor, *, through: bool = True) -> Tensor:
        """The gradient for x (N, in) from that of the product, (N, out); without `through` nothing of use."""
        result = grad @ weight if through else grad
        if not self.thin:
            return result
        a, b, inner = self.thin
        onto_inner = grad @ b
        onto_a = (onto_inner.t() @ x).float()
        rank, start = len(a) // len(self.parts), 0
        for i, rows in enumerate(self.parts):
            own = slice(i * rank, (i + 1) * rank)
            onto_b = inner[:, own].t() @ grad[:, start : start + rows]  # transposed: the quicker product
            self.gradients += [onto_a[own], (onto_b.t().float() * self.scale).contiguous()]
            start += rows
        return result.addmm_(onto_inner, a) if through else result


def _pull_back_swiglu(grad: Tensor, gate_up: Tensor, down: Tensor, step: _Backward) -> Tensor:
    """From the output's gradient to that of gate and up, side by side."""
    gate, up = gate_up.chunk(2, dim=1)
    swish = functional.silu(gate)
    onto_product = step.pull_back(grad, swish * up, down)
    result = torch.empty_like(gate_up)
    onto_gate, onto_up = result.chunk(2, dim=1)
    torch.mul(onto_product, swish, out=onto_up)
    aten.silu_backward.grad_input(onto_product.mul_(up), gate, grad_input=onto_gate)
    return result


def _pull_back_norm(grad: Tensor, x: Tensor, reciprocal: Tensor, weight: Tensor) -> Tensor:
    """dx = r (g w - z mean(g w z)) with z = r x, in the dtype of x."""
    wide = (grad * weight).to(reciprocal.dtype)
    unit = x.to(reciprocal.dtype) * reciprocal
    mean = (wide * unit).mean(dim=-1, keepdim=True)
    return wide.addcmul_(unit, mean, value=-1).mul_(reciprocal).to(x.dtype)


def _pull_back_attention(
    grad: Tensor, heads: Heads, chances: Tensor, cos: Tensor, sin: Tensor, layer: PackedLayer
) -> Tensor:
    """From the attended rows' gradient (N, O) to that of Q, K and V, side by side (N, O')."""
    batch, keys, length, width = heads.key.shape
    onto = grad.view(batch, length, -1, width).transpose(1, 2).reshape(heads.query.shape)
    onto_value = chances.transpose(2, 3) @ onto
    onto_chances = onto @ heads.value.transpose(2, 3)
    onto_scores = aten._softmax_backward_data(onto_chances, chances, -1, chances.dtype)
    onto_query = (onto_scores @ heads.key).mul_(layer.scaling).view(batch, -1, length, width)
    onto_key = onto_scores.transpose(2, 3) @ heads.query
    result = grad.new_empty(batch, length, (layer.groups + 2) * keys, width)
    queries = layer.groups * keys
    back = -sin
    rotate(onto_query.transpose(1, 2), cos, back, result[:, :, :queries])
    rotate(onto_key.transpose(1, 2), cos, back, result[:, :, queries : queries + keys])
    result[:, :, queries + keys :] = onto_value.transpose(1, 2)
    return result.view(batch * length, -1)


def run_layer(
    layer: PackedLayer,
    x: Float[Tensor, "B T H"],
    cos: Float[Tensor, "B T D"],
    sin: Float[Tensor, "B T D"],
    mask: Float[Tensor, "_ 1 T T"],
    adapters: Adapters = NONE,
    wanted: Int[Tensor, " M"] | None = None,
) -> Float[Tensor, "B T H"]:
    """The layer's output. `mask` is added to the attention scores. Differentiable once in x and in each A and B.

    wanted: those of the N = B T rows whose output is read, each once; the output is 0 elsewhere. None: all.
    """
    result: Tensor = _PackedStep.apply(x, cos, sin, mask, layer, wanted, adapters.scale, *adapters.weights)
    return result


def advance_layer(
    layer: PackedLayer,
    lanes: Sequence[Sequence[Thin | None]],
    x: Float[Tensor, "B T H"],
    cos: Float[Tensor, "B T D"],
    sin: Float[Tensor, "B T D"],
    mask: Float[Tensor, "_ 1 T S"],
    store: Store | None = None,
    wanted: Int[Tensor, " M"] | None = None,
) -> Float[Tensor, "B T H"]:
    """`run_layer` without gradients, for T new columns that attend to S, those that `store` returns, or to themselves.

    lanes: of one adapter or several, what `build_thins` made; of L, lane l acts on the l-th of L equal groups of the B
    rows, so that several roles read their rows in one pass. wanted: as many rows in each group.
    """
    rows = x.reshape(-1, x.shape[-1])
    qkv_thins, o_thins, gate_up_thins, down_thins = zip(*lanes, strict=True)
    first, _ = normalize(rows, layer.input_norm, layer.epsilon)
    qkv = project_lanes(first, layer.qkv, layer.qkv_bias, qkv_thins)
    heads = split_heads(layer, qkv.view(*x.shape[:2], -1), cos, sin)
    groups = [(heads.key, heads.value)] if store is None else store(heads.key, heads.value)
    queries = heads.query.chunk(len(groups))
    found = [attend(layer, Heads(q, *group), mask)[0] for q, group in zip(queries, groups, strict=True)]
    attended = found[0] if len(found) == 1 else torch.cat(found)
    middle = project_lanes(_gather(attended, wanted), layer.o, layer.o_bias, o_thins)
    middle.add_(_gather(rows, wanted))
    second, _ = normalize(middle, layer.output_norm, layer.epsilon)
    gate_up = project_lanes(second, layer.gate_up, None, gate_up_thins)
    gate, up = gate_up.chunk(2, dim=1)
    output = project_lanes(functional.silu(gate).mul_(up), layer.down, None, down_thins).add_(middle)
    return _scatter(output, wanted, len(rows)).view(x.shape)
