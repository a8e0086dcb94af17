"""Shaped rewards: where the score lands, and what the rewards of a sequence add up to."""

import math

import pytest
import torch

from accord.errors import DataError
from accord.functional import compute_gae, compute_sequence_kl, shape_rewards

LOGPROBS = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, math.inf, 0.0], [-0.5, -0.5, -0.5]])
REF_LOGPROBS = torch.tensor([[-2.0, -1.0, 0.0], [-1.25, 0.0, math.nan], [-0.5, -0.5, -0.5]])
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
SCORES = torch.tensor([10.0, -3.0, 7.0])


def test_the_score_lands_on_the_last_real_token_and_not_on_the_first_pad():
    rewards = shape_rewards(SCORES, LOGPROBS, REF_LOGPROBS, MASK, 0)
    assert rewards.tolist() == [[0, 10, 0], [-3, 0, 0], [0, 0, 7]]


def test_each_token_pays_for_its_distance_to_the_reference():
    rewards = shape_rewards(torch.zeros(3), LOGPROBS, REF_LOGPROBS, MASK, 0.5)
    assert rewards.tolist() == [[-0.5, 0.5, 0], [-0.125, 0, 0], [0, 0, 0]]


def test_rewards_of_a_sequence_add_up_to_the_objective():
    rewards = shape_rewards(SCORES, LOGPROBS, REF_LOGPROBS, MASK, 0.1)
    objective = SCORES - 0.1 * compute_sequence_kl(LOGPROBS, REF_LOGPROBS, MASK)
    torch.testing.assert_close(rewards.sum(dim=1), objective)
    returns = compute_gae(rewards, torch.zeros(3, 3), MASK, 1, 1).returns
    torch.testing.assert_close(returns[:, 0], objective)


def test_an_empty_completion_is_refused():
    with pytest.raises(DataError, match="row 0"):
        shape_rewards(SCORES, LOGPROBS, REF_LOGPROBS, torch.zeros_like(MASK), 0.1)
