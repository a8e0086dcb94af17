"""The peer of benchmarks.ppo and benchmarks.time_to_reward: TRL 1.10's PPOTrainer, in TRL's own environment.

    python -m benchmarks.peers.trl_ppo --work FILE

Implements the same work on the same prompt ids, with the trainer as its users set it up: LoRA on the policy, reference
by switching the adapter off, critic and reward model of their own. The trainer has no clock of its own, so four of the
functions that it calls are wrapped where its phases meet; what they compute stays TRL's. Prints one JSON line.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.counting import PhaseCounter
from benchmarks.processes import print_result, read_peak_memory, read_work
from benchmarks.text_rewards import TEXT_REWARDS


class Watch(TrainerCallback):
    """Seconds and counted work by phase, cut where ours are: behind sampling, and before and behind the reward."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.counter = PhaseCounter()
        self.phases: list[dict[str, float]] = []
        self.ended: list[float] = []
        self._row: dict[str, float] = {}

    def start(self) -> None:
        """Begin to watch."""
        if self.warm_up:
            self.counter.start()
        self.started = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time and work since the last lap belong to `phase`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._row[phase] = self._row.get(phase, 0.0) + now - self._last
        self._last = now
        self.counter.lap(phase)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer's end of an iteration."""
        self.lap("optimise")
        self.phases.append(self._row)
        self.ended.append(self._last - self.started)
        self._row = {}
        if len(self.phases) == self.warm_up:
            self.counter.stop()


def watch_phases(watch: Watch, reward_model: nn.Module, score: Callable[..., Any] | None) -> None:
    """Wrap what the trainer calls for sampling and for rewards; `score` may stand for the reward model."""
    generate, get_reward = ppo_trainer.batch_generation, ppo_trainer.get_reward

    def generate_watched(*args: Any, **kwargs: Any) -> Any:
        with watch.counter.paused():
            result = generate(*args, **kwargs)
        watch.lap("sample")
        return result

    def get_reward_watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if model is not reward_model:
            return get_reward(model, *args, **kwargs)
        watch.lap("experience")
        result = (score or get_reward)(model, *args, **kwargs)
        watch.lap("score")
        return result

    ppo_trainer.batch_generation, ppo_trainer.get_reward = generate_watched, get_reward_watched


def build_text_score(name: str, tokenizer: Any) -> Callable[..., tuple[None, Tensor, None]]:
    """A text reward under the signature of TRL's `get_reward`: completions end before the first PAD."""

    def score(model: nn.Module, ids: Tensor, pad_id: int, context: int) -> tuple[None, Tensor, None]:
        texts = [tokenizer.decode(row[row != pad_id], skip_special_tokens=True) for row in ids[:, context:]]
        return None, torch.tensor([TEXT_REWARDS[name](t) for t in texts], device=ids.device), None

    return score


def build_config(work: dict[str, Any], folder: str) -> PPOConfig:
    """The trainer's settings for this work."""
    # TRL steps after `gradient_accumulation_steps` micro-batches even within a minibatch; so one of the two is 1.
    accumulated = work["micro_batches"] if work["minibatches"] == 1 else 1
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=work["prompts"] // accumulated,
        gradient_accumulation_steps=accumulated,
        num_mini_batches=work["minibatches"],
        num_ppo_epochs=work["epochs"],
        total_episodes=work["prompts"] * (work["warm_up"] + work["iterations"]),
        response_length=work["new_tokens"],
        local_rollout_forward_batch_size=work["prompts"],
        stop_token_id=work.get("stop_id"),
        temperature=work["temperature"],
        learning_rate=work["learning_rate"],
        kl_coef=work["kl_coef"],
        vf_coef=work["vf_coef"],
        num_sample_generations=0,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        seed=work["seed"],
        report_to=[],
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def load_tokenizer(work: dict[str, Any]) -> Any:
    """The model's tokenizer with the PAD and the EOS that ours uses."""
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(work["pad_id"])
    if work.get("stop_id") is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(work["stop_id"])
    return tokenizer


def load_models(work: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(policy, value model, reward model): the value head zero, as ours begins; the reward head the one both share."""
    dtype = getattr(torch, work["dtype"])
    policy: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=dtype)
    value: Any = AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=1, dtype=dtype)
    nn.init.zeros_(value.score.weight)
    if "text_reward" in work:
        return policy, value, nn.Identity()
    reward: Any = AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=1, dtype=dtype)
    with torch.no_grad():
        reward.score.weight.copy_(torch.tensor(work["head"])[None])
    return policy, value, reward


def main() -> None:
    work = read_work(sys.argv[1:])
    torch.set_num_threads(work["threads"])
    torch.manual_seed(work["seed"])
    tokenizer = load_tokenizer(work)
    policy, value, reward = load_models(work)
    watch = Watch(work["warm_up"])
    text_score = build_text_score(work["text_reward"], tokenizer) if "text_reward" in work else None
    watch_phases(watch, reward, text_score)
    data = Dataset.from_dict({"input_ids": work["prompt_ids"]})
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=build_config(work, folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=data,
            eval_dataset=data.select(range(4)),
            callbacks=[watch],
            peft_config=LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules="all-linear"),
        )
        trainer.remove_callback(PrinterCallback)
        gc.collect()
        watch.start()
        trainer.train()
    watch.counter.stop()
    print_result(describe(work, watch, trainer.state.log_history))


def describe(work: dict[str, Any], watch: Watch, log: list[dict[str, Any]]) -> dict[str, Any]:
    """The result under the names that ours has too."""
    timed = watch.phases[watch.warm_up :]
    counted = {phase: amount.to_dict() for phase, amount in watch.counter.phases.items()}
    if "sampling_work" in work:
        counted["sample"] = work["sampling_work"]
    learning = [row for row in log if "objective/kl" in row]
    return {
        "name": "trl 1.10 PPOTrainer",
        "contestant": "peer",
        "phases": timed,
        "seconds": [sum(row.values()) for row in timed],
        "tokens": [work["prompts"] * work["new_tokens"]] * len(timed),
        "work": counted,
        "ended_seconds": watch.ended,
        "scores": [row["objective/scores"] for row in learning],
        "kl_nats": [row["objective/kl"] for row in learning],
        **read_peak_memory(),
    }


if __name__ == "__main__":
    main()
