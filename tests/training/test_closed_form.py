"""PPO reaches the optimum that can be written down: pi* = ref exp(r / beta) / Z (ORACLES, 'Closed form')."""

from __future__ import annotations

import pytest
import torch

from accord.config.schema import PpoSection, SampleSection
from accord.models import Base, LoraSettings
from accord.rollout import Sampler
from accord.training import train_ppo
from accord.types import Prompt, Rollout
from tests.training.fakes import CollectingProgress, MemoryCheckpoint, build_digit_base, enumerate_logprobs

BETA = 0.5
PROMPT = "0123"  # several tokens, so that every context of the 4 x 4 sequences has a state of its own
SETTINGS = PpoSection(
    updates=35, prompts_per_update=512, epochs=2, minibatches=1, micro_batch_size=512, learning_rate=5e-3,
    critic_learning_rate=2e-2, value_clip_range=10.0, kl_controller="fixed", kl_coef=BETA, missing_eos_penalty=0.0,
)  # fmt: skip


def train_enumerable(seed: int, lora: LoraSettings | None) -> tuple[Base, torch.Tensor]:
    """Train a policy over 4 tokens and 2 steps on random rewards; the base and the rewards of the 16 sequences."""
    base = build_digit_base(4, seed=seed, layers=1)
    base.add_policy("policy", lora=lora, seed=seed)
    base.add_scorer("critic", lora=LoraSettings(8, 16), seed=seed)
    table = torch.randn(16, generator=torch.Generator().manual_seed(seed))

    def reward(rollout: Rollout) -> torch.Tensor:
        return table[4 * rollout.completion_ids[:, 0] + rollout.completion_ids[:, 1]]

    train_ppo(
        base, [Prompt(text=PROMPT)], Sampler(base, batch_size=512), reward, SETTINGS,
        sample=SampleSection(max_new_tokens=2), max_kl_nats=100.0, seed=seed,
        progress=CollectingProgress(), checkpoint=MemoryCheckpoint(),
    )  # fmt: skip
    return base, table


def compute_kl(logprobs: torch.Tensor, others: torch.Tensor) -> float:
    return float((logprobs.exp() * (logprobs - others)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_ppo_reaches_the_closed_form_optimum(seed: int) -> None:
    base, table = train_enumerable(seed, LoraSettings(8, 16) if seed == 0 else None)
    reference = enumerate_logprobs(base, None, PROMPT, 2)
    policy = enumerate_logprobs(base, "policy", PROMPT, 2)
    optimum = torch.log_softmax(reference + table.double() / BETA, dim=0)
    assert compute_kl(reference, optimum) > 0.3, "the start must be far from the optimum"
    assert compute_kl(policy, optimum) < 0.02
