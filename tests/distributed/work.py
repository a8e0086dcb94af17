"""What the processes of a test do: `python -m tests.distributed.work FOLDER NAME ...`, started by `crew`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from accord import distributed
from accord.config.schema import PpoSection, RewardModelSection, SampleSection, SftSection
from accord.models import LoraSettings, load_base
from accord.models.checkpoints import pack_optimizer
from accord.models.sharding import gather_tensor, gather_tensors
from accord.rewards import LearnedReward
from accord.rollout import Sampler
from accord.rollout.sharded import SharedSampler
from accord.training import train_ppo, train_reward_model, train_sft
from accord.training.optimization import build_optimizer, pack_roles, take_step, unpack_roles
from accord.types import Completion, Preference, Prompt
from accord.workspace import FolderCheckpoint
from tests.tiny import build_tiny_model
from tests.training.fakes import CollectingProgress, MemoryCheckpoint, build_digit_base

PROMPTS = [Prompt(text=t) for t in ("0", "12", "301", "2203", "11", "30", "213")]
LORA = LoraSettings(4, 8)
FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()


def build_base(lora: LoraSettings | None = LORA, *, shard: bool = False) -> Any:
    base = build_digit_base(4, eos=True, split=0 if lora is None else 1, seed=3)
    base.shard = shard
    base.add_policy("policy", lora=lora, seed=1)
    base.add_scorer("proxy", lora=LORA, seed=2)
    base.add_scorer("critic", lora=LORA, seed=4)
    with torch.no_grad():
        for index, parameter in enumerate(base.parameters("proxy").values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)), alpha=0.3)
    return base


def collectives() -> dict[str, Any]:
    rank, count = distributed.rank(), distributed.count()
    ones = torch.full((3,), float(rank + 1))
    distributed.sum_tensors(ones)
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    if rank == 0:
        parameters[0].grad = torch.tensor([1.0, 2.0])
    distributed.sum_gradients(parameters)
    with distributed.first_alone() as working:
        inside = (working, distributed.count(), list(distributed.share(range(5))))
    return {
        "rank": rank, "count": count, "sum": ones, "grads": [p.grad for p in parameters], "inside": inside,
        "share": list(distributed.share(range(5))), "gathered": distributed.gather([rank] * (rank + 1)),
        "mapped": distributed.map_shared(lambda n: (n * n, distributed.rank()), range(5)),
        "rounds": list(distributed.share_rounds(list(range(5)), 2)),
        "agreed": distributed.agree(rank), "speaks": distributed.speak_first(),
    }  # fmt: skip


def step() -> dict[str, Any]:
    """One optimiser step on the mean of (w - x)^2 over seven numbers, each process with its own numbers only."""
    numbers = torch.arange(7.0)
    weight = torch.nn.Parameter(torch.tensor(10.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ((weight - distributed.share(numbers)).square().sum() / len(numbers)).backward()
    norm = take_step([optimizer], [0.25], max_grad_norm=100.0)
    return {"weight": float(weight), "norm": norm}


def ppo(lora: LoraSettings | None = LORA, *, shard: bool = False) -> dict[str, Any]:
    base = build_base(lora, shard=shard)
    sampler = SharedSampler(Sampler(base, batch_size=4, keep_trunk=True), pad_id=base.tokens.pad_id, device=base.device)
    section = PpoSection(
        updates=2, prompts_per_update=6, epochs=2, minibatches=2, micro_batch_size=1 if shard else 2, evaluate_every=1,
        learning_rate=1e-3, critic_learning_rate=1e-3,
    )  # fmt: skip
    result = train_ppo(
        base, PROMPTS[2:], sampler, LearnedReward(base, "proxy", batch_size=2), section,
        sample=SampleSection(max_new_tokens=5), max_kl_nats=50.0, seed=5, progress=CollectingProgress(),
        checkpoint=MemoryCheckpoint(), validation_prompts=PROMPTS[:2],
    )  # fmt: skip
    return {"history": result.history, "policy": read_whole(base, "policy"), "critic": base.state("critic")}


def ppo_full() -> dict[str, Any]:
    return ppo(None)


def ppo_sharded() -> dict[str, Any]:
    """Three rows a minibatch in micro-batches of one: a process has two of them where the other has one."""
    return ppo(None, shard=True)


def shards() -> dict[str, Any]:
    """Elements that this process holds of a sharded policy's weights, gradients and moments, and of all; then a step.

    The loss is the sum of all logits of one row, which each process adds once; so each gradient is counted twice.
    """
    base = build_base(None, shard=True)
    optimizer = build_optimizer(base, "policy", 1e-2)
    ids, mask = torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool)
    for _ in range(2):
        base.compute_logits("policy", ids, mask, 3).sum().backward()
    parameters = base.parameters("policy")
    gradients = {name: gather_tensor(p.grad).clone() for name, p in parameters.items()}
    held = [p.grad for p in parameters.values()]
    norm = take_step([optimizer], [1e-2], max_grad_norm=1e-3)
    held += [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    held += [*parameters.values(), *base.state("policy").values()]
    with torch.no_grad():
        logits = base.compute_logits("policy", ids, mask, 3)
    return {
        "own": sum(local(t).numel() for t in held), "all": sum(t.numel() for t in held), "norm": norm,
        "gradients": gradients, "logits": logits, "policy": read_whole(base, "policy"),
        "moments": gather_tensors(pack_optimizer(optimizer)),
    }  # fmt: skip


def read_whole(base: Any, role: str) -> dict[str, torch.Tensor]:
    return {name: gather_tensor(value) for name, value in base.state(role).items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load_tiny() -> Any:
    """A tiny Llama whose head is its embedding, with a policy that trains all of it."""
    with distributed.first_alone() as working:
        if working and not (FOLDER / "model").exists():
            build_tiny_model(FOLDER / "model")
    base = load_base(str(FOLDER / "model"), dtype="float32", split=0, device="cpu")
    base.shard = True
    base.add_policy("policy", lora=None, seed=0)
    return base


def resumed() -> dict[str, Any]:
    """A sharded step, its checkpoint in roles that are new, and a second step; the policy's folder, read again."""
    ids, mask = torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool)
    for _ in range(2):
        base = load_tiny()
        optimizer = build_optimizer(base, "policy", 1e-2)
        if (found := FolderCheckpoint(FOLDER).load()) is not None:
            unpack_roles(base, {"policy": optimizer}, found[0])
        base.compute_logprobs("policy", ids, mask, 3, 1.0)[0].sum().backward()
        take_step([optimizer], [1e-2], max_grad_norm=1e-3)
        FolderCheckpoint(FOLDER).save(pack_roles(base, {"policy": optimizer}), {})
        distributed.wait()
    base.save_role("policy", FOLDER / f"role-{distributed.rank()}")
    base.save_merged("policy", FOLDER / f"merged-{distributed.rank()}")
    distributed.wait()
    base.load_policy("again", FOLDER / "role-0")
    return {"policy": read_whole(base, "policy"), "again": read_whole(base, "again")}


def preferences() -> list[Preference]:
    sides = [("0", "3"), ("11", "2"), ("30", "123"), ("1", "0"), ("22", "33")]
    return [
        Preference(prompt, Completion.from_text(a), Completion.from_text(b), 0.8, 0.1, weight=1.0 + n, strength=0.5)
        for n, (prompt, (a, b)) in enumerate(zip(PROMPTS, sides, strict=False))
    ]


def reward_model() -> dict[str, Any]:
    base = build_base()
    section = RewardModelSection(epochs=2, batch_size=3, micro_batch_size=1, learning_rate=1e-3)
    pairs = preferences()
    result = train_reward_model(
        base, "proxy", pairs[:4], pairs[4:], section, seed=1, progress=CollectingProgress(),
        checkpoint=MemoryCheckpoint(),
    )  # fmt: skip
    return {"history": result.history, "proxy": base.state("proxy")}


def sft(*, shard: bool = False) -> dict[str, Any]:
    base = build_base(None if shard else LORA, shard=shard)
    examples = [(preference.prompt, preference.a) for preference in preferences()]
    section = SftSection(epochs=2, batch_size=3, learning_rate=1e-3)
    result = train_sft(
        base, "policy", examples, section, seed=1, progress=CollectingProgress(), checkpoint=MemoryCheckpoint(),
        micro_batch_size=1 if shard else 8,
    )  # fmt: skip
    return {"history": result.history, "policy": read_whole(base, "policy")}


def sft_sharded() -> dict[str, Any]:
    return sft(shard=True)


def sampling() -> dict[str, Any]:
    base = build_base()
    prompts = [p for p in PROMPTS for _ in range(2)][:13]
    sampler = SharedSampler(Sampler(base, batch_size=4, keep_trunk=True), pad_id=base.tokens.pad_id, device=base.device)
    found = {}
    for name, some in (("many", prompts), ("two", prompts[:2]), ("one", prompts[:1])):
        rollout = sampler.generate("policy", some, seeds=range(len(some)), max_new_tokens=6, temperature=1.0)
        fields = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "logprobs", "finished", "trunk")
        found[name] = {field: getattr(rollout, field) for field in fields} | {
            "texts": [completion.text for completion in rollout.completions]
        }
    return found


def lost() -> dict[str, Any]:
    """The second process dies where the first one counts on it."""
    if distributed.rank() == 1:
        os._exit(9)
    distributed.gather([1])
    return {}


def lost_in_a_pass() -> dict[str, Any]:
    """The second process dies where the first one's model counts on its half of the weights."""
    base = build_base(None, shard=True)
    if distributed.rank() == 1:
        os._exit(9)
    base.compute_logits("policy", torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), 1).sum().backward()
    return {}


def main() -> None:
    names = sys.argv[2:]
    torch.use_deterministic_algorithms(True, warn_only=True)
    with distributed.joined(timeout_seconds=60):
        rank = distributed.rank()
        found = {name: globals()[name]() for name in names}
    torch.save(found, FOLDER / f"{rank}.pt")


if __name__ == "__main__":
    main()
