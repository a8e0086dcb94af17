"""How much work was done: floating-point operations of matrix products, and the bytes that must move.

Implements a counter of the products that a program really runs, and the closed forms of cached decoding.

Operations are counted as run: a multiply and an add are two, a product of (m, k) and (k, n) is 2 m k n. What a method
wastes (padding, logits that nobody reads, the masked half of attention) counts as reached speed, so a share of the
peak says how busy the machine was, not how clever the method is; only seconds compare methods. Bytes are the operands
and results of those products, once each: less than all traffic (norms, activations and optimiser steps are left out),
and where an operand stays in cache more than reached memory. Both are counted in the warm-up, never while timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper

aten = torch.ops.aten

PRODUCTS: dict[Any, Any] = {
    **flop_registry,
    # what torch's own table leaves out: sums into place, and the CPU's fused attention
    aten.addmm_: flop_registry[aten.addmm],
    aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(
        lambda query, key, value, *rest, out_val=None, **options: sdpa_flop(query, key, value)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(
        lambda grad, query, key, value, *rest, out_val=None, **options: sdpa_backward_flop(grad, query, key, value)
    ),
}


@dataclass(frozen=True)
class Work:
    """flops: floating-point operations of matrix products. moved_bytes: their operands and results."""

    flops: float = 0.0
    moved_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.moved_bytes + other.moved_bytes)

    def __sub__(self, other: Work) -> Work:
        return Work(self.flops - other.flops, self.moved_bytes - other.moved_bytes)

    def to_dict(self) -> dict[str, float]:
        """As JSON takes it."""
        return {"flops": self.flops, "moved_bytes": self.moved_bytes}


class WorkCounter(TorchDispatchMode):
    """While entered, adds up the matrix products that run, backward passes included, in `work`."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; count it where it is a product, and where it is made of others let those be counted."""
        options = kwargs or {}
        count = PRODUCTS.get(func._overloadpacket)
        if count is None:
            with self:
                made_of_others = func.decompose(*args, **options)
            return func(*args, **options) if made_of_others is NotImplemented else made_of_others
        result = func(*args, **options)
        touched = [leaf for leaf in tree_leaves((args, options, result)) if isinstance(leaf, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in {id(t): t for t in touched}.values())
        self.work += Work(count(*args, **options, out_val=result), moved)
        return result


class PhaseCounter:
    """Work by phase: `lap` gives what was counted since the last lap to a phase. Sampling may be left uncounted."""

    def __init__(self) -> None:
        self._counter: WorkCounter | None = None
        self._last = Work()
        self.phases: dict[str, Work] = {}

    def start(self) -> None:
        """Count from here on."""
        self._counter = WorkCounter()
        self._counter.__enter__()

    def lap(self, phase: str) -> None:
        """What was counted since the last lap belongs to `phase`; nothing where the counter is off."""
        if self._counter is not None:
            now = self._counter.work
            self.phases[phase] = self.phases.get(phase, Work()) + (now - self._last)
            self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is counted, and nothing is in the way of CUDA graphs, while open."""
        counter = self._counter
        if counter is None:
            yield
            return
        counter.__exit__(None, None, None)
        try:
            yield
        finally:
            counter.__enter__()

    def stop(self) -> None:
        """Count no more; a second call does nothing."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-shaped decoder (gated MLP, grouped-query attention) that its cost follows from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """From a transformers configuration."""
        text = config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            key_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_width=width,
            vocabulary=text.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Entries of the matrices of one layer: q, k, v, o, and the MLP's gate, up and down."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def matrix_weights(self) -> int:
        """Entries of all matrices that a token is multiplied with: the layers' and the LM head's."""
        return self.layers * self.layer_weights + self.hidden * self.vocabulary

    def count_forward_flops(self, tokens: int, context_tokens: int, head_tokens: int) -> int:
        """One forward pass: `tokens` through every layer, `head_tokens` of them through the LM head.

        2 x weights a token, and for attention 4 x heads x head_width a layer for each of `context_tokens`, the keys
        that all queries together are multiplied with (B T^2 for B dense rows of T tokens, B T (T + 1) / 2 causally).
        """
        linear = 2 * self.layers * self.layer_weights * tokens + 2 * self.hidden * self.vocabulary * head_tokens
        return linear + 4 * self.layers * self.heads * self.head_width * context_tokens

    def count_decoding(self, prompt_tokens: Sequence[int], new_tokens: Sequence[int], element_bytes: int) -> Work:
        """The least that sampling row i's `new_tokens[i]` behind its `prompt_tokens[i]` takes, all rows side by side.

        Operations: the prompts once, then each new token but the last once, with as many keys as there are before it.
        Bytes: every weight once a step (the longest row's number of steps, the first of which reads the prompts), and
        for each row's step the keys and values before it, read once, in elements of `element_bytes`.
        """
        steps = max(new_tokens)
        tokens = sum(p + n - 1 for p, n in zip(prompt_tokens, new_tokens, strict=True))
        context = sum((p + n - 1) * (p + n) // 2 for p, n in zip(prompt_tokens, new_tokens, strict=True))
        read = sum(p + t for p, n in zip(prompt_tokens, new_tokens, strict=True) for t in range(1, n))
        cache = 2 * self.layers * self.key_heads * self.head_width * read
        flops = self.count_forward_flops(tokens, context, sum(new_tokens))
        return Work(float(flops), float(element_bytes * (steps * self.matrix_weights + cache)))
