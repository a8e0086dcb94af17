"""Micro-batches for `[compute] memory_gb`: the largest that fit, where there is a budget; else as they are set.

Implements one function a kind of work, each of which weighs the longest sequence that the work has, and a check of the
budget before any work. Leaves out the weighing (`training.memory`). What is chosen is handed to trainers and never
hashed into a key, for it changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from accord.config import Config
from accord.errors import ConfigError
from accord.models import Base, LoraSettings
from accord.models.ensemble import Ensemble, add_ensemble
from accord.models.recompute import recompute_layers
from accord.training.memory import Workload, fit_rows, weigh_ppo, weigh_reward_model, weigh_sampling, weigh_sft
from accord.training.ppo import add_critic
from accord.training.sequences import encode_tree
from accord.training.sft import MICRO_BATCH_SIZE
from accord.types import Completion, Preference, Prompt

SHORTEST_PROMPT_TOKENS = 8
"""Of a prompt that is not known yet: what the check before any work counts on."""


def check_budget(base: Base, config: Config, lora: LoraSettings) -> None:
    """Refuse a budget that this machine has not, or in which no policy could be sampled, judged or trained.

    Prompts are not read yet, so the check counts on short ones; the stages check again with theirs. `base` has no roles
    before and afterwards.

    Raises:
        ConfigError: the budget is above the memory of the device, or a single sequence does not fit.
    """
    budget, new = config.compute.memory_gb, config.sample.max_new_tokens
    if not budget:
        return
    there = _read_device_bytes(base.device) / 1e9
    if budget * config.compute.processes > there:
        raise ConfigError(
            f"{config.compute.processes} x {budget:g} GB, where the device has {there:.1f}",
            where="compute.memory_gb",
            mend=f"allow at most {there / config.compute.processes:.1f}",
        )
    size = {"prompt_tokens": SHORTEST_PROMPT_TOKENS, "new_tokens": new}
    ensemble = add_ensemble(
        base, "proxy", config.reward_model.members, own_layers=config.reward_model.own_layers, lora=lora, seed=0
    )
    try:
        pair = weigh_reward_model(ensemble, tokens=SHORTEST_PROMPT_TOKENS + new, rows_a_pair=1, stored_tokens=0)
        fit_rows(pair, budget, 1)
        full, everywhere = config.model.adapter == "full", config.model.adapter == "lora_all"
        base.add_policy("policy", lora=None if full else lora, seed=0, every_layer=everywhere)
        add_critic(base, "critic", config.ppo, lora=lora, seed=0, proxy="proxy")
        if config.compute.checkpoint_gradients:
            recompute_layers(base)
        fit_rows(weigh_sampling(base, "policy", **size, critic=_find_follower(base, config)), budget, 1)
        fit_rows(_weigh_policy(base, config, **size), budget, 1)
    finally:
        for role in reversed(base.roles()):
            base.remove(role)


def choose_sampling_batch(base: Base, config: Config) -> int:
    """Sequences decoded side by side: `sample.batch_size`, or as many as fit."""
    budget, sample = config.compute.memory_gb, config.sample
    if not budget:
        return sample.batch_size
    speakers = [role for role in base.roles() if base.describe(role).kind == "policy"]
    whole = [role for role in speakers if base.describe(role).lora is None]  # these decode with a cache that grows
    role = next(iter([*whole, *speakers]), None)
    load = weigh_sampling(
        base, role, prompt_tokens=config.prompts.max_tokens, new_tokens=sample.max_new_tokens,
        critic=_find_follower(base, config),
    )  # fmt: skip
    return fit_rows(load, budget, sample.batch_size).rows


def choose_policy_batch(base: Base, prompts: Sequence[Prompt], config: Config) -> int:
    """Sequences of the roles "policy" and "critic" in a forward pass of the method of [policy]."""
    budget, ppo = config.compute.memory_gb, config.ppo
    by_ppo = config.policy.method == "ppo"
    if not budget:
        return ppo.micro_batch_size if by_ppo else MICRO_BATCH_SIZE
    at_most = ppo.prompts_per_update // ppo.minibatches if by_ppo else config.rejection_sampling.batch_size
    longest = max(len(base.tokens.encode_prompt(prompt)) for prompt in prompts)
    load = _weigh_policy(
        base, config, prompt_tokens=longest, new_tokens=config.sample.max_new_tokens, prompts=len(prompts)
    )
    return fit_rows(load, budget, at_most).rows


def choose_pair_batch(ensemble: Ensemble, pairs: Sequence[Preference], config: Config) -> int:
    """Pairs in a forward pass of a fit of all members."""
    budget, section, base = config.compute.memory_gb, config.reward_model, ensemble.base
    if not budget:
        return section.micro_batch_size
    shared, _ = base.branching
    sides = [((pair.a, pair.b),) if shared else ((pair.a,), (pair.b,)) for pair in pairs]
    lengths = [len(encode_tree(base, p.prompt, side)) for p, own in zip(pairs, sides, strict=True) for side in own]
    load = weigh_reward_model(ensemble, tokens=max(lengths), rows_a_pair=1 if shared else 2, stored_tokens=sum(lengths))
    return fit_rows(load, budget, section.batch_size).rows


def choose_sft_batch(base: Base, role: str, examples: Sequence[tuple[Prompt, Completion]], config: Config) -> int:
    """Sequences in a forward pass of fine-tuning."""
    budget = config.compute.memory_gb
    if not budget or not examples:
        return MICRO_BATCH_SIZE
    trees = [encode_tree(base, prompt, [completion]) for prompt, completion in examples]
    load = weigh_sft(
        base, role, tokens=max(map(len, trees)), new_tokens=max(tree.branch_tokens[0] for tree in trees),
        stored_tokens=sum(map(len, trees)),
    )  # fmt: skip
    return fit_rows(load, budget, config.sft.batch_size).rows


def set_batch(config: Config, size: int) -> Config:
    """The settings with `ppo.micro_batch_size` in place of the one they have."""
    return config.model_copy(update={"ppo": config.ppo.model_copy(update={"micro_batch_size": size})})


def _find_follower(base: Base, config: Config) -> str | None:
    """The critic, where its rows run along with those that PPO samples."""
    return "critic" if config.ppo.values == "sampler" and "critic" in base.roles() else None


def _weigh_policy(base: Base, config: Config, *, prompt_tokens: int, new_tokens: int, prompts: int = 1) -> Workload:
    """The method of [policy] on sequences of that length."""
    if config.policy.method == "ppo":
        return weigh_ppo(base, "policy", "critic", config.ppo, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    tokens = prompt_tokens + new_tokens
    return weigh_sft(base, "policy", tokens=tokens, new_tokens=new_tokens, stored_tokens=prompts * tokens)


def _read_device_bytes(device: torch.device) -> int:
    """All memory that the device has, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
