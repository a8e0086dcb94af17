"""How fast this machine runs this model, timed on one decoder layer of its shape before any weights are loaded.

Implements five timings of about a second in all: reading, training on and sampling with one layer, and reading and
training on the rows of logits. A layer of the model's own shape tells more than a matmul rate does: small matrices, the
attention and the norms reach a share of the peak that differs from model to model. Leaves out what a stage does with
these speeds (`estimate`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from accord.errors import ModelError
from accord.models import attention
from accord.models.loading import DTYPES, find_source

ROW_TOKENS = 96
"""Tokens in a row that is read while timing."""
DECODED_ROWS = 32
"""Rows that are sampled side by side while timing."""
PASS_FLOPS = 2e10
"""Floating-point operations that a timed pass may cost, so that a large model takes no longer than a small one."""
LEAST_SECONDS = 0.05
"""Each pass is repeated for so long, at least twice, and the fastest counts: noise only ever slows a machine down."""


@dataclass(frozen=True)
class Speed:
    """Seconds a token, of one decoder layer or of its row of logits, as timed on this machine.

    read: forward. trained: forward and backward to the layer's input, the weights frozen, as with adapters. decoded:
    one sampled token of `DECODED_ROWS` rows side by side, in one layer on top of a cache; decoded_head: its logits.
    """

    read_layer: float
    trained_layer: float
    decoded_layer: float
    read_head: float
    trained_head: float
    decoded_head: float


def measure_speed(name: str, *, dtype: str, device: str, threads: int) -> Speed:
    """Time one layer and the head of the model `name` in `dtype`; weights are zeros, so no file is read.

    device: as the setting `compute.device`. threads: CPU threads, 0: as they are.

    Raises:
        ModelError: the model's configuration cannot be read.
    """
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    with _threads(threads):
        model = _build_layer(name, dtype, place)
        head = model.get_output_embeddings()
        body = model.base_model
        layer_weights = sum(p.numel() for p in body.parameters()) - model.get_input_embeddings().weight.numel()
        rows = _fit_rows(layer_weights)
        width = model.config.get_text_config().hidden_size
        states = torch.zeros(rows, ROW_TOKENS, width, dtype=model.dtype, device=place)
        few = torch.zeros(_fit_rows(head.weight.numel()), ROW_TOKENS, width, dtype=model.dtype, device=place)

        def read(module: Callable[[Tensor], Any], x: Tensor) -> None:
            with torch.no_grad():
                module(x)

        def train(module: Callable[[Tensor], Tensor], x: Tensor) -> None:
            leaf = x.clone().requires_grad_()
            module(leaf).sum().backward()

        def layer(x: Tensor) -> Tensor:
            result: Tensor = body(inputs_embeds=x, use_cache=False).last_hidden_state
            return result

        tokens, logits = rows * ROW_TOKENS, len(few) * ROW_TOKENS
        one = states.new_zeros(DECODED_ROWS, 1, width)
        return Speed(
            read_layer=_time(lambda: read(layer, states), place) / tokens,
            trained_layer=_time(lambda: train(layer, states), place) / tokens,
            decoded_layer=_time(_build_step(model, one), place) / DECODED_ROWS,
            read_head=_time(lambda: read(head, few), place) / logits,
            trained_head=_time(lambda: train(head, few), place) / logits,
            decoded_head=_time(lambda: read(head, one), place) / DECODED_ROWS,
        )


def _build_layer(name: str, dtype: str, place: torch.device) -> Any:
    """The model with one decoder layer and zeros for weights, frozen, with the attention that `load_base` would use."""
    source = find_source(name)
    implementation = attention.register() if dtype == "bfloat16" and place.type == "cpu" else None
    try:
        config = AutoConfig.from_pretrained(source)
        text = config.get_text_config()
        text.num_hidden_layers = 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[-1:]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], attn_implementation=implementation)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"cannot build one layer of it: {reason}", where=f"model {name!r}", mend="check it") from error
    model = model.to_empty(device=place).eval().requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    return model


def _build_step(model: Any, one: Tensor) -> Callable[[], None]:
    """One decoding step of one layer on top of `ROW_TOKENS` cached tokens, which puts the cache back as it was."""
    cache = DynamicCache(config=model.config)
    rows, _, width = one.shape
    with torch.no_grad():
        model.base_model(inputs_embeds=one.new_zeros(rows, ROW_TOKENS, width), past_key_values=cache, use_cache=True)

    def step() -> None:
        with torch.no_grad():
            model.base_model(inputs_embeds=one, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _fit_rows(weights: int) -> int:
    """Rows of `ROW_TOKENS` whose product with so many weights costs `PASS_FLOPS`, between 1 and 16."""
    return min(16, max(1, math.floor(PASS_FLOPS / (2 * max(weights, 1) * ROW_TOKENS))))


def _time(work: Callable[[], None], place: torch.device) -> float:
    """The fastest of several runs, in seconds, after one that does not count."""
    work()
    best, started, runs = float("inf"), time.perf_counter(), 0
    while runs < 2 or time.perf_counter() - started < LEAST_SECONDS:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        before = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - before)
        runs += 1
    return best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads; 0: as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
