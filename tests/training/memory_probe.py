"""A PPO update of a medium model in a process of its own, within a budget: `... -m tests.training.memory_probe JSON`.

JSON: {model, weights (a file to write), budget_gb (0: micro-batches of `rows`), rows, checkpoint}. Prints as JSON the
micro-batch, the bytes that were expected, and the resident bytes before training and at the peak.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from accord.config.schema import PpoSection, SampleSection
from accord.models import LoraSettings, load_base
from accord.models.recompute import recompute_layers
from accord.rewards import LearnedReward
from accord.rollout import Sampler
from accord.training import train_ppo
from accord.training.memory import Fit, fit_rows, return_freed_memory, weigh_ppo
from accord.types import Forgetful, Prompt, Silence

PROMPTS, PROMPT, NEW = 16, 160, 96
"""Sequences of a rollout, letters of a prompt, tokens of a completion."""


def read_peak_bytes() -> int:
    """Of this program alone: on Linux `ru_maxrss` begins at what the process that started it held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    work = json.loads(sys.argv[1])
    base = load_base(work["model"], dtype="float32", split=2)
    lora = LoraSettings(8, 16)
    base.add_policy("policy", lora=lora, seed=0)
    for number, role in enumerate(("critic", "proxy")):
        base.add_scorer(role, lora=lora, seed=1 + number)
        head = torch.randn(base.hidden_size, generator=torch.Generator().manual_seed(7))
        base.load_state(role, base.state(role) | {"head.weight": head})
    if work["checkpoint"]:
        recompute_layers(base)
    prompts = [Prompt.from_user(chr(97 + i) * PROMPT) for i in range(PROMPTS)]
    sampler = Sampler(base, PROMPTS)
    idle = read_peak_bytes()
    cfg = PpoSection(
        updates=1, prompts_per_update=PROMPTS, epochs=1, minibatches=1, kl_horizon=1000, checkpoint_every=9
    )
    fit = Fit(work["rows"], 0)
    if work["budget_gb"]:
        return_freed_memory()
        longest = max(len(base.tokens.encode_prompt(prompt)) for prompt in prompts)
        load = weigh_ppo(base, "policy", "critic", cfg, prompt_tokens=longest, new_tokens=NEW)
        fit = fit_rows(load, work["budget_gb"], PROMPTS)
    cfg = cfg.model_copy(update={"micro_batch_size": fit.rows})
    train_ppo(
        base, prompts, sampler, LearnedReward(base, "proxy"), cfg,
        sample=SampleSection(max_new_tokens=NEW), max_kl_nats=1e3, seed=0, progress=Silence(), checkpoint=Forgetful(),
    )  # fmt: skip
    save_file(base.state("policy") | {f"critic.{n}": t for n, t in base.state("critic").items()}, work["weights"])
    print(json.dumps({"rows": fit.rows, "expected": fit.expected_bytes, "idle": idle, "peak": read_peak_bytes()}))


if __name__ == "__main__":
    main()
