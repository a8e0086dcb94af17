"""Log-probability of given tokens and entropy of the distribution they come from, in one lean pass over the logits.

Implements softmax with one temperature, in float32 at least, whatever the precision of the logits. Works on a few rows
at a time and keeps for the backward pass only the logits themselves and two numbers a row, where plain autograd would
keep several float32 copies of (B, T, V); given the head's matrix, not even the logits (`compute_head_logprobs`). Leaves
out top-p and top-k: truncated sampling has no place in an optimiser.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from accord.errors import DataError

CHUNK_ELEMENTS = 2**22
"""Logits that are held in float32 at one time (16 MiB)."""


EntropyUse = Literal["learns", "constant", "unread"]
"""Of the entropy: gradients flow through it; it is a number to be shown; nobody reads it, and it is NaN."""


class TokenLogprobs(NamedTuple):
    """What `compute_logprobs` returns: log p of each given token and entropy at its position, (B, T) each, in nats."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]


def compute_head_logprobs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    ids: Int[Tensor, " N"],
    temperature: float | int = 1.0,
    *,
    entropy: EntropyUse = "learns",
) -> TokenLogprobs:
    """`compute_logprobs` of the logits hidden W^T, which are never all there at once; W is frozen.

    The forward pass also computes what the backward pass needs, since it has the probabilities in hand: with
    m = sum_j p_j w_j, temperature * d log p_i / dh = w_i - m, temperature * dH / dh = -sum_j p_j (log p_j + H) w_j.

    hidden (N, H), weight (V, H) without infinite products, ids (N,) -> both (N,), float32 (float64 in float64).
    Differentiable once in `hidden`. An entropy that does not learn spares a product with W; one that nobody reads, two
    passes over the logits.

    Raises:
        DataError: the shapes do not match, or `temperature` is not above 0.
    """
    _check(hidden.shape[:-1], ids, temperature)
    return TokenLogprobs(*_HeadLogprobs.apply(hidden, weight, ids, temperature, entropy))


def compute_logprobs(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float | int = 1.0
) -> TokenLogprobs:
    """log p(id) and entropy of p = softmax(logits / temperature).

    log p_i = z_i - log sum_j exp(z_j) with z = logits / temperature, and H = -sum_j p_j log p_j, in nats. A logit of
    -infinity is a forbidden token: p = 0, nothing added to H, gradient 0. First derivatives in closed form:
    d log p_i / dz_j = [i = j] - p_j and dH / dz_j = -p_j (log p_j + H).

    logits (B, T, V) of any floating type, column t predicting ids[:, t]; ids (B, T) -> both (B, T), float32 (float64
    for logits in float64). Differentiable once in `logits`.

    Raises:
        DataError: the shapes do not match, or `temperature` is not above 0.
    """
    _check(logits.shape[:-1], ids, temperature)
    logprobs, entropy = _LeanLogprobs.apply(logits.flatten(0, -2), ids.flatten(), temperature)
    return TokenLogprobs(logprobs.view(ids.shape), entropy.view(ids.shape))


def _check(rows: torch.Size, ids: Tensor, temperature: float) -> None:
    if not temperature > 0:
        raise DataError(f"temperature is {temperature}", where="sample.temperature", mend="choose a number above 0")
    if rows != ids.shape:
        raise DataError(
            f"{tuple(rows)} distributions do not speak of ids {tuple(ids.shape)}",
            where="compute_logprobs",
            mend="give one row of logits for each id",
        )


class _HeadLogprobs(torch.autograd.Function):
    """`compute_head_logprobs`. Saves one or two (N, H), the derivatives of log p and of H."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, use: EntropyUse
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(ids), dtype=wide)
        entropy = torch.full_like(logprobs, torch.nan)
        learns = ctx.needs_input_grad[0]
        slopes = hidden.new_empty((1 + (use == "learns"), *hidden.shape) if learns else 0)
        for rows in _row_chunks(len(ids), len(weight)):
            logits = torch.nn.functional.linear(hidden[rows], weight)
            if temperature != 1:
                logits = logits.to(wide).div_(temperature)
            p = torch.softmax(logits, dim=1, dtype=wide)
            largest, place = logits.max(dim=1)
            norm = largest - p.gather(1, place[:, None])[:, 0].log()
            logprobs[rows] = logits.gather(1, ids[rows, None])[:, 0] - norm
            if learns:
                torch.sub(weight[ids[rows]], p.to(hidden.dtype) @ weight, out=slopes[0, rows])
            if use == "unread":
                continue
            logits = logits.to(wide)
            entropy[rows] = norm - torch.linalg.vecdot(p, logits)
            if learns and use == "learns":
                spread = logits.sub_(norm[:, None]).add_(entropy[rows, None]).mul_(p)
                torch.matmul(spread.to(hidden.dtype), weight, out=slopes[1, rows]).neg_()
        ctx.save_for_backward(slopes)
        ctx.temperature = temperature
        if use != "learns":
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        weights = torch.stack(grads[: len(slopes)])[:, :, None] / ctx.temperature
        return (slopes * weights).sum(dim=0).to(slopes.dtype), None, None, None, None


class _LeanLogprobs(torch.autograd.Function):
    """`compute_logprobs` on N = B * T rows. Saves logits (no copy), ids and the entropy."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = logits.new_empty(len(ids), dtype=wide)
        entropy = torch.empty_like(logprobs)
        for rows in _row_chunks(*logits.shape):
            log_p = _log_softmax(logits[rows], temperature, wide)
            logprobs[rows] = log_p.gather(1, ids[rows, None]).squeeze(1)
            entropy[rows] = -(log_p.exp() * _finite(log_p)).sum(dim=1)
        ctx.save_for_backward(logits, ids, entropy)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, entropy = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _row_chunks(*logits.shape):
            log_p = _log_softmax(logits[rows], ctx.temperature, entropy.dtype)
            p = log_p.exp()
            slope = _finite(log_p).add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
            slope = slope.add_(grad_logprobs[rows, None]).mul_(p).neg_()
            slope.scatter_add_(1, ids[rows, None], grad_logprobs[rows, None])
            grad[rows] = (slope / ctx.temperature).to(grad.dtype)
        return grad, None, None


def _row_chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of the rows of (N, V) logits, at most CHUNK_ELEMENTS logits each, and at least one row."""
    step = max(1, CHUNK_ELEMENTS // max(1, vocabulary))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _log_softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """log softmax(logits / temperature) of a few rows, in `dtype`."""
    return torch.log_softmax(logits.to(dtype) / temperature, dim=1)


def _finite(log_p: Tensor) -> Tensor:
    """log p with -infinity made finite, so that p log p is 0 where p = 0."""
    return log_p.clamp_min(torch.finfo(log_p.dtype).min)
