"""Numbers that change while a run goes on: the KL coefficient, Lagrange multipliers and the learning rate.

Each is a pure function of what it depends on, so a resumed run needs no scheduler object, only its counters. Leaves out
the optimiser: a caller multiplies its base learning rate by the factor.
"""

from __future__ import annotations

import math

from accord.errors import DataError

KL_ERROR_CLIP = 0.2
"""Ziegler et al. 2019, section 2.2: the proportional error is clipped to this on both sides."""


def update_kl_coef(
    kl_coef: float | int, kl_nats: float | int, target_nats: float | int, sequences: int, horizon: int
) -> float:
    """beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon): a proportional controller in log space.

    kl_nats and target_nats in nats per *sequence*; sequences (n) is how many the KL was measured on, horizon in
    sequences.
    Source: Ziegler et al. 2019, section 2.2 (with their K_beta = n / horizon).

    Raises:
        DataError: target_nats is not above 0, kl_nats is not finite, or horizon is not above 0.2 n (one step could take
            beta to 0 or below).
    """
    if not (target_nats > 0 and math.isfinite(kl_nats) and horizon > KL_ERROR_CLIP * sequences):
        raise DataError(
            f"cannot steer from {kl_nats} to {target_nats} nats with {sequences} sequences in a horizon of {horizon}",
            where="ppo.kl_target_nats, ppo.kl_horizon",
            mend="set a target above 0 and a longer horizon; where the KL is not finite, look at the logprobs",
        )
    error = min(max(kl_nats / target_nats - 1.0, -KL_ERROR_CLIP), KL_ERROR_CLIP)
    return kl_coef * (1.0 + error * sequences / horizon)


def update_multiplier(multiplier: float | int, value: float | int, bound: float | int, rate: float | int) -> float:
    """lambda <- max(0, lambda + rate (bound - value)): projected dual ascent for the constraint E[value] >= bound.

    value: the mean of the constrained score over an update's rollout. Where it stays above the bound lambda falls to 0
    and stays there; where it settles, it settles at value = bound, which is the constrained optimum.
    Source: Bertsekas 1999, "Nonlinear Programming", section 6.3.1; in RLHF: Dai et al. 2023 (Safe RLHF), section 3.3,
    which steps in log lambda.

    Raises:
        DataError: `value` is not finite, or `multiplier` or `rate` is below 0.
    """
    if not (math.isfinite(value) and multiplier >= 0 and rate >= 0):
        raise DataError(
            f"cannot move a multiplier of {multiplier} by a score of {value} at rate {rate}",
            where="reward.multiplier_rate",
            mend="use numbers from 0 up; where the score is not finite, look at its source",
        )
    return max(0.0, multiplier + rate * (bound - value))


def compute_warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: (step + 1) / warmup while step < warmup, then (1 + cos(pi u)) / 2.

    u = (step - warmup) / (total - warmup). Steps count from 0; the first is not wasted on a rate of 0, step `warmup`
    has factor 1, and 0 is reached at step `total`, the first after the run, where it stays.
    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.

    Raises:
        DataError: `step` or `warmup` is below 0, or `total` is below 1.
    """
    _check_step(step, total)
    if warmup < 0:
        raise DataError(f"a warm-up of {warmup} steps", where="compute_warmup_cosine", mend="give 0 steps or more")
    if step >= total:
        return 0.0
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def compute_linear(step: int, total: int, floor: float = 0.1) -> float:
    """Factor of the learning rate: 1 - (1 - floor) min(step / total, 1), from 1 at step 0 to `floor` at step `total`.

    Raises:
        DataError: `step` is below 0, or `total` is below 1.
    """
    _check_step(step, total)
    return 1.0 - (1.0 - floor) * min(step / total, 1.0)


def _check_step(step: int, total: int) -> None:
    """Refuse a step or a run length that no schedule has."""
    if step < 0 or total < 1:
        raise DataError(f"step {step} of {total}", where="learning rate", mend="count steps from 0, of 1 or more")
