"""One global clip, rates set step by step, and optimisers that come back from a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accord.training.optimization import merge_means, take_step


def test_the_gradient_of_both_optimisers_is_clipped_to_one_norm() -> None:
    """Gradients (3, 0) and (4) have norm 5: clipped to 1, each shrinks to a fifth, and SGD moves by exactly that."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    optimizers = [torch.optim.SGD([first], lr=99.0), torch.optim.SGD([second], lr=99.0)]
    assert take_step(optimizers, [1.0, 0.5], max_grad_norm=1.0) == pytest.approx(5.0)
    torch.testing.assert_close(first.data, torch.tensor([-0.6, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.data, torch.tensor([-0.4]), atol=1e-5, rtol=0)
    assert first.grad is None


def test_a_small_gradient_is_left_as_it_is() -> None:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([0.5])
    assert take_step([torch.optim.SGD([weight], lr=0.0)], [1.0], max_grad_norm=1.0) == pytest.approx(0.5)
    assert float(weight) == pytest.approx(-0.5)


def test_metrics_of_steps_are_averaged_and_maxima_kept() -> None:
    assert merge_means([{"loss": 1.0, "ratio_max": 2.0}, {"loss": 3.0, "ratio_max": 1.0}]) == {
        "loss": 2.0,
        "ratio_max": 2.0,
    }
