"""Best of n: whole rows are chosen, widths may differ, and the gain and the KL are those of the closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from accord.errors import DataError
from accord.functional import compute_best_of_n_kl
from accord.rewards import choose_best
from accord.types import Rollout
from tests.rewards.rollouts import build_prompts, build_rollout

PROMPTS = build_prompts(3)
FIRST = build_rollout(PROMPTS, [[5, 2], [6, 7, 2], [8, 9]], seed=1)
SECOND = build_rollout(PROMPTS, [[15, 16, 17, 18, 2], [19, 2], [20, 21, 22]], seed=1)


def list_row(rollout: Rollout, b: int) -> tuple[list[int], list[float]]:
    mask = rollout.completion_mask[b]
    return rollout.completion_ids[b][mask].tolist(), rollout.logprobs[b][mask].tolist()


def test_each_prompt_gets_its_best_row_whole() -> None:
    best = choose_best([FIRST, SECOND], torch.tensor([[0.0, 5.0, 1.0], [1.0, -5.0, 2.0]]))
    for b, source in enumerate([SECOND, FIRST, SECOND]):
        assert list_row(best, b) == list_row(source, b)
        assert best.completions[b] == source.completions[b]
        assert best.finished[b] == source.finished[b]
    assert best.prompts == FIRST.prompts
    assert torch.equal(best.prompt_ids, FIRST.prompt_ids)
    assert torch.equal(best.prompt_mask, FIRST.prompt_mask)
    assert best.completion_ids.shape == best.completion_mask.shape == best.logprobs.shape == (3, 5)
    assert best.completion_mask.dtype == torch.bool
    assert best.completion_mask.sum(dim=1).tolist() == [5, 3, 3]
    assert best.completion_mask[:, 0].all()
    assert not best.logprobs[~best.completion_mask].any()


def test_narrower_prompts_are_padded_on_the_left() -> None:
    trimmed = Rollout(**{**vars(FIRST), "prompt_ids": FIRST.prompt_ids[:, 1:], "prompt_mask": FIRST.prompt_mask[:, 1:]})
    best = choose_best([trimmed, SECOND], torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert torch.equal(best.prompt_ids, FIRST.prompt_ids)  # the third, full width, comes from SECOND, drawn alike
    assert torch.equal(best.prompt_mask, FIRST.prompt_mask)


def test_the_first_of_equals_wins() -> None:
    best = choose_best([FIRST, SECOND], torch.zeros(2, 3))
    assert best.completions == FIRST.completions


def test_one_candidate_is_itself() -> None:
    best = choose_best([FIRST], torch.tensor([[0.3, -1.0, 2.0]]))
    assert torch.equal(best.completion_ids, FIRST.completion_ids)
    assert torch.equal(best.logprobs, FIRST.logprobs)


def test_best_of_n_on_an_enumerable_policy_has_the_known_distribution_and_kl() -> None:
    """Uniform over k answers, no two of one score: P(best of n is the j-th) = (j / k)^n - ((j - 1) / k)^n."""
    answers, n, draws = 4, 3, 40_000
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(answers, (n, draws), generator=generator)
    prompts = build_prompts(1) * draws
    mask = torch.ones(draws, 1, dtype=torch.bool)
    rollouts = [
        Rollout(
            tuple(prompts),
            FIRST.completions[:1] * draws,
            mask.long(),
            mask,
            row[:, None],
            mask,
            mask.float(),
            mask[:, 0],
        )
        for row in picks
    ]
    chosen = choose_best(rollouts, picks.float()).completion_ids[:, 0]
    shares = torch.bincount(chosen, minlength=answers) / draws
    expected = torch.tensor([((j + 1) / answers) ** n - (j / answers) ** n for j in range(answers)])
    assert torch.allclose(shares, expected, atol=4 * 0.5 / math.sqrt(draws))
    kl_nats = float((shares * (shares * answers).log()).sum())
    assert 0 < kl_nats < compute_best_of_n_kl(n)


@pytest.mark.parametrize(
    ("rollouts", "scores", "message"),
    [
        ([], torch.zeros(0, 3), "same prompts"),
        ([FIRST, build_rollout(build_prompts(4)[1:], [[5], [6], [7]])], torch.zeros(2, 3), "same prompts"),
        ([FIRST, SECOND], torch.zeros(3, 2), "shape"),
        ([FIRST, SECOND], torch.full((2, 3), float("nan")), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(rollouts: list[Rollout], scores: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_best(rollouts, scores)
