"""Noisy Bradley-Terry: each pair has a latent margin, each annotator a skill and a side bias.

Implements the marginal posterior: margins are integrated out on a grid, skill and bias are its mode. Joint modes of
margins and skills, the cheaper way, are biased however many pairs there are, because each pair brings its own unknown
(Neyman and Scott 1948). Leaves out ties as an outcome of their own: a tie counts as half a vote for each side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import coo_array, csr_array
from scipy.special import expit, log_expit

from accord.feedback.pairs import PairFit, PairTable

GRID_POINTS = 31
GRID_REACH = 5.0
PRIOR_SKILL = 2.4
PRIOR_SKILL_SD = 1.0
PRIOR_BIAS_SD = 1.0


def fit_bradley_terry(table: PairTable) -> PairFit:
    """P(choose a | pair i, annotator j) = sigmoid(s_j d_i + o b_j), with d_i ~ N(0, 1).

    s_j ~ N(2.4, 1) is skill, b_j ~ N(0, 1) side bias; o = 1 where a was shown first, -1 where b was, 0 where there is
    no side. A margin of 1 is one standard deviation of the pairs' margins, so skill is in logits per such unit. The
    prior's 2.4 makes two unbiased annotators agree on 73 % of pairs, as InstructGPT's labelers do; with one vote a
    pair skill cannot be learnt, and p becomes that 0.73: the chance that a second annotator would agree.

    (s, b) maximise prod_i integral prod_v P(vote_v | d) N(d) dd times their priors, by L-BFGS with the exact gradient
    (Fisher's identity). Returned: probability = E[sigmoid(s d_i) | votes], that an unbiased annotator of mean skill
    s (weighted by votes) prefers a; its standard error is the posterior standard deviation of sigmoid(s d_i).

    Source: Bradley and Terry (1952); annotator skill after CrowdBT (Chen et al. 2013, equation 4); the marginal fit
    after Bock and Aitkin (1981).
    """
    voters = len(table.annotators)
    if not voters:
        return PairFit(np.full(len(table.pairs), 0.5), np.full(len(table.pairs), 0.5), np.zeros(0), np.zeros(0))
    grid = np.linspace(-GRID_REACH, GRID_REACH, GRID_POINTS)
    model = _Likelihood(table, grid, -0.5 * grid**2)
    start = np.concatenate([np.full(voters, PRIOR_SKILL), np.zeros(voters)])
    options = {"maxiter": 200, "gtol": 1e-6 * len(table.pair)}
    found = minimize(model, start, jac=True, method="L-BFGS-B", options=options)
    skill, side_bias = found.x[:voters], found.x[voters:]
    votes = np.bincount(table.annotator, minlength=voters).astype(np.float64)
    typical = float(votes @ skill / votes.sum()) if votes.any() else PRIOR_SKILL
    posterior, _ = model.compute_posterior(skill, side_bias)
    curve = expit(typical * grid)
    probability = posterior @ curve
    variance = posterior @ curve**2 - probability**2
    return PairFit(probability, np.sqrt(np.maximum(variance, 0.0)), skill, side_bias)


class _Likelihood:
    """Minus the log of the marginal posterior of (skill, side bias), callable by scipy: value and gradient."""

    def __init__(self, table: PairTable, grid: NDArray[np.float64], log_prior: NDArray[np.float64]) -> None:
        self._grid = grid
        self._log_prior = log_prior - np.log(np.exp(log_prior).sum())
        self._voters = len(table.annotators)
        # What a vote says of the margin depends on annotator and side alone: one curve for each, C = 3 J of them.
        self._sides = np.array([-1.0, 0.0, 1.0])
        curve = table.annotator * 3 + np.rint(table.side).astype(np.intp) + 1
        shape = (len(table.pairs), self._voters * 3)
        # (P, C): how many votes of each curve each pair won and lost, ties half and half.
        self._won = csr_array(coo_array((table.outcome, (table.pair, curve)), shape=shape))
        self._lost = csr_array(coo_array((1.0 - table.outcome, (table.pair, curve)), shape=shape))

    def compute_posterior(
        self, skill: NDArray[np.float64], side_bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """(P, Q): each pair's posterior on the grid; and the log marginal likelihood of all votes, in nats."""
        logits = self._build_logits(skill, side_bias)
        joint = self._log_prior + self._won @ log_expit(logits) + self._lost @ log_expit(-logits)
        peak = joint.max(axis=1, keepdims=True)
        weights = np.exp(joint - peak)
        total = weights.sum(axis=1, keepdims=True)
        return weights / total, float((peak + np.log(total)).sum())

    def __call__(self, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        skill, side_bias = parameters[: self._voters], parameters[self._voters :]
        posterior, log_likelihood = self.compute_posterior(skill, side_bias)
        # Fisher's identity: the gradient is that of the complete-data likelihood, averaged over the posterior.
        won, lost = self._won.T @ posterior, self._lost.T @ posterior
        chance = expit(self._build_logits(skill, side_bias))
        residual = (won * (1.0 - chance) - lost * chance).reshape(self._voters, 3, len(self._grid))
        gradient = np.concatenate([(residual @ self._grid).sum(axis=1), residual.sum(axis=2) @ self._sides])
        pull = np.concatenate([(skill - PRIOR_SKILL) / PRIOR_SKILL_SD**2, side_bias / PRIOR_BIAS_SD**2])
        penalty = 0.5 * ((skill - PRIOR_SKILL) ** 2).sum() / PRIOR_SKILL_SD**2
        penalty += 0.5 * (side_bias**2).sum() / PRIOR_BIAS_SD**2
        return float(penalty) - log_likelihood, pull - gradient

    def _build_logits(self, skill: NDArray[np.float64], side_bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C, Q): s_j d + o b_j for each annotator and side."""
        logits = skill[:, None, None] * self._grid + self._sides[:, None] * side_bias[:, None, None]
        flat: NDArray[np.float64] = logits.reshape(self._voters * 3, len(self._grid))
        return flat
