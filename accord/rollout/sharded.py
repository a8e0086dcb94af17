"""Sampling by all processes: each decodes a part of the prompts, and every process gets the whole rollout.

Implements the parting and the joining. A sequence depends on its prompt, its seed and the weights alone, so in float32
the rollout does not depend on how many processes made it. Leaves out the decoding (`sampler`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from accord import distributed
from accord.types import Generator, Prompt, Rollout

LEFT_PADDED = ("prompt_ids", "prompt_mask", "prompt_trunk")


class SharedSampler:
    """A `Generator` around each process's own, `inner`; rollouts come on `device`, filled up with `pad_id`."""

    def __init__(self, inner: Generator, *, pad_id: int, device: torch.device) -> None:
        self.inner = inner
        self.pad_id = pad_id
        self.device = device

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
        """One completion for each prompt; see `types.Rollout` for shapes. Neighbours stay so: they may share a prompt.

        Every process samples something: where there are fewer prompts than processes, each samples all of them.

        Raises:
            DataError: as the inner generator.
        """
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        if critic is not None:
            options["critic"] = critic
        count, rank = distributed.count(), distributed.rank()
        if count == 1 or len(prompts) < count:
            return self.inner.generate(role, prompts, seeds=seeds, **options)
        own = slice(rank * len(prompts) // count, (rank + 1) * len(prompts) // count)
        rollout = self.inner.generate(role, prompts[own], seeds=seeds[own], **options)
        parts = distributed.gather([_move(rollout, torch.device("cpu"))])
        return _move(join_rollouts(parts, self.pad_id), self.device)


def join_rollouts(parts: Sequence[Rollout], pad_id: int) -> Rollout:
    """Rollouts one below the other: prompts padded on the left, completions on the right, to the widest of them."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Tensor] = {}
    for field in _tensor_names(parts[0]):
        columns[field] = _stack(
            [getattr(part, field) for part in parts],
            pad_id if field.endswith("_ids") else 0,
            left=field in LEFT_PADDED,
        )
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    completions = tuple(completion for part in parts for completion in part.completions)
    return Rollout(prompts=prompts, completions=completions, **columns)


def _stack(tensors: Sequence[Tensor], value: int, *, left: bool) -> Tensor:
    """(b, T, *) each, or (b,) -> (B, T, *) with the widest T, or (B,)."""
    if tensors[0].dim() == 1:
        return torch.cat(list(tensors))
    width = max(tensor.shape[1] for tensor in tensors)
    padded = []
    for tensor in tensors:
        missing = width - tensor.shape[1]
        ends = (0, 0) * (tensor.dim() - 2) + ((missing, 0) if left else (0, missing))
        padded.append(torch.nn.functional.pad(tensor, ends, value=value))
    return torch.cat(padded)


def _tensor_names(rollout: Rollout) -> Iterable[str]:
    return (field.name for field in fields(rollout) if torch.is_tensor(getattr(rollout, field.name)))


def _move(rollout: Rollout, device: torch.device) -> Rollout:
    moved = {name: getattr(rollout, name).to(device) for name in _tensor_names(rollout)}
    return Rollout(prompts=rollout.prompts, completions=rollout.completions, **moved)
