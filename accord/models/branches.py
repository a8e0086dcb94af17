"""Branches: one row holds a prompt once and several completions behind it, none of which sees another.

Implements positions and the attention mask of such rows, and the check that a model computes on them what it computes
on each completion in a row of its own. Two answers to one prompt then cost one reading of the prompt. Leaves out
cached decoding (`rollout` has its own way to share a prompt) and models whose layers see a sliding window, for which
such a mask would have to differ from layer to layer: they read the prompt once an answer.

A row's columns are told apart by `branches` (B, T): -1 padding, 0 the prompt (the stem), k >= 1 the k-th completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from accord.models.base import Base

PADDING, STEM = -1, 0


def compute_branch_positions(branches: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions as if each branch followed its stem alone: every branch starts where the stem ends; 0 at padding."""
    stem = branches == STEM
    position = stem.long().cumsum(dim=1) - 1
    for branch in range(1, int(branches.max()) + 1):
        own = branches == branch
        position = torch.where(own, position + own.long().cumsum(dim=1), position)
    return position.clamp(min=0)


def compute_branch_mask(branches: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """What is added to attention scores: 0 where column i may see column j, the least finite number elsewhere.

    i sees j <= i of the stem and of its own branch; a column of padding sees itself, so that nothing divides by 0.
    """
    of_i, of_j = branches[:, :, None], branches[:, None, :]
    order = torch.arange(branches.shape[1], device=branches.device)
    seen = (order[:, None] >= order[None, :]) & (of_j != PADDING) & ((of_j == STEM) | (of_j == of_i))
    seen = seen | (order[:, None] == order[None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=branches.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def find_branch_ends(branches: Int[Tensor, "B T"]) -> Int[Tensor, "B K"]:
    """The last column of each branch; where a branch is empty, the last of its stem."""
    columns = torch.arange(branches.shape[1], device=branches.device)
    ends = [
        (((branches == STEM) | (branches == branch)).long() * columns).argmax(dim=1)
        for branch in range(1, int(branches.max()) + 1)
    ]
    return torch.stack(ends, dim=1)


def mark_columns(columns: Int[Tensor, "B K"], length: int) -> Bool[Tensor, "B T"]:
    """True at the given columns of each row."""
    marked = torch.zeros(len(columns), length, dtype=torch.bool, device=columns.device)
    return marked.scatter_(1, columns, True)


def compute_branch_scores(
    base: Base,
    role: str,
    input_ids: Int[Tensor, "B T"],
    branches: Int[Tensor, "B T"],
    trunk: Float[Tensor, "B T H"] | None = None,
) -> Float[Tensor, "B K"]:
    """Scores of the K completions in each row, float32: `base.compute_scores` of each in a row of its own.

    Raises:
        ModelError: no such role, it has no head, or a trunk of another shape.
    """
    ends = find_branch_ends(branches)
    inputs, wanted = build_branch_inputs(base, input_ids, branches), mark_columns(ends, input_ids.shape[1])
    hidden = base.compute_hidden(role, inputs, trunk, wanted=wanted)
    return base.head(role)(hidden[torch.arange(len(hidden), device=hidden.device)[:, None], ends])


def build_branch_inputs(
    base: Base, input_ids: Int[Tensor, "B T"], branches: Int[Tensor, "B T"]
) -> dict[str, Tensor | bool]:
    """What the model's forward takes for such rows; with a single branch they are ordinary rows."""
    if int(branches.max()) <= 1:
        return base.build_inputs(input_ids, branches >= STEM)
    return {
        "input_ids": input_ids,
        "attention_mask": compute_branch_mask(branches, base.dtype),
        "position_ids": compute_branch_positions(branches),
        "use_cache": False,
    }


def check_branching(base: Base) -> tuple[bool, str]:
    """Whether branches in one row come out as in rows of their own, and in words why or why not.

    The reference is run on a stem with two branches, and on each branch alone.
    """
    config = base.model.config.get_text_config()
    if not base.takes_positions:
        return False, "one answer a row: the model takes no positions"
    if getattr(config, "sliding_window", None) is not None:
        return False, "one answer a row: the model's layers see a sliding window"

    def run(ids: Tensor, branches: Tensor) -> Tensor:
        return base.compute_hidden(None, build_branch_inputs(base, ids, branches)).float()

    ids, branches = _build_branch_probe(base.vocabulary, base.device)
    columns = _choose_columns(branches[1])
    try:
        with torch.no_grad():
            together = run(ids, branches)[1]
            alone = [run(ids[1:, kept], branches[1:, kept].clamp(max=1))[0] for kept in columns]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return False, f"one answer a row: the model does not run on branches ({error})"
    gap = max(float((together[kept] - states).abs().max()) for kept, states in zip(columns, alone, strict=True))
    limit = 32 * torch.finfo(base.dtype).eps * max(float(states.abs().max()) for states in alone)
    if gap <= limit:
        return True, f"answers share a row: hidden states equal those of separate rows to {gap:.1e}, float noise"
    return False, f"one answer a row: hidden states of shared rows differ by {gap:.1e}, more than float noise"


def _build_branch_probe(vocabulary: int, device: torch.device) -> tuple[Int[Tensor, "2 20"], Int[Tensor, "2 20"]]:
    """Two rows of a stem with two branches of other lengths; the second row is padded on the left."""
    ids = torch.randint(vocabulary, (2, 20), generator=torch.Generator().manual_seed(0))
    branches = torch.tensor([[0] * 8 + [1] * 5 + [2] * 7, [-1] * 3 + [0] * 6 + [1] * 4 + [2] * 7])
    return ids.to(device), branches.to(device)


def _choose_columns(branches: Int[Tensor, " T"]) -> list[Tensor]:
    """The columns of the stem and of one branch, for each branch."""
    return [((branches == STEM) | (branches == branch)).nonzero()[:, 0] for branch in range(1, int(branches.max()) + 1)]
