"""What bfloat16 does to a policy's gradient: beside float32's on the same answers, and beside what other answers give.

    python -m benchmarks.gradients --model DIR [--iterations 4] [--prompts 32] [--new-tokens 32]

A policy (LoRA r 16 above the split) learns for some iterations on a bfloat16 base, as in benchmarks.precision. Its
weights then stand on a float32 base too, which answers the prompts; the gradient of PPO's loss, with the whitened
reward as the advantage, is computed from the first half of the answers: in float32, which counts as exact; in bfloat16
through Accord's layers; and in bfloat16 through transformers' layers with PEFT's own LoRA, which casts every activation
to float32 for its adapters and back. Last in float32 from the other half of the answers: that is how far a gradient of
so few answers is from any other.

Shown: the cosine with the first gradient over all adapters, the length of the difference as a share of its length, and
the standard deviation over tokens of the log-probabilities' difference, in nats.
"""

from __future__ import annotations

from datetime import date
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accord.functional import masked_whiten
from accord.losses import POLICY_OBJECTIVES
from accord.models import Base
from accord.models.packing import unpacked
from accord.rewards import as_source
from accord.rollout import Sampler
from accord.starter import load_starter_prompts
from accord.training.experience import compute_token_logprobs, compute_trunk, iterate_micro_batches
from accord.types import Rollout, derive_seed
from benchmarks.kernels import peft_forward
from benchmarks.machine import choose_device, describe_device
from benchmarks.precision import FIXED
from benchmarks.processes import build_parser, run_command, run_ours
from benchmarks.tables import format_table, write_json
from benchmarks.text_rewards import TEXT_REWARDS
from benchmarks.training import build_base, run_ppo

MICRO_BATCH = 8


class Found(NamedTuple):
    """The gradient of all adapters side by side, and the answers' log-probabilities (B, C), 0 where not read."""

    gradient: Tensor
    logprobs: Tensor


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "", dtype=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=int, default=-1)
    parser.add_argument("--reward", choices=TEXT_REWARDS, default="second_person")
    for name, default in (("iterations", 4), ("prompts", 32), ("new-tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure_ours, parser, arguments)


def compare(arguments: Any) -> None:
    """Run the one child and print what it found."""
    names = ("model", "threads", "seed", "split", "reward", "iterations", "prompts", "new_tokens")
    work = {name: getattr(arguments, name) for name in names}
    rows = run_ours("benchmarks.gradients", work, threads=work["threads"])["rows"]
    cells = [[row["name"], row["cosine"], row["error_share"], row["logprob_sd_nats"]] for row in rows]
    print(format_table(["gradient", "cosine", "difference", "sd of log p, nats"], cells))
    machine = {"name": describe_device(choose_device()), "threads": work["threads"]}
    result = {"benchmark": "gradients", "date": date.today().isoformat(), "machine": machine, "work": work}
    write_json(arguments.json, result | {"rows": rows})


def measure_ours(work: dict[str, Any]) -> dict[str, Any]:
    """The child: learn, answer, and compute each gradient in turn."""
    told = {**work, **FIXED, "prompts": work["prompts"] // 2}
    prompts, score = load_starter_prompts("train"), TEXT_REWARDS[work["reward"]]
    reward = as_source(lambda prompt, completion: score(completion.text))
    narrow, wide = (build_base(told | {"dtype": dtype}, work["split"], scorers=()) for dtype in ("bfloat16", "float32"))
    if work["iterations"]:
        run_ppo(narrow, prompts, reward, told, warm_up=0)
        wide.load_state("policy", narrow.state("policy"))
    asked = prompts[: work["prompts"]]
    rollout = Sampler(wide).generate(
        "policy", asked, seeds=[derive_seed(work["seed"], "gradient", i) for i in range(len(asked))],
        max_new_tokens=work["new_tokens"], temperature=1.0,
    )  # fmt: skip
    scores = reward(rollout)[:, None].expand(rollout.completion_mask.shape)
    advantages = masked_whiten(scores, rollout.completion_mask)
    first, other = torch.arange(len(asked)).chunk(2)
    exact = compute_gradient(wide, rollout, advantages, first)
    ours = compute_gradient(narrow, rollout, advantages, first)
    with unpacked(narrow.stack), peft_forward(narrow.model):
        theirs = compute_gradient(narrow, rollout, advantages, first)
    elsewhere = compute_gradient(wide, rollout, advantages, other)
    read = rollout.completion_mask[first]
    rows = []
    for name, found in (("bfloat16, Accord's layers", ours), ("bfloat16, PEFT's layers", theirs)):
        gap = (found.logprobs - exact.logprobs)[first][read]
        rows.append({**compare_gradients(name, found, exact), "logprob_sd_nats": float(gap.std())})
    rows.append({**compare_gradients("float32, other answers", elsewhere, exact), "logprob_sd_nats": None})
    return {"rows": rows}


def compute_gradient(base: Base, rollout: Rollout, advantages: Tensor, rows: Tensor) -> Found:
    """Of PPO's clipped loss at ratio 1 over the answers `rows`, in all adapters of the policy."""
    mask = rollout.completion_mask
    trunk, logprobs = compute_trunk(base, rollout, MICRO_BATCH), torch.zeros_like(rollout.logprobs)
    for batch in iterate_micro_batches(rollout, trunk, rows, MICRO_BATCH):
        found = compute_token_logprobs(base, "policy", batch, 1.0, entropy="unread").logprobs
        batch.put(logprobs, found.detach())
        loss = POLICY_OBJECTIVES["ppo_clip"](
            found, found.detach(), batch.take(advantages), batch.mask, clip_range=0.2, denominator=int(mask[rows].sum())
        ).loss
        torch.autograd.backward(loss)
    parameters = list(base.parameters("policy").values())
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return Found(gradient, logprobs)


def compare_gradients(name: str, found: Found, exact: Found) -> dict[str, Any]:
    """`cosine` of the two, and `error_share`, the length of their difference as a share of the exact one's."""
    return {
        "name": name,
        "contestant": name,
        "cosine": float(torch.cosine_similarity(exact.gradient, found.gradient, dim=0)),
        "error_share": float((found.gradient - exact.gradient).norm() / exact.gradient.norm()),
    }


if __name__ == "__main__":
    main()
