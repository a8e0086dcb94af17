"""Best of n: for each prompt the candidate with the highest score, the baseline that every optimiser must beat.

Implements the choice among n rollouts of the same prompts. Leaves out the sampling, and the KL that the choice spends:
at most log n - (n - 1) / n nats a prompt, `accord.functional.compute_best_of_n_kl`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from accord.errors import DataError
from accord.types import Rollout

_PER_PROMPT = ("prompt_ids", "prompt_mask")
_PER_COMPLETION = ("completion_ids", "completion_mask", "logprobs")


def choose_best(rollouts: Sequence[Rollout], scores: Float[Tensor, "n B"]) -> Rollout:
    """The rollout of B prompts whose completion b is that of `rollouts[argmax over i of scores[i, b]]`.

    `rollouts`: n of them, each of the same B prompts in the same order. On a tie the first wins. Columns that a shorter
    rollout lacks are filled with masked zeros (prompts on the left, completions on the right).

    Raises: DataError where there is no rollout, the prompts differ, or the scores are not (n, B) finite numbers.
    """
    if not rollouts or any(r.prompts != rollouts[0].prompts for r in rollouts):
        raise DataError("the rollouts do not answer the same prompts", where="choose_best", mend="give n >= 1 that do")
    if scores.shape != (len(rollouts), len(rollouts[0])):
        raise DataError(
            f"scores of shape {tuple(scores.shape)} for {len(rollouts)} rollouts of {len(rollouts[0])} prompts",
            where="choose_best",
            mend="give one row a rollout and one column a prompt",
        )
    if not torch.isfinite(scores).all():
        raise DataError("a score is NaN or infinite", where="choose_best", mend="look at the reward source")
    winners = scores.argmax(dim=0).tolist()  # the first of equals
    rows = range(len(winners))
    prompts = {name: _take(rollouts, name, winners, left=True) for name in _PER_PROMPT}
    completions = {name: _take(rollouts, name, winners, left=False) for name in _PER_COMPLETION}
    return Rollout(
        prompts=rollouts[0].prompts,
        completions=tuple(rollouts[winners[b]].completions[b] for b in rows),
        finished=torch.stack([rollouts[winners[b]].finished[b] for b in rows]),
        **prompts,
        **completions,
    )


def _take(rollouts: Sequence[Rollout], name: str, winners: list[int], *, left: bool) -> Tensor:
    """Row b of field `name` of rollout `winners[b]`, padded with zeros to the widest of all rollouts."""
    width = max(getattr(r, name).shape[1] for r in rollouts)
    rows = [getattr(rollouts[i], name)[b] for b, i in enumerate(winners)]
    gaps = [width - len(row) for row in rows]
    return torch.stack(
        [torch.nn.functional.pad(row, (gap, 0) if left else (0, gap)) for row, gap in zip(rows, gaps, strict=True)]
    )
