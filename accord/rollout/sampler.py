"""Sampler: the `Generator` that Accord trains with.

Implements continuous batching: prompts enter sorted by length, a prompt that several samples share is read once,
finished rows leave the batch, waiting prompts take their place, logprobs are taken while sampling, and every sequence
has its own random stream. How a batch is decoded is an engine's matter (`engines`). Leaves out CUDA graphs, top-p and
top-k.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.errors import DataError
from accord.models import Base
from accord.rollout.engines import Engine, OpenEngine, open_engine, pad_left
from accord.rollout.streams import draw_tokens, draw_uniforms
from accord.types import Completion, Prompt, Rollout

ADMIT_FROM = 0.25
"""Waiting prompts enter when at least this share of the rows is free: reading several at once fills the machine."""


@dataclass
class _Sequence:
    """One sequence while it is being sampled."""

    prompt_ids: list[int]
    uniforms: Tensor
    completion_ids: list[int]
    logprobs: list[float]
    finished: bool = False


class Sampler:
    """Samples completions from a role of `base`, `batch_size` sequences side by side.

    The batch size changes speed and memory only: in float32 the tokens are those of one-by-one recomputation.
    `on_tokens`, where given, is called with the number of tokens just sampled (for a progress bar). `open_engine` opens
    what decodes each batch.
    """

    def __init__(
        self,
        base: Base,
        batch_size: int = 32,
        on_tokens: Callable[[int], None] | None = None,
        open_engine: OpenEngine = open_engine,
    ) -> None:
        self.base = base
        self.batch_size = batch_size
        self.on_tokens = on_tokens
        self.open_engine = open_engine

    @torch.no_grad()
    def generate(
        self,
        role: str | None,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> Rollout:
        """One completion for each prompt, with its sampling logprobs; see `types.Rollout` for shapes.

        Raises:
            DataError: no prompts, or not one seed a prompt.
        """
        if not prompts or len(prompts) != len(seeds):
            raise DataError(f"{len(prompts)} prompts and {len(seeds)} seeds", mend="give one seed for each prompt")
        encoded = _encode_unique(self.base, prompts)
        uniforms = draw_uniforms(seeds, max_new_tokens)
        rows = [_Sequence(encoded[p], uniforms[i], [], []) for i, p in enumerate(prompts)]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids), rows[i].prompt_ids))
        with self.base.activate(role) as model:
            slots = min(self.batch_size, len(rows))
            columns = max(len(row.prompt_ids) for row in rows) + max_new_tokens
            engine = self.open_engine(self.base, model, slots, columns)
            self._decode(engine, slots, deque(rows[i] for i in order), max_new_tokens, temperature)
        return assemble_rollout(
            self.base,
            prompts,
            [r.prompt_ids for r in rows],
            [r.completion_ids for r in rows],
            [r.logprobs for r in rows],
            [r.finished for r in rows],
        )

    def _decode(
        self, engine: Engine, slots: int, waiting: deque[_Sequence], max_new_tokens: int, temperature: float
    ) -> None:
        """Sample every waiting row to EOS or `max_new_tokens`, in place."""
        active: list[_Sequence] = []
        tokens = torch.empty(0, dtype=torch.long, device=self.base.device)
        while waiting or active:
            logits = [engine.step(tokens)] if active else []
            free = slots - len(active)
            if waiting and (not active or (engine.admits_while_running and free >= ADMIT_FROM * slots)):
                entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                logits.append(engine.admit([row.prompt_ids for row in entering]))
                active += entering
            uniforms = torch.stack([row.uniforms[len(row.completion_ids)] for row in active])
            tokens, logprobs = draw_tokens(torch.cat(logits), uniforms, temperature)
            for row, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
                row.completion_ids.append(token)
                row.logprobs.append(logprob)
                row.finished = token == self.base.tokens.eos_id
            if self.on_tokens:
                self.on_tokens(len(active))
            alive = [i for i, r in enumerate(active) if not r.finished and len(r.completion_ids) < max_new_tokens]
            if len(alive) < len(active):
                alive = engine.keep(alive)
                active, tokens = [active[i] for i in alive], tokens[alive]


def _encode_unique(base: Base, prompts: Sequence[Prompt]) -> dict[Prompt, list[int]]:
    """Token ids of each different prompt."""
    return {prompt: base.tokens.encode_prompt(prompt) for prompt in dict.fromkeys(prompts)}


def assemble_rollout(
    base: Base,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    finished: Sequence[bool],
) -> Rollout:
    """Pad B prompts on the left and B completions on the right into one `Rollout`; texts are decoded without EOS."""
    pad_id = base.tokens.pad_id
    left_ids, left_mask = pad_left(prompt_ids, pad_id)
    width = max(len(c) for c in completion_ids)
    right_ids = torch.tensor([list(c) + [pad_id] * (width - len(c)) for c in completion_ids])
    right_mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in completion_ids])
    right_logprobs = torch.tensor([list(p) + [0.0] * (width - len(p)) for p in logprobs], dtype=torch.float32)
    completions = tuple(
        Completion.from_text(base.tokens.decode(ids[:-1] if done else ids), finished=done)
        for ids, done in zip(completion_ids, finished, strict=True)
    )
    tensors = (left_ids, left_mask, right_ids, right_mask, right_logprobs, torch.tensor(list(finished)))
    return Rollout(tuple(prompts), completions, *(t.to(base.device) for t in tensors))


def count_tokens(rollout: Rollout) -> int:
    """Sampled tokens of a rollout, EOS included."""
    return int(rollout.completion_mask.sum())
