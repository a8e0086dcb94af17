"""The two laws: planted coefficients come back, peaks are where calculus says, best-of-n by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from accord.errors import DataError
from accord.evaluation.overoptimization import Law, compute_best_of_n, compute_law, fit_law
from accord.functional import compute_best_of_n_kl

D = np.linspace(0.0, 6.0, 40)


@pytest.mark.parametrize(("law", "alpha", "beta"), [("best_of_n", 1.3, 0.12), ("rl", 0.9, 0.4), ("rl", 0.5, -0.1)])
def test_planted_coefficients_come_back(law: Law, alpha: float, beta: float) -> None:
    clean = np.array([d * (alpha - beta * (d if law == "best_of_n" else math.log(d))) if d else 0.0 for d in D])
    exact = fit_law(law, D, clean)
    assert (exact.alpha.value, exact.beta.value) == pytest.approx((alpha, beta), abs=1e-9)
    assert exact.r_squared == pytest.approx(1.0)
    np.testing.assert_allclose(exact.predict(D), clean, atol=1e-9)
    noisy = [fit_law(law, D, clean + np.random.default_rng(i).normal(0, 0.2, len(D))) for i in range(200)]
    held = [f.beta.low <= beta <= f.beta.high for f in noisy if f.beta.low is not None and f.beta.high is not None]
    assert np.mean(held) == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize(("law", "peak"), [("best_of_n", 1.3 / (2 * 0.12)), ("rl", math.exp(1.3 / 0.4 - 1))])
def test_the_peak_is_where_the_slope_is_zero(law: Law, peak: float) -> None:
    beta = 0.12 if law == "best_of_n" else 0.4
    found = fit_law(law, D, compute_law(law, D, 1.3, beta)).peak
    assert found == pytest.approx(peak)
    near = compute_law(law, np.array([peak - 0.01, peak, peak + 0.01]), 1.3, beta)
    assert near[1] > near[0]
    assert near[1] > near[2]
    assert fit_law(law, D, compute_law(law, D, 1.0, -0.1)).peak is None


def test_intervals_resample_runs() -> None:
    """Runs that differ in alpha: resampling runs sees the spread that taking points for independent does not."""
    source = np.random.default_rng(0)
    alphas = source.normal(1.0, 0.3, 12)
    d, r, runs = zip(*[(x, x * (a - 0.1 * x), i) for i, a in enumerate(alphas) for x in D], strict=True)
    together, apart = fit_law("best_of_n", d, r, groups=runs), fit_law("best_of_n", d, r)
    width, naive = (f.alpha.high - f.alpha.low for f in (together, apart) if f.alpha.high and f.alpha.low)
    assert together.alpha.interval == "bootstrap"
    assert width == pytest.approx(2 * 1.96 * 0.3 / math.sqrt(12), rel=0.35)
    assert width > 1.3 * naive


def test_best_of_n_by_enumeration() -> None:
    source = np.random.default_rng(3)
    proxy, gold = source.normal(size=(2, 7))
    for n in range(1, 8):
        winners = [max(chosen, key=lambda i: proxy[i]) for chosen in itertools.combinations(range(7), n)]
        assert compute_best_of_n(proxy, gold, n) == pytest.approx(np.mean(gold[winners]))
    assert compute_best_of_n_kl(1) == 0.0


def test_what_cannot_be_fitted_is_refused() -> None:
    for distance, gained in (([1, 2], [1, 2]), ([1, 2, math.nan], [1, 2, 3]), ([-1, 2, 3], [1, 2, 3])):
        with pytest.raises(DataError):
            fit_law("rl", distance, gained)
    with pytest.raises(DataError, match="best of 4 among 3"):
        compute_best_of_n([1, 2, 3], [1, 2, 3], 4)
