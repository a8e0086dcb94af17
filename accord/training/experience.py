"""What PPO knows of a rollout, and how it is cut into minibatches and micro-batches.

Implements the data order (prompts shuffled per pass by a derived seed), the one pass over the frozen trunk, the one
over a fresh rollout for logprobs and values, and micro-batches trimmed to their longest sequence. Leaves out every
objective (`accord/losses`) and the loop itself (`ppo`).

The old logprobs are the trainer's own recomputation, or by choice the sampler's. Recomputed, the ratio of the first
pass is exactly what the update changed (1 before any update), and no difference of kernels between cached decoding and
a full pass leaks into the gradient. The sampler's spare a pass. Either way it is checked on every rollout that the two
agree (`checks.check_sampler_gap`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord import distributed
from accord.config.schema import PpoSection, SampleSection
from accord.functional import EntropyUse, TokenLogprobs
from accord.models import Base
from accord.models.lanes import compute_hidden_of
from accord.types import Generator, Prompt, ReadRollout, Rollout, derive_seed


@dataclass(frozen=True)
class TokenBatch:
    """b rows of a rollout without the columns that are padding in all of them: p prompt and c completion columns.

    input_ids, attention_mask (b, p + c); completion_ids, mask (b, c); trunk (b, p + c, H) or None.
    """

    rows: Int[Tensor, " b"]
    input_ids: Int[Tensor, "b T"]
    attention_mask: Bool[Tensor, "b T"]
    completion_ids: Int[Tensor, "b c"]
    mask: Bool[Tensor, "b c"]
    trunk: Float[Tensor, "b T H"] | None

    def take(self, values: Tensor) -> Tensor:
        """The rows and columns of this batch from a per-token tensor of the whole rollout: (B, C, *) -> (b, c, *)."""
        return values[self.rows, : self.mask.shape[1]]

    def put(self, target: Tensor, values: Tensor) -> None:
        """Inverse of `take`: write (b, c, *) into its place in the rollout's (B, C, *), 0 where masked."""
        mask = self.mask.view(*self.mask.shape, *[1] * (values.dim() - 2))
        target[self.rows, : self.mask.shape[1]] = torch.where(mask, values.to(target.dtype), 0.0)


@dataclass(frozen=True)
class Experience:
    """A rollout with what was true of it before the update; each (B, C), float32, 0 where masked.

    logprobs, entropy: of the policy that sampled it, in nats. ref_logprobs: of the reference. values: the
    critic's V before each token. trunk (B, P + C, H) or None: the frozen layers' output, shared by every later pass.
    critic_states (B, C, H): what the critic's head reads, in the base's dtype, where the head alone learns; else None.
    """

    rollout: Rollout
    trunk: Float[Tensor, "B T H"] | None
    logprobs: Float[Tensor, "B C"]
    entropy: Float[Tensor, "B C"]
    ref_logprobs: Float[Tensor, "B C"]
    values: Float[Tensor, "B C"]
    critic_states: Float[Tensor, "B C H"] | None = None


def take_prompts(prompts: Sequence[Prompt], start: int, count: int, seed: int) -> list[Prompt]:
    """Prompts `start` to `start + count` of an endless stream: all prompts once a pass, each pass in its own order.

    A pure function of its arguments, so the data cursor of a checkpoint is one number.
    """
    taken = []
    order: list[int] = []
    current = -1
    for position in range(start, start + count):
        index, place = divmod(position, len(prompts))
        if index != current:
            current, order = index, list(range(len(prompts)))
            random.Random(derive_seed(seed, "order", index)).shuffle(order)
        taken.append(prompts[order[place]])
    return taken


def sample_rollout(
    generator: Generator,
    policy: str,
    prompts: Sequence[Prompt],
    cfg: PpoSection,
    sample: SampleSection,
    *,
    update: int,
    seed: int,
    critic: str | None = None,
) -> Rollout:
    """The rollout of update `update` (from 1): the next prompts of the stream, each sequence with a seed of its own.

    With `cfg.values` "sampler" it brings the states of `critic`, where the generator can.
    """
    count = cfg.prompts_per_update
    options: dict[str, Any] = {} if critic is None or cfg.values == "pass" else {"critic": critic}
    return generator.generate(
        policy,
        take_prompts(prompts, (update - 1) * count, count, seed),
        seeds=[derive_seed(seed, "rollout", update, i) for i in range(count)],
        max_new_tokens=sample.max_new_tokens,
        temperature=sample.temperature,
        **options,
    )


def iterate_micro_batches(rollout: Rollout, trunk: Tensor | None, rows: Tensor, size: int) -> Iterator[TokenBatch]:
    """Cut this process's share of `rows` into micro-batches of `size`, each trimmed to its longest rows.

    Rows are sorted by length first: shares weigh the same, and little of a micro-batch is padding. Positions come from
    the mask, so trimming changes the work and not the result. Every process gets equally many: one that would have a
    micro-batch less gets one of another's rows besides whose `mask` is all False, so that nothing of it counts.
    """
    columns = rollout.prompt_ids.shape[1]
    lengths = rollout.completion_mask.sum(1) + rollout.prompt_mask.sum(1)
    order = rows[torch.argsort(lengths[rows].cpu(), stable=True).to(rows.device)]
    for places, counts in distributed.share_rounds(range(len(order)), size):
        chunk = order[list(places)]
        first = columns - int(rollout.prompt_mask[chunk].sum(1).max())
        width = int(rollout.completion_mask[chunk].sum(1).max())
        ids = rollout.completion_ids[chunk, :width]
        mask = rollout.completion_mask[chunk, :width]
        yield TokenBatch(
            rows=chunk,
            input_ids=torch.cat([rollout.prompt_ids[chunk, first:], ids], dim=1),
            attention_mask=torch.cat([rollout.prompt_mask[chunk, first:], mask], dim=1),
            completion_ids=ids,
            mask=mask if counts else torch.zeros_like(mask),
            trunk=None if trunk is None else trunk[chunk, first : columns + width],
        )


def iterate_minibatches(sequences: int, minibatches: int, seed: int) -> Iterator[Tensor]:
    """A permutation of the rollout's rows, cut into `minibatches` equal parts: one optimiser step each."""
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(seed))
    yield from order.chunk(minibatches)


def compute_token_logprobs(
    base: Base,
    role: str | None,
    batch: TokenBatch,
    temperature: float,
    *,
    entropy: EntropyUse = "constant",
    states: Float[Tensor, "b c H"] | None = None,
) -> TokenLogprobs:
    """(log pi(y_t | x, y_<t), entropy of pi(. | x, y_<t)), both (b, c) in nats at the sampling temperature.

    `role` None is the reference. Gradients flow where the caller has them on; through the entropy only where asked.
    states: the role's hidden states before each token, where the caller has them.
    """
    return base.compute_logprobs(
        role, batch.input_ids, batch.attention_mask, batch.mask.shape[1], temperature,
        trunk=batch.trunk, entropy=entropy, states=states,
    )  # fmt: skip


@torch.no_grad()
def compute_states_of(base: Base, roles: Sequence[str | None], batch: TokenBatch) -> list[Float[Tensor, "b d H"]]:
    """Each role's hidden states before each completion token and after the last column, d = c + 1, in one pass.

    Column t + 1 knows token t. Those behind a row's last real token mean nothing.
    """
    first = batch.input_ids.shape[1] - batch.mask.shape[1] - 1
    wanted = batch.attention_mask.clone()
    wanted[:, :first] = False
    inputs = base.build_inputs(batch.input_ids, batch.attention_mask)
    return [hidden[:, first:] for hidden in compute_hidden_of(base, roles, inputs, batch.trunk, wanted=wanted)]


def choose_entropy(cfg: PpoSection) -> EntropyUse:
    """What a policy's pass of an update needs of the entropy: its gradient where it is rewarded, else nothing."""
    return "learns" if cfg.ent_coef > 0 else "unread"


def compute_token_values(
    base: Base, critic: str, batch: TokenBatch, states: Float[Tensor, "B C H"] | None = None
) -> Float[Tensor, "b c"]:
    """V of the state before each completion token, (b, c) float32; from the rollout's `critic_states` where given."""
    if states is not None:
        return base.head(critic)(batch.take(states))
    last = batch.mask.shape[1]
    return base.compute_values(critic, batch.input_ids, batch.attention_mask, last, trunk=batch.trunk)


@torch.no_grad()
def compute_trunk(base: Base, rollout: Rollout, micro_batch_size: int) -> Float[Tensor, "B T H"] | None:
    """The frozen layers' output for the whole rollout, as its sampler kept it or anew; None where `base.split == 0`."""
    if base.split == 0:
        return None
    if (kept := rollout.trunk) is not None:
        return kept
    shape = (*rollout.input_ids.shape, base.hidden_size)
    states = torch.zeros(shape, dtype=base.dtype, device=base.device)
    for rows in distributed.share(torch.arange(len(rollout), device=base.device).split(micro_batch_size)):
        part = base.compute_trunk(rollout.input_ids[rows], rollout.attention_mask[rows])
        assert part is not None, "a split base computes a trunk"
        states[rows] = part
    distributed.sum_tensors(states)
    return states


@torch.no_grad()
def read_rollout(
    base: Base,
    role: str | None,
    rollout: Rollout,
    *,
    temperature: float,
    micro_batch_size: int,
    trunk: Tensor | None,
    entropy: EntropyUse = "constant",
) -> TokenLogprobs:
    """(logprobs, entropy) of a rollout's tokens under `role`, None for the frozen base; (B, C), 0 where masked."""
    shape = rollout.completion_mask.shape
    found = TokenLogprobs(*(torch.zeros(shape, device=base.device) for _ in range(2)))
    for batch in iterate_micro_batches(rollout, trunk, torch.arange(len(rollout)), micro_batch_size):
        for whole, part in zip(
            found, compute_token_logprobs(base, role, batch, temperature, entropy=entropy), strict=True
        ):
            batch.put(whole, part)
    distributed.sum_tensors(*found)
    return found


@torch.no_grad()
def compute_experience(
    base: Base,
    rollout: Rollout,
    *,
    policy: str,
    critic: str,
    reference: str | None,
    temperature: float,
    micro_batch_size: int,
    trust_sampler: bool = False,
    keep_critic_states: bool = False,
) -> Experience:
    """Every no-gradient pass over a fresh rollout: the trunk once, then policy, reference and critic on top, in one.

    With `trust_sampler` the policy's logprobs are those it was sampled with, and the entropy is their negative, whose
    mean over samples is the entropy's: H = E[-log pi(y)]. `keep_critic_states`: where the critic's adapter does not
    learn. Its states are kept, and those at the rows' ends go with the rollout, for a reward model of that adapter.
    States that the rollout brings of the critic are taken as they are.
    """
    trunk = compute_trunk(base, rollout, micro_batch_size)
    shape = rollout.completion_mask.shape
    speakers: dict[str | None, EntropyUse] = {reference: "unread"}
    if not trust_sampler:
        speakers[policy] = "constant"
    found = {role: TokenLogprobs(*(torch.zeros(shape, device=base.device) for _ in range(2))) for role in speakers}
    values = torch.zeros(shape, device=base.device)
    states = values.new_zeros((*shape, base.hidden_size), dtype=base.dtype)
    ends = states.new_zeros(len(rollout), base.hidden_size)
    brought = rollout.critic_states
    together: list[str | None] = [*filter(base.speaks_plainly, speakers), *([critic] if brought is None else [])]
    for batch in iterate_micro_batches(rollout, trunk, torch.arange(len(rollout)), micro_batch_size):
        hidden = dict(zip(together, compute_states_of(base, together, batch), strict=True)) if together else {}
        if brought is not None:
            hidden[critic] = brought[batch.rows, : batch.mask.shape[1] + 1]
        for role, use in speakers.items():
            before = hidden[role][:, :-1] if role in hidden else None
            read = compute_token_logprobs(base, role, batch, temperature, entropy=use, states=before)
            for whole, part in zip(found[role], read, strict=True):
                batch.put(whole, part)
        batch.put(states, hidden[critic][:, :-1])
        batch.put(values, base.head(critic)(hidden[critic][:, :-1]))
        counted, tokens = batch.mask.any(dim=1), batch.mask.sum(dim=1)
        ends[batch.rows[counted]] = hidden[critic][counted, tokens[counted]]
    distributed.sum_tensors(*(tensor for pair in found.values() for tensor in pair), values, states, ends)
    if trust_sampler:
        logprobs = rollout.logprobs.masked_fill(~rollout.completion_mask, 0.0)
        entropy = -logprobs
    else:
        logprobs, entropy = found[policy]
    if keep_critic_states:
        rollout = ReadRollout.from_rollout(rollout, {base.describe(critic).adapter or critic: ends})
    kept = states if keep_critic_states else None
    return Experience(rollout, trunk, logprobs, entropy, found[reference].logprobs, values, kept)
