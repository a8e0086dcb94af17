"""A reward model as a score source: one learned scalar for a whole completion.

Implements scoring of sampled token ids, and of texts that were not sampled here, in micro-batches without padding to
spare. Both ways go through one function, so that a completion gets the same score in a fit, in PPO and in evaluation.
An ensemble is read in one pass and says how far its members disagree. Leaves out the model (`accord.models`) and its
fitting (`accord.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.distributed import share, sum_tensors
from accord.errors import ConfigError, DataError
from accord.models import Base
from accord.models.ensemble import Ensemble, load_ensemble
from accord.rewards.combine import COMBINATIONS, WEIGHT_AVERAGE, compute_disagreement
from accord.rewards.sources import Scored
from accord.types import Completion, Prompt, ReadRollout, Rollout

AVERAGE = "average"
"""What names the weight average of an ensemble: a suffix of its role, and a folder beside the members'."""

Passes = Callable[[Int[Tensor, "B T"], Bool[Tensor, "B T"], Float[Tensor, "B T H"] | None], Float[Tensor, "*K B"]]
"""Scores of one padded batch: ids, mask, trunk or None."""


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

    takes_trunk = True

    def __init__(self, base: Scorer, role: str, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}", where="LearnedReward", mend="use at least 1")
        self.base = base
        self.role = role
        self.batch_size = batch_size

    def __call__(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, " B"]:
        """(B,) scores of the token ids that were sampled; they are never decoded and encoded again.

        `trunk`: the states of `base.compute_trunk` on this very rollout's `input_ids`, where the caller has them. Where
        the rollout brings the states at its ends under this adapter, no pass is run at all.
        """
        found = _read_ends(self.base, self.role, rollout)
        if found is None:
            found = score_rollout(self.base, self._score_batch, rollout, trunk, self.batch_size)
        return found

    def score_texts(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Float[Tensor, " B"]:
        """(B,) scores of pairs that were not sampled here: the same token under the same template.

        Raises: DataError where there is not one completion for each prompt.
        """
        return score_texts(self.base, self._score_batch, prompts, completions, self.batch_size)

    def _score_batch(self, ids: Tensor, mask: Tensor, trunk: Tensor | None) -> Tensor:
        return self.base.compute_scores(self.role, ids, mask, trunk)


class EnsembleReward:
    """The scores of an ensemble as one, with the members' disagreement as a part. A `RewardSource`.

    combine: a name of `COMBINATIONS`, or "weight_average" with `average`, the role that holds it. The members are read
    in every case, for their disagreement.

    Raises: ConfigError where `combine` is not known, or the weight average lacks its role.
    """

    takes_trunk = True

    def __init__(
        self, ensemble: Ensemble, combine: str = "mean", *, average: str | None = None, batch_size: int = 8
    ) -> None:
        known = (*COMBINATIONS, WEIGHT_AVERAGE)
        if combine not in known or (combine == WEIGHT_AVERAGE and average is None):
            raise ConfigError(
                f"cannot combine an ensemble by {combine!r}",
                where="reward_model.combine",
                mend=f"use one of {', '.join(known)}",
            )
        self.ensemble = ensemble
        self.combine = combine
        self.average = average
        self.batch_size = batch_size
        self._last: tuple[Rollout, Scored] | None = None

    def __call__(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, " B"]:
        """(B,) combined scores of the token ids that were sampled; `trunk` as in `LearnedReward`."""
        return self.score(rollout, trunk).total

    def score(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Scored:
        """Combined scores, and the part `disagreement`: the standard deviation over members.

        The last rollout's are kept: who asks for the scores and then for the disagreement has the models read it once.
        """
        if self._last is None or self._last[0] is not rollout:
            rows = score_rollout(self.ensemble.base, self._score_batch, rollout, trunk, self.batch_size)
            self._last = rollout, self.combine_members(rows)
        return self._last[1]

    def disagreement(self, rollout: Rollout) -> Float[Tensor, " B"]:
        """The part `disagreement` alone, as a score source of its own."""
        return self.score(rollout).parts["disagreement"]

    def score_members(self, rollout: Rollout) -> Float[Tensor, "K B"]:
        """Each member's scores."""
        return score_rollout(self.ensemble.base, self._score_batch, rollout, None, self.batch_size)[
            : len(self.ensemble)
        ]

    def score_texts(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Float[Tensor, " B"]:
        """(B,) combined scores of pairs that were not sampled here; raises as `LearnedReward.score_texts`."""
        return self.combine_members(self._score_texts(prompts, completions)).total

    def score_texts_by_member(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> Float[Tensor, "K B"]:
        """Each member's scores of pairs that were not sampled here; raises as `LearnedReward.score_texts`."""
        return self._score_texts(prompts, completions)[: len(self.ensemble)]

    def _score_texts(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Float[Tensor, "R B"]:
        return score_texts(self.ensemble.base, self._score_batch, prompts, completions, self.batch_size)

    def combine_members(self, scores: Float[Tensor, "R B"]) -> Scored:
        """One score from the members' rows, behind which the weight average has a row of its own."""
        members = scores[: len(self.ensemble)]
        total = scores[-1] if self.combine == WEIGHT_AVERAGE else COMBINATIONS[self.combine](members)
        return Scored(total, {"disagreement": compute_disagreement(members)})

    def _score_batch(self, ids: Tensor, mask: Tensor, trunk: Tensor | None) -> Tensor:
        """(K, B), and one row more for the weight average."""
        base = self.ensemble.base
        states = base.compute_trunk(ids, mask) if trunk is None else trunk
        members = self.ensemble.compute_scores(ids, mask, states)
        if self.combine != WEIGHT_AVERAGE or self.average is None:
            return members
        return torch.cat([members, base.compute_scores(self.average, ids, mask, states)[None]])


def load_learned_reward(base: Base, role: str, folder: Path, combine: str = "mean") -> LearnedReward | EnsembleReward:
    """The reward model of a folder as a score source under the name `role`: one scorer, or an ensemble in one pass.

    Raises: ModelError as `Base.load_scorer`; ConfigError as `EnsembleReward`.
    """
    ensemble = load_ensemble(base, role, folder)
    if len(ensemble) == 1:
        return LearnedReward(base, role)
    average = None
    if combine == WEIGHT_AVERAGE:
        average = f"{role}-{AVERAGE}"
        base.load_scorer(average, folder / AVERAGE)
    return EnsembleReward(ensemble, combine, average=average)


def score_rollout(
    base: Scorer, passes: Passes, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None, batch_size: int
) -> Float[Tensor, "*K B"]:
    """Scores of a rollout's own token ids."""
    ids, mask = rollout.input_ids, rollout.attention_mask
    rows = [ids[i][mask[i]] for i in range(len(rollout))]
    states = None if trunk is None else [trunk[i][mask[i].to(trunk.device)] for i in range(len(rollout))]
    return _score_rows(base, passes, rows, states, batch_size)


def score_texts(
    base: Scorer, passes: Passes, prompts: Sequence[Prompt], completions: Sequence[Completion], batch_size: int
) -> Float[Tensor, "*K B"]:
    """Scores of prompts and completions, encoded here under the chat template.

    Raises: DataError where there is not one completion for each prompt.
    """
    if len(prompts) != len(completions):
        raise DataError(
            f"{len(prompts)} prompts and {len(completions)} completions",
            where="LearnedReward.score_texts",
            mend="give one completion for each prompt",
        )
    rows = [
        torch.tensor(base.tokens.encode_prompt(p) + base.tokens.encode_completion(c), dtype=torch.int64)
        for p, c in zip(prompts, completions, strict=True)
    ]
    return _score_rows(base, passes, rows, None, batch_size)


@torch.no_grad()
def _read_ends(base: Scorer, role: str, rollout: Rollout) -> Float[Tensor, " B"] | None:
    """Scores from the states that the rollout brings; None where it brings none under the adapter of `role`."""
    if not isinstance(rollout, ReadRollout) or not isinstance(base, Base):
        return None
    states = rollout.end_states.get(base.describe(role).adapter or role)
    return None if states is None else base.head(role)(states)


@torch.no_grad()
def _score_rows(
    base: Scorer, passes: Passes, rows: Sequence[Tensor], states: Sequence[Tensor] | None, batch_size: int
) -> Float[Tensor, "*K B"]:
    """Scores of token sequences without padding, longest neighbours side by side, in the order of `rows`.

    Each of several processes reads its share of the batches.
    """
    device = base.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    scores: Tensor | None = None
    for chosen in share(batches) or batches[:1]:  # who has no share still learns the shape
        ids, mask = _pad_right([rows[i].to(device) for i in chosen], base.tokens.pad_id)
        trunk = None if states is None else _pad([states[i].to(device) for i in chosen], 0.0)
        found = passes(ids, mask, trunk).float()
        scores = found.new_zeros((*found.shape[:-1], len(rows))) if scores is None else scores
        if chosen in share(batches):
            scores[..., chosen] = found
    if scores is None:
        return torch.zeros(0, device=device)
    sum_tensors(scores)
    return scores


def _pad_right(rows: Sequence[Int[Tensor, " _"]], pad_id: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """`rows` side by side, filled up on the right with `pad_id`, and the mask that is True on their real tokens."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = _pad(rows, float(pad_id))
    return ids, torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]


def _pad(rows: Sequence[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
