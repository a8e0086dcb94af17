"""Rollouts of made-up tokens, for the tests of score sources."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.types import Completion, Prompt, Rollout


def build_rollout(prompts: Sequence[Prompt], completion_ids: Sequence[Sequence[int]], *, seed: int = 0) -> Rollout:
    """One rollout: prompt b has b + 1 random tokens, padded left with 0; the completions are padded right with 0."""
    generator = torch.Generator().manual_seed(seed)
    count, width = len(prompts), max(len(c) for c in completion_ids)
    lengths = torch.arange(1, count + 1)
    prompt_mask = torch.arange(count)[None, :] >= count - lengths[:, None]
    completion_mask = torch.tensor([[t < len(c) for t in range(width)] for c in completion_ids])
    return Rollout(
        prompts=tuple(prompts),
        completions=tuple(
            Completion.from_text(" ".join(map(str, c)), finished=bool(c[-1] == 2)) for c in completion_ids
        ),
        prompt_ids=torch.randint(3, 50, (count, count), generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        completion_ids=torch.tensor([[*c, *[0] * (width - len(c))] for c in completion_ids]),
        completion_mask=completion_mask,
        logprobs=-torch.rand(count, width, generator=generator) * completion_mask,
        finished=torch.tensor([c[-1] == 2 for c in completion_ids]),
    )


def build_prompts(count: int) -> list[Prompt]:
    """`count` different prompts."""
    return [Prompt.from_user(f"question number {i}") for i in range(count)]
