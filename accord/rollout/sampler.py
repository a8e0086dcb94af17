"""Sampler: the `Generator` that Accord trains with.

Implements continuous batching: prompts enter sorted by length, a prompt that several samples share is read once,
finished rows leave the batch, waiting prompts take their place, logprobs are taken while sampling, and every sequence
has its own random stream. Where asked, the frozen trunk's states, which decoding computes anyway, come with the
rollout, so that no later pass runs those layers again, and a critic's states, computed beside them, so that its values
need no pass at all. How a batch is decoded is an engine's matter (`engines`). The
host reads what the device has drawn once a step, tokens and logprobs together. Leaves out top-p and top-k.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from accord.errors import DataError
from accord.models import Base
from accord.models.decoding import PackedDecoder
from accord.models.static_step import send
from accord.rollout.engines import Engine, OpenEngine, PackedEngine, Reopener, pad_left
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
    done: bool = False
    trunk: Tensor | None = None
    ends: Tensor | None = None


class Sampler:
    """Samples completions from a role of `base`, `batch_size` sequences side by side.

    The batch size changes speed and memory only: in float32 the tokens are those of one-by-one recomputation.
    `on_tokens`, where given, is called with the number of tokens just sampled (for a progress bar). `open_engine` opens
    what decodes each batch (by default `engines.Reopener`). With `keep_trunk` a rollout holds the trunk's states, where
    the role stands on a trunk and decoding runs packed. Where states are kept, a sequence takes one step more, in which
    its last token is read too.
    """

    def __init__(
        self,
        base: Base,
        batch_size: int = 32,
        on_tokens: Callable[[int], None] | None = None,
        open_engine: OpenEngine | None = None,
        *,
        keep_trunk: bool = False,
    ) -> None:
        self.base = base
        self.batch_size = batch_size
        self.on_tokens = on_tokens
        self.open_engine = open_engine or Reopener()
        self.keep_trunk = keep_trunk

    @torch.no_grad()
    def generate(
        self,
        role: str | None,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        critic: str | None = None,
    ) -> Rollout:
        """One completion for each prompt, with its sampling logprobs; see `types.Rollout` for shapes.

        critic: a scorer whose states come with the rollout, where decoding runs packed.

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
            keeper = self._find_keeper(role, engine, critic)
            self._decode(engine, keeper, slots, deque(rows[i] for i in order), max_new_tokens, temperature)
        rollout = assemble_rollout(
            self.base,
            prompts,
            [r.prompt_ids for r in rows],
            [r.completion_ids for r in rows],
            [r.logprobs for r in rows],
            [r.finished for r in rows],
        )
        if self._wants_trunk(role):
            rollout = _add_trunk(rollout, [r.trunk for r in rows if r.trunk is not None])
        return _add_critic_states(rollout, [r.ends for r in rows if r.ends is not None])

    def _wants_trunk(self, role: str | None) -> bool:
        """Whether the trunk's states are asked for, and there is one that `role` stands on."""
        return self.keep_trunk and self.base.split > 0 and (role is None or self.base.describe(role).on_trunk)

    def _find_keeper(self, role: str | None, engine: Engine, critic: str | None) -> PackedDecoder | None:
        """What keeps states while it decodes; None where nothing is to be kept, or nothing can be."""
        if not isinstance(engine, PackedEngine):
            return None
        if self._wants_trunk(role):
            engine.decoder.keep_trunk(self.base.split)
        engine.decoder.follow(critic)
        return engine.decoder if critic is not None or self._wants_trunk(role) else None

    def _decode(
        self,
        engine: Engine,
        keeper: PackedDecoder | None,
        slots: int,
        waiting: deque[_Sequence],
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        """Sample every waiting row to EOS or `max_new_tokens`, in place; `keeper`, if any, keeps states."""
        active: list[_Sequence] = []
        tokens = torch.empty(0, dtype=torch.long, device=self.base.device)
        while waiting or active:
            logits = []
            if active:
                following = engine.step(tokens)
                if keeper is not None:  # the last tokens of those that are done have just been read
                    active, following = _release(engine, keeper, active, following)
                logits.append(following)
            free = slots - len(active)
            if waiting and (not active or (engine.admits_while_running and free >= ADMIT_FROM * slots)):
                entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                logits.append(engine.admit([row.prompt_ids for row in entering]))
                active += entering
            if not active:
                break
            uniforms = send(torch.stack([row.uniforms[len(row.completion_ids)] for row in active]), self.base.device)
            tokens, logprobs = draw_tokens(logits[0] if len(logits) == 1 else torch.cat(logits), uniforms, temperature)
            drawn = torch.stack([tokens.double(), logprobs.double()]).tolist()  # exact, and the one wait of a step
            for row, token, logprob in zip(active, *drawn, strict=True):
                row.completion_ids.append(int(token))
                row.logprobs.append(logprob)
                row.finished = token == self.base.tokens.eos_id
                row.done = row.finished or len(row.completion_ids) == max_new_tokens
            if self.on_tokens:
                self.on_tokens(len(active))
            if keeper is None:
                active, tokens = _release(engine, None, active, tokens)


def _release(
    engine: Engine, keeper: PackedDecoder | None, active: list[_Sequence], values: Tensor
) -> tuple[list[_Sequence], Tensor]:
    """Rows that are done leave, with their states; those that stay, and their `values`, in their new order."""
    alive = [place for place, row in enumerate(active) if not row.done]
    if len(alive) == len(active):
        return active, values
    for place, row in enumerate(active):
        if keeper is not None and row.done:
            row.trunk = None if keeper.trunk is None else keeper.read_trunk(place)
            row.ends = keeper.read_ends(place, len(row.prompt_ids) - 1) if keeper.follows else None
    alive = engine.keep(alive)
    return [active[place] for place in alive], values[send(alive, values.device)]


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


def _add_trunk(rollout: Rollout, states: Sequence[Tensor]) -> Rollout:
    """The rollout with each sequence's states (T, H) in its own columns; as it is where there are none."""
    if not states:
        return rollout
    columns = rollout.prompt_ids.shape[1]
    trunk = states[0].new_zeros(*rollout.input_ids.shape, states[0].shape[1])
    trunk[rollout.attention_mask] = torch.cat(list(states))
    return replace(rollout, prompt_trunk=trunk[:, :columns], completion_trunk=trunk[:, columns:])


def _add_critic_states(rollout: Rollout, states: Sequence[Tensor]) -> Rollout:
    """The rollout with each sequence's critic's states (n + 1, H), n sampled tokens; as it is where there are none."""
    if not states:
        return rollout
    return replace(rollout, critic_states=nn.utils.rnn.pad_sequence(list(states), batch_first=True))


def count_tokens(rollout: Rollout) -> int:
    """Sampled tokens of a rollout, EOS included."""
    return int(rollout.completion_mask.sum())
