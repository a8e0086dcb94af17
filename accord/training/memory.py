"""How many sequences of a micro-batch fit into a memory budget, measured on the very base, roles and layers at hand.

Implements, for each kind of work, what is held whatever the micro-batch (weights, optimisers, cached trunk states), and
the peak of one micro-batch of n sequences of the greatest length, forward and backward, as `peak.PeakCounter` sees it;
and the choice of n. A peak is made of parts that grow with n at most in proportion (activations) and parts that do not
grow (chunks of logits), so that

    peak(m) <= peak(n) m / n    for m >= n

and a size that fits by this bound fits for certain: the choice begins with one sequence, and measures again at the size
that the last measurement allows, until that gains little. Nothing larger than the budget is ever run. Micro-batches
change no result but its rounding: losses are divided by the tokens of the whole step. Nothing depends on the memory
that happens to be free, so the same settings give the same bits. Leaves out what `SLACK` stands for.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from accord.config.schema import PpoSection
from accord.errors import ConfigError
from accord.models import Base
from accord.models.branches import PADDING, STEM
from accord.models.ensemble import Ensemble
from accord.rollout.engines import PackedEngine, open_engine
from accord.rollout.streams import draw_tokens, draw_uniforms
from accord.training.experience import TokenBatch, choose_entropy, compute_token_logprobs, compute_token_values
from accord.training.peak import PeakCounter
from accord.training.selection import EVALUATION_BATCH
from accord.training.sequences import TRUNK_BATCH_TOKENS

RUNTIME_BYTES = 650_000_000
"""Python with torch, transformers and a tokenizer before any weights; on CUDA its context."""
SLACK = 1.25
"""Resident bytes over those that tensors hold at the peak: fragments, and what operations take inside themselves."""
RETURNED_BYTES = 2**18
"""Blocks from this size on go back to the system once they are free, where there is a budget."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
LEARNING_BYTES = {"adamw": 16, "adamw_8bit": 10}
"""Beside a trainable float32 weight: its gradient, the optimiser's two moments, and the best weights so far."""
CHECKPOINT_BYTES = 24
"""For a trainable weight while a checkpoint is written: weight and moments as copies, and again as a file's bytes."""
WORTHWHILE = 1.25
"""A measurement at a larger size is made only where it may gain this factor."""


@dataclass(frozen=True)
class Workload:
    """One kind of work, `what` in words.

    held_bytes: there whatever the micro-batch. passing_bytes: the most that other passes of the work take, none of them
    while a micro-batch runs. measure: runs a micro-batch of so many sequences, returns its bytes at the peak.
    """

    what: str
    held_bytes: int
    passing_bytes: int
    measure: Callable[[int], int]

    def expect(self, rows: int) -> int:
        """Bytes that the process is expected to hold at the most with micro-batches of `rows`."""
        return round(RUNTIME_BYTES + self.held_bytes + SLACK * max(self.passing_bytes, self.measure(rows)))


@dataclass(frozen=True)
class Fit:
    """The micro-batch that was chosen, and the bytes that the process is expected to hold with it at the most."""

    rows: int
    expected_bytes: int


def fit_rows(load: Workload, budget_gb: float, at_most: int) -> Fit:
    """The largest micro-batch, `at_most` at most, that is known to fit within the budget.

    Raises:
        ConfigError: not even one sequence fits; it says how much is needed.
    """
    fixed = RUNTIME_BYTES + load.held_bytes
    budget, room = budget_gb * 1e9, budget_gb * 1e9 - fixed
    expected = fixed + SLACK * load.passing_bytes
    rows, peak = 1, SLACK * load.measure(1) if expected <= budget else 0.0
    while expected <= budget and peak <= rows * room:
        fitting = min(at_most, int(rows * room // peak))
        if fitting == at_most or fitting < WORTHWHILE * rows:
            return Fit(fitting, round(max(expected, fixed + peak * fitting / rows)))
        rows, peak = fitting, SLACK * load.measure(fitting)
    needed = f"{math.ceil(max(expected, fixed + peak) / 1e7) / 100:.2f}"
    raise ConfigError(
        f"{load.what} needs {needed} GB for a single sequence",
        where="compute.memory_gb",
        mend=f"allow {needed} or more, set compute.checkpoint_gradients, or shorten the sequences",
    )


def return_freed_memory() -> None:
    """Tell glibc to give every larger block back as soon as it is free; elsewhere nothing.

    `load_base` has it keep them, which is 5 % faster, but leaves holes: resident was up to twice what tensors held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, RETURNED_BYTES)


def measure_peak(trained: Iterable[nn.Parameter], work: Callable[[], object]) -> int:
    """Bytes at the peak of `work`, beside gradients of `trained`, which are there before and cleared afterwards."""
    parameters = list(trained)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with PeakCounter() as counter:
            work()
    finally:
        for parameter in parameters:
            parameter.grad = None
    return counter.peak_bytes


def weigh_ppo(
    base: Base, policy: str, critic: str, cfg: PpoSection, *, prompt_tokens: int, new_tokens: int
) -> Workload:
    """PPO: the policy's pass and the critic's on one micro-batch, beside a rollout's states and both optimisers."""
    states_bytes = _weigh_trunk(base, cfg.prompts_per_update * (prompt_tokens + new_tokens))
    states_bytes += cfg.prompts_per_update * new_tokens * base.hidden_size * base.dtype.itemsize
    learned = [*base.parameters(policy).values()]
    learned += base.head(critic).parameters() if cfg.critic == "head" else base.parameters(critic).values()

    def measure(rows: int) -> int:
        def work() -> None:
            batch = _build_batch(base, rows, prompt_tokens, new_tokens)
            batch = replace(batch, trunk=base.compute_trunk(batch.input_ids, batch.attention_mask))
            logprobs, entropy = compute_token_logprobs(base, policy, batch, 1.0, entropy=choose_entropy(cfg))
            loss = logprobs.sum() if cfg.ent_coef == 0 else logprobs.sum() + cfg.ent_coef * entropy.sum()
            torch.autograd.backward(loss)
            if cfg.critic == "adapter":
                torch.autograd.backward(compute_token_values(base, critic, batch).sum())

        return measure_peak(learned, work)

    @torch.no_grad()
    def judge() -> None:
        compute_token_logprobs(base, policy, _build_batch(base, EVALUATION_BATCH, prompt_tokens, new_tokens), 1.0)

    passing = max(states_bytes + measure_peak((), judge), CHECKPOINT_BYTES * _count(learned))
    held = _weigh_weights(base) + LEARNING_BYTES[base.optimizer] * _count(learned) + states_bytes
    return Workload("PPO", held, passing, measure)


def weigh_reward_model(ensemble: Ensemble, *, tokens: int, rows_a_pair: int, stored_tokens: int) -> Workload:
    """A fit of one or more reward models on pairs, beside the cached trunk of `stored_tokens`.

    A pair is one row of `tokens` with both answers, or `rows_a_pair` = 2 rows of at most `tokens` each.
    """
    base, learned = ensemble.base, [*ensemble.parameters().values()]

    def measure(pairs: int) -> int:
        def work() -> None:
            ids = torch.zeros((pairs * rows_a_pair, tokens), dtype=torch.long, device=base.device)
            branches = torch.full_like(ids, STEM)
            branches[:, 0] = PADDING
            for branch in range(1, 4 - rows_a_pair):
                branches[:, tokens * branch // 3 :] = branch
            trunk = base.compute_trunk(ids, branches >= STEM)
            torch.autograd.backward(ensemble.compute_branch_scores(ids, branches, trunk).sum())

        return measure_peak(learned, work)

    passing = max(_measure_reading(base, tokens), CHECKPOINT_BYTES * _count(learned))
    held = _weigh_weights(base) + LEARNING_BYTES[base.optimizer] * _count(learned) + _weigh_trunk(base, stored_tokens)
    return Workload("a reward model", held, passing, measure)


def weigh_sft(base: Base, role: str, *, tokens: int, new_tokens: int, stored_tokens: int) -> Workload:
    """Fine-tuning on `tokens` a sequence, `new_tokens` of them a completion's, beside the trunk of `stored_tokens`."""
    on_trunk, learned = base.describe(role).on_trunk, [*base.parameters(role).values()]

    def measure(rows: int) -> int:
        def work() -> None:
            batch = _build_batch(base, rows, tokens - new_tokens, new_tokens)
            trunk = base.compute_trunk(batch.input_ids, batch.attention_mask) if on_trunk else None
            logprobs, _ = base.compute_logprobs(
                role, batch.input_ids, batch.attention_mask, new_tokens, 1.0, trunk, entropy="constant"
            )
            torch.autograd.backward(logprobs.sum())

        return measure_peak(learned, work)

    passing = max(_measure_reading(base, tokens), CHECKPOINT_BYTES * _count(learned))
    stored = _weigh_trunk(base, stored_tokens) if on_trunk else 0
    return Workload(
        "fine-tuning",
        _weigh_weights(base) + LEARNING_BYTES[base.optimizer] * _count(learned) + stored,
        passing,
        measure,
    )


def weigh_sampling(
    base: Base, role: str | None, *, prompt_tokens: int, new_tokens: int, critic: str | None = None
) -> Workload:
    """Sampling from `role`: reading the prompts, the cache at its full length, one step; beside what learns meanwhile.

    critic: whose rows run along, if any.
    An engine whose cache grows is given prompts of nearly the full length, so that its cache is as long as it gets.
    """

    @torch.no_grad()
    def measure(rows: int) -> int:
        def work() -> None:
            with base.activate(role) as model:
                engine = open_engine(base, model, rows, prompt_tokens + new_tokens)
                if isinstance(engine, PackedEngine):
                    engine.decoder.follow(critic)
                    if base.split:
                        engine.decoder.keep_trunk(base.split)
                read = prompt_tokens if engine.admits_while_running else prompt_tokens + new_tokens - 1
                tokens = draw(engine.admit([[row % base.vocabulary] * read for row in range(rows)]))
                draw(engine.step(tokens))

        def draw(logits: Tensor) -> Tensor:
            return draw_tokens(logits, draw_uniforms(range(len(logits)), 1)[:, 0], 1.0)[0]

        return measure_peak((), work)

    learning = sum(_count(base.parameters(name).values()) for name in base.roles() if name in ("policy", "critic"))
    return Workload("sampling", _weigh_weights(base) + LEARNING_BYTES[base.optimizer] * learning, 0, measure)


def _build_batch(base: Base, rows: int, prompt_tokens: int, new_tokens: int) -> TokenBatch:
    """`rows` sequences of one length, but for a column of padding, so that a mask is built as for rows that differ."""
    ids = torch.zeros((rows, prompt_tokens + new_tokens), dtype=torch.long, device=base.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    index = torch.arange(rows, device=base.device)
    return TokenBatch(index, ids, mask, ids[:, -new_tokens:], mask[:, -new_tokens:], None)


@torch.no_grad()
def _measure_reading(base: Base, tokens: int) -> int:
    """Bytes at the peak of a pass without gradients over `TRUNK_BATCH_TOKENS`, in sequences of `tokens`."""

    def work() -> None:
        batch = _build_batch(base, 1, tokens - 1, 1)
        base.compute_hidden(None, base.build_inputs(batch.input_ids, batch.attention_mask))

    return measure_peak((), work) * max(1, TRUNK_BATCH_TOKENS // tokens)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _weigh_weights(base: Base) -> int:
    """All weights there are, and once more those that were packed: the file they came from stays mapped."""
    models = {id(model): model for model in (base.model, *(base.describe(role).model for role in base.roles()))}
    mapped = sum(layer.qkv.nbytes + layer.gate_up.nbytes for layer in base.packed)
    return mapped + sum(parameter.nbytes for model in models.values() for parameter in model.parameters())


def _weigh_trunk(base: Base, tokens: int) -> int:
    """Cached states of so many tokens."""
    return tokens * base.hidden_size * base.dtype.itemsize if base.split else 0
