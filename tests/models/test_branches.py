"""Branches: answers that share a row get the scores and gradients of rows of their own, or the model is not let to."""

import pytest
import torch
from tiny import ARCHITECTURES

from accord.models import LoraSettings
from accord.models.branches import (
    build_branch_inputs,
    compute_branch_mask,
    compute_branch_positions,
    compute_branch_scores,
)

BRANCHES = torch.tensor([[-1, -1, 0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 2, 2, 2]])


def test_positions_of_every_branch_start_where_its_stem_ends():
    assert compute_branch_positions(BRANCHES).tolist() == [[0, 0, 0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 2, 3, 4]]


def test_a_branch_sees_its_stem_and_itself_and_nothing_else():
    seen = compute_branch_mask(BRANCHES, torch.float32)[:, 0] == 0
    rows = ["".join("x" if see else "." for see in row) for row in seen[0].tolist()]
    assert rows == [
        "x.......", ".x......", "..x.....", "..xx....", "..xxx...", "..xxxx..", "..xxxxx.", "..xxx..x"
    ]  # fmt: skip


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_equal_those_of_separate_rows(tiny_base, architecture, split):
    base = tiny_base(architecture, split=split)
    able, reason = base.branching
    if not able:
        assert "sliding window" in reason
        return
    base.add_scorer("reward", lora=LoraSettings(4, 8), seed=0)
    draw = torch.Generator().manual_seed(1)
    base.load_state("reward", {n: 0.3 * torch.randn(v.shape, generator=draw) for n, v in base.state("reward").items()})
    ids = torch.randint(base.vocabulary, BRANCHES.shape, generator=draw)
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    trunk = base.run_trunk(build_branch_inputs(base, ids, BRANCHES))
    scores = compute_branch_scores(base, "reward", ids, BRANCHES, trunk)
    (scores * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in base.parameters("reward").items()}
    for parameter in base.parameters("reward").values():
        parameter.grad = None
    for row in range(2):
        for branch in (1, 2):
            kept = (BRANCHES[row] == 0) | (BRANCHES[row] == branch)
            alone = ids[row, kept][None]
            score = base.compute_scores("reward", alone, torch.ones_like(alone).bool())
            torch.testing.assert_close(score[0], scores[row, branch - 1], atol=2e-5, rtol=1e-4)
            (score * weights[row, branch - 1]).sum().backward()
    for name, parameter in base.parameters("reward").items():
        torch.testing.assert_close(parameter.grad, found[name], atol=2e-5, rtol=1e-3)


def test_a_model_without_positions_gets_a_row_an_answer(tiny_base):
    base = tiny_base("llama")
    base.takes_positions = False
    assert base.branching == (False, "one answer a row: the model takes no positions")
