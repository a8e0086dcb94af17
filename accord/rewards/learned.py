"""A reward model as a score source: one learned scalar for a whole completion.

Implements scoring of sampled token ids, and of texts that were not sampled here, in micro-batches without padding to
spare. Both ways go through one function, so that a completion gets the same score in a fit, in PPO and in evaluation.
Leaves out the model (`accord.models`) and its fitting (`accord.training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.distributed import share, sum_tensors
from accord.errors import ConfigError, DataError
from accord.types import Completion, Prompt, Rollout


@runtime_checkable
class _Tokens(Protocol):
    """The part of `models.ChatTokenizer` that scoring needs."""

    pad_id: int

    def encode_prompt(self, prompt: Prompt) -> list[int]: ...

    def encode_completion(self, completion: Completion) -> list[int]: ...


@runtime_checkable
class Scorer(Protocol):
    """The part of `models.Base` that scoring needs."""

    @property
    def tokens(self) -> _Tokens:
        """The tokenizer with its chat template."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def compute_scores(
        self,
        role: str,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, " B"]:
        """The score at each row's last real token."""
        ...


class LearnedReward:
    """Scores of `role`, an adapter and scalar head on `base`, in float32. A `RewardSource`.

    `batch_size` is the number of sequences a forward pass; it changes speed and memory only.
    """

    def __init__(self, base: Scorer, role: str, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}", where="LearnedReward", mend="use at least 1")
        self.base = base
        self.role = role
        self.batch_size = batch_size

    def __call__(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, " B"]:
        """(B,) scores of the token ids that were sampled; they are never decoded and encoded again.

        `trunk`: the states of `base.compute_trunk` on this very rollout's `input_ids`, where the caller has them.
        """
        ids, mask = rollout.input_ids, rollout.attention_mask
        rows = [ids[i][mask[i]] for i in range(len(rollout))]
        states = None if trunk is None else [trunk[i][mask[i].to(trunk.device)] for i in range(len(rollout))]
        return self._score(rows, states)

    def score_texts(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Float[Tensor, " B"]:
        """(B,) scores of pairs that were not sampled here: the same token under the same template.

        Raises: DataError where there is not one completion for each prompt.
        """
        if len(prompts) != len(completions):
            raise DataError(
                f"{len(prompts)} prompts and {len(completions)} completions",
                where="LearnedReward.score_texts",
                mend="give one completion for each prompt",
            )
        tokens = self.base.tokens
        rows = [
            torch.tensor(tokens.encode_prompt(p) + tokens.encode_completion(c), dtype=torch.int64)
            for p, c in zip(prompts, completions, strict=True)
        ]
        return self._score(rows, None)

    @torch.no_grad()
    def _score(self, rows: Sequence[Tensor], states: Sequence[Tensor] | None) -> Float[Tensor, " B"]:
        """Scores of token sequences without padding, longest neighbours side by side, in the order of `rows`."""
        device = self.base.device
        scores = torch.zeros(len(rows), dtype=torch.float32, device=device)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in share(range(0, len(order), self.batch_size)):
            chosen = order[start : start + self.batch_size]
            ids, mask = _pad_right([rows[i].to(device) for i in chosen], self.base.tokens.pad_id)
            trunk = None if states is None else _pad([states[i].to(device) for i in chosen], 0.0)
            scores[chosen] = self.base.compute_scores(self.role, ids, mask, trunk).float()
        sum_tensors(scores)
        return scores


def _pad_right(rows: Sequence[Int[Tensor, " _"]], pad_id: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """`rows` side by side, filled up on the right with `pad_id`, and the mask that is True on their real tokens."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = _pad(rows, float(pad_id))
    return ids, torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]


def _pad(rows: Sequence[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
