"""KL estimators on a distribution small enough to enumerate, where every expectation is a finite sum."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.errors import DataError
from accord.functional import (
    compute_best_of_n_kl,
    compute_categorical_kl,
    compute_k1,
    compute_k2,
    compute_k3,
    compute_sequence_kl,
)

POLICY = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([-0.2, 0.8, 0.1, 0.4], dtype=torch.float64)
ESTIMATORS = {"k1": compute_k1, "k2": compute_k2, "k3": compute_k3}


def expect(estimator):
    """E_{x ~ policy}[estimator], by enumeration."""
    log_p, log_q = POLICY.log_softmax(0), REFERENCE.log_softmax(0)
    return float((log_p.exp() * estimator(log_p, log_q)).sum())


def expect_gradient(estimator):
    """E_{x ~ policy}[gradient of the estimator at x]: what minimising it on samples follows, the sampler held fixed."""
    logits = POLICY.clone().requires_grad_()
    log_p = logits.log_softmax(0)
    loss = (log_p.exp().detach() * estimator(log_p, REFERENCE.log_softmax(0))).sum()
    return torch.autograd.grad(loss, logits)[0]


def exact_gradient(forward=True):
    """d KL / d logits of the policy, through torch's own KL of two categoricals."""
    logits = POLICY.clone().requires_grad_()
    pair = [torch.distributions.Categorical(logits=x) for x in (logits, REFERENCE)]
    kl = torch.distributions.kl_divergence(*(pair if forward else pair[::-1]))
    return torch.autograd.grad(kl, logits)[0]


def test_categorical_kl_is_scipys():
    expected = scipy.stats.entropy(POLICY.softmax(0), REFERENCE.softmax(0))
    assert float(compute_categorical_kl(POLICY, REFERENCE)) == pytest.approx(expected, rel=1e-12)
    assert float(compute_categorical_kl(POLICY, POLICY)) == 0.0
    assert compute_categorical_kl(POLICY.expand(2, 3, 4), REFERENCE.expand(2, 3, 4)).shape == (2, 3)


def test_categorical_kl_with_impossible_tokens():
    never = torch.tensor([0.0, -math.inf, 0.0])
    always = torch.zeros(3)
    assert float(compute_categorical_kl(never, always)) == pytest.approx(math.log(3 / 2))
    assert float(compute_categorical_kl(always, never)) == math.inf
    assert float(compute_categorical_kl(never, never)) == 0.0


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    assert expect(ESTIMATORS[name]) == pytest.approx(scipy.stats.entropy(POLICY.softmax(0), REFERENCE.softmax(0)))


def test_k2_is_biased_but_to_second_order():
    """k2's expectation is half the second moment of log pi - log ref: not the KL, but near it for near policies."""
    kl = scipy.stats.entropy(POLICY.softmax(0), REFERENCE.softmax(0))
    assert abs(expect(compute_k2) - kl) > 0.01
    near = POLICY + 0.01 * REFERENCE
    p, log_p, log_q = POLICY.softmax(0), POLICY.log_softmax(0), near.log_softmax(0)
    assert float((p * compute_k2(log_p, log_q)).sum()) == pytest.approx(
        scipy.stats.entropy(p, near.softmax(0)), rel=0.01
    )


def test_as_a_loss_only_k2_has_the_right_gradient():
    torch.testing.assert_close(expect_gradient(compute_k2), exact_gradient())
    torch.testing.assert_close(expect_gradient(compute_k1), torch.zeros(4, dtype=torch.float64))
    assert (expect_gradient(compute_k3) - exact_gradient()).abs().max() > 0.01
    torch.testing.assert_close(expect_gradient(compute_k3), exact_gradient(forward=False))


def test_k1_may_be_negative_for_one_sample():
    assert float(compute_k1(torch.tensor(-2.0), torch.tensor(-0.5))) == -1.5


@settings(max_examples=200, deadline=None)
@given(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32))
def test_k2_and_k3_are_never_negative(logprob, ref_logprob):
    pair = torch.tensor(logprob), torch.tensor(ref_logprob)
    assert compute_k2(*pair) >= 0
    assert compute_k3(*pair) >= 0


def test_k3_is_never_negative_for_policies_that_nearly_agree():
    gap = torch.logspace(-10, -1, 2000)
    assert (compute_k3(gap, torch.zeros(2000)) >= 0).all()
    assert (compute_k3(-gap, torch.zeros(2000)) >= 0).all()


def test_equal_policies_have_no_kl():
    logprobs = torch.log_softmax(torch.randn(2, 5), dim=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert compute_sequence_kl(logprobs, logprobs, mask).tolist() == [0.0, 0.0]
    for estimator in ESTIMATORS.values():
        assert not estimator(logprobs, logprobs).any()


def test_sequence_kl_adds_real_tokens_only():
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, math.nan, math.inf]])
    ref_logprobs = torch.tensor([[-1.5, -1.0, 0.0], [-4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert compute_sequence_kl(logprobs, ref_logprobs, mask).tolist() == [-0.5, 3.0]


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_kl_bounds_an_enumerated_one_and_is_reached_without_ties(n):
    """Best of n among N equally likely answers with different scores: P(rank k wins) = (k / N)^n - ((k - 1) / N)^n.

    With N finite the same answer may be drawn twice, a tie, and the bound is strict; with N -> infinity it is reached.
    """
    bound = compute_best_of_n_kl(n)
    for count, tolerance in ((3, None), (10, None), (100_000, 1e-3)):
        ranks = torch.arange(count + 1, dtype=torch.float64) / count
        best = ranks.pow(n).diff()
        kl = scipy.stats.entropy(best, torch.full((count,), 1 / count, dtype=torch.float64))
        assert kl <= bound + 1e-9
        if n > 1 and tolerance is None:
            assert kl < bound - 1e-3
        elif tolerance is not None:
            assert kl == pytest.approx(bound, abs=tolerance)


def test_best_of_none_is_refused():
    with pytest.raises(DataError):
        compute_best_of_n_kl(0)
