"""The KL controller against hand-worked steps and its fixed point; schedules against transformers and torch."""

import math

import pytest
import torch

from accord.errors import DataError
from accord.functional import compute_linear, compute_warmup_cosine, update_kl_coef


@pytest.mark.parametrize(
    "kl_nats, expected",
    [
        (6.0, 0.1),  # on target: nothing changes
        (6.6, 0.1 * (1 + 0.1 * 256 / 10_000)),  # 10 % above: in proportion
        (5.4, 0.1 * (1 - 0.1 * 256 / 10_000)),
        (60.0, 0.1 * (1 + 0.2 * 256 / 10_000)),  # far above: clipped at +0.2
        (0.0, 0.1 * (1 - 0.2 * 256 / 10_000)),  # far below: clipped at -0.2
        (-3.0, 0.1 * (1 - 0.2 * 256 / 10_000)),  # an estimate may be negative
    ],
)
def test_ziegler_steps(kl_nats, expected):
    assert update_kl_coef(0.1, kl_nats, 6.0, 256, 10_000) == pytest.approx(expected, rel=1e-12)


def test_the_controller_holds_a_plant_at_its_target():
    """A policy whose KL is 1 / beta: the controller must come to rest at beta = 1 / target."""
    for start in (0.01, 3.0):
        kl_coef = start
        for _ in range(3000):
            kl_coef = update_kl_coef(kl_coef, 1 / kl_coef, 4.0, 32, 1000)
        assert kl_coef == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("kl_nats, target, horizon", [(1, 0, 100), (1, 1, 0), (math.nan, 1, 100), (1, 1, 2)])
def test_an_impossible_controller_is_refused(kl_nats, target, horizon):
    with pytest.raises(DataError, match=r"ppo\.kl_target_nats"):
        update_kl_coef(0.1, kl_nats, target, 10, horizon)


def library_factors(build, total):
    """Learning rate of each step under a torch scheduler, relative to its base."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimiser)
    factors = []
    for _ in range(total):
        factors.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("total, warmup", [(20, 0), (20, 5), (7, 7), (1, 0)])
def test_warmup_cosine_is_transformers_without_its_step_of_rate_0(total, warmup):
    from transformers import get_cosine_schedule_with_warmup

    theirs = library_factors(lambda optimiser: get_cosine_schedule_with_warmup(optimiser, warmup, total), total + 1)
    ours = [compute_warmup_cosine(step, total, warmup) for step in range(total)]
    assert ours[:warmup] == pytest.approx([theirs[step + 1] for step in range(warmup)])
    assert ours[warmup:] == pytest.approx(theirs[warmup:total])
    assert min(ours) > 0
    assert compute_warmup_cosine(total, total, warmup) == compute_warmup_cosine(total + 5, total, warmup) == 0


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_linear_is_torchs(floor):
    theirs = library_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, floor, total_iters=10), 15)
    assert [compute_linear(step, 10, floor) for step in range(15)] == pytest.approx(theirs)
    assert compute_linear(10, 10) == pytest.approx(0.1)


@pytest.mark.parametrize("step, total", [(-1, 10), (0, 0)])
def test_steps_that_do_not_exist_are_refused(step, total):
    for schedule in (compute_linear, lambda s, t: compute_warmup_cosine(s, t, 0)):
        with pytest.raises(DataError):
            schedule(step, total)
    with pytest.raises(DataError):
        compute_warmup_cosine(0, 10, -1)
