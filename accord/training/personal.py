"""What sets one person's judgement apart: corrections to the common reward model, shrunk towards it by empirical Bayes.

Implements, on top of a fitted reward model, P(person j prefers a) = sigmoid(m + delta_j . d), with m the common margin
and d the difference of the two answers' features; delta_j ~ N(0, Sigma); and Sigma from everybody's votes by EM with a
Laplace approximation, so that where people do not differ Sigma shrinks to nothing and the common model is left, and
where they do, it knows in which directions. Also which pairs to ask a new person. Leaves out the common fit
(`reward_model`), and the scores of a policy's answers (`rewards.personal`).

Source: hierarchical logistic regression, MacKay 1992, "The Evidence Framework Applied to Classification Networks"; EM
for the covariance as in Laird and Ware 1982.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit
from torch import Tensor

from accord.errors import DataError
from accord.models import Base
from accord.models.branches import build_branch_inputs, find_branch_ends
from accord.rewards.personal import People
from accord.training.sequences import build_batch, encode_tree, iterate_buckets
from accord.types import Completion, Prompt

Floats = NDArray[np.float64]
AXES = 16
"""P: directions of the features in which a person may differ: the largest principal axes of the pairs' differences."""
EM_STEPS, NEWTON_STEPS = 40, 8
START_VARIANCE = 1.0
SCALES = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Shares of the fitted covariance that are tried on votes held back."""
HOLD_OUT = 5
FLOOR = 1e-6
"""Variances are kept above this, so that the prior can be inverted."""
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Votes:
    """One person's n votes: margins (n,), the common model's score(a) - score(b); features (n, H), the difference of
    the last-token states, a minus b; chosen (n,), 1 where a was preferred, 0 where b, one half for a tie.
    """

    margins: Floats
    features: Floats
    chosen: Floats


@torch.no_grad()
def compute_pair_features(
    base: Base, role: str, pairs: Sequence[tuple[Prompt, Completion, Completion]]
) -> tuple[Floats, Floats]:
    """(margins (n,), feature differences (n, H)) of n pairs under the reward model `role`."""
    trees = [encode_tree(base, prompt, (side,)) for prompt, *sides in pairs for side in sides]
    states = torch.zeros(len(trees), base.hidden_size)
    for group in iterate_buckets([len(tree) for tree in trees], BATCH_TOKENS):
        batch = build_batch(base, [trees[i] for i in group])
        hidden = base.compute_hidden(role, build_branch_inputs(base, batch.input_ids, batch.branches))
        states[group] = hidden[torch.arange(len(group)), find_branch_ends(batch.branches)[:, 0]].float().cpu()
    scores: Tensor = base.head(role)(states.to(base.device)).cpu()
    both, values = states.view(-1, 2, base.hidden_size), scores.view(-1, 2)
    return (
        (values[:, 0] - values[:, 1]).double().numpy(),
        (both[:, 0] - both[:, 1]).double().numpy(),
    )


def fit_people(votes: Mapping[str, Votes], *, axes: int = AXES) -> People:
    """Everybody's corrections and the prior they share.

    Features are projected on their `axes` largest principal axes over all pairs and scaled to variance 1 there. EM:
    given Sigma, delta_j is the mode of its posterior and C_j = (D^T W D + Sigma^-1)^-1 its covariance; given these,
    Sigma = mean_j (delta_j delta_j^T + C_j). Likelihood alone finds differences in noise, so Sigma is then scaled by
    the one of `SCALES` under which votes that were held back are most probable (`choose_scale`); 0 is the common model.

    Raises:
        DataError: nobody has voted.
    """
    if not any(len(own.chosen) for own in votes.values()):
        raise DataError("nobody has voted", where="fit_people", mend="gather votes with annotators")
    matrix = find_axes(np.concatenate([own.features for own in votes.values()]), axes)
    projected = {name: Votes(own.margins, own.features @ matrix, own.chosen) for name, own in votes.items()}
    prior = choose_scale(projected) * fit_prior(projected) + FLOOR * np.eye(matrix.shape[1])
    posteriors = {
        name: compute_posterior(own.margins, own.features, own.chosen, prior) for name, own in projected.items()
    }
    return People(
        torch.from_numpy(matrix).float(),
        torch.from_numpy(prior).float(),
        {name: torch.from_numpy(mean).float() for name, (mean, _) in posteriors.items()},
        {name: torch.from_numpy(spread).float() for name, (_, spread) in posteriors.items()},
    )


def fit_prior(votes: Mapping[str, Votes]) -> Floats:
    """Sigma (P, P) by EM, from votes on projected features."""
    width = next(iter(votes.values())).features.shape[1]
    prior: Floats = START_VARIANCE * np.eye(width)
    for _ in range(EM_STEPS):
        found = [compute_posterior(own.margins, own.features, own.chosen, prior) for own in votes.values()]
        prior = np.mean([np.outer(mean, mean) + spread for mean, spread in found], axis=0) + FLOOR * np.eye(width)
    return prior


def choose_scale(votes: Mapping[str, Votes]) -> float:
    """The share of Sigma that votes held back bear out: every fifth of each person, predicted from the others.

    The common model (0) stays unless the best scale is better by more than one standard error of the mean difference of
    log-likelihoods (Breiman et al. 1984, section 3.4.3, the one-standard-error rule).
    """
    rows = {name: np.arange(len(own.chosen)) % HOLD_OUT == 0 for name, own in votes.items()}
    seen = {name: _take(own, ~rows[name]) for name, own in votes.items()}
    unseen = {name: _take(own, rows[name]) for name, own in votes.items()}
    prior = fit_prior(seen)
    said = [_measure_fit(seen, unseen, scale * prior) for scale in SCALES]
    best = int(np.argmax([float(values.mean()) for values in said]))
    gain = said[best] - said[0]
    error = float(gain.std(ddof=1)) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return SCALES[best] if float(gain.mean()) > error else 0.0


def _take(votes: Votes, rows: NDArray[np.bool_]) -> Votes:
    return Votes(votes.margins[rows], votes.features[rows], votes.chosen[rows])


def _measure_fit(seen: Mapping[str, Votes], unseen: Mapping[str, Votes], prior: Floats) -> Floats:
    """Log-likelihood of each vote of `unseen`, in nats, under corrections fitted to `seen`."""
    width = len(prior)
    found = []
    for name, own in seen.items():
        mean, _ = compute_posterior(own.margins, own.features, own.chosen, prior + FLOOR * np.eye(width))
        logits = unseen[name].margins + unseen[name].features @ mean
        found.append(unseen[name].chosen * log_expit(logits) + (1 - unseen[name].chosen) * log_expit(-logits))
    return np.concatenate(found)


def find_axes(features: Floats, count: int) -> Floats:
    """(H, P): the `count` largest principal axes of feature differences (n, H), each divided by its deviation."""
    _, deviations, rows = np.linalg.svd(features, full_matrices=False)
    kept = min(count, int((deviations > 1e-9 * deviations[0]).sum()))
    scaled: Floats = rows[:kept].T * (np.sqrt(len(features)) / deviations[:kept])
    return scaled


def compute_posterior(margins: Floats, features: Floats, chosen: Floats, prior: Floats) -> tuple[Floats, Floats]:
    """Mode and Laplace covariance of delta given n votes: Newton's method on the log posterior, which is concave.

    log p = sum_i [y_i log s_i + (1 - y_i) log(1 - s_i)] - delta^T Sigma^-1 delta / 2, s_i = sigmoid(m_i + d_i . delta).
    Without votes it is the prior.
    """
    precision = np.linalg.inv(prior)
    delta: Floats = np.zeros(len(prior))
    hessian = precision
    for _ in range(NEWTON_STEPS):
        share = expit(margins + features @ delta)
        gradient = features.T @ (chosen - share) - precision @ delta
        hessian = (features * (share * (1 - share))[:, None]).T @ features + precision
        step: Floats = np.linalg.solve(hessian, gradient)
        delta = delta + step / max(1.0, float(np.linalg.norm(step)) / 2.0)
    return delta, np.linalg.inv(hessian)


def add_person(people: People, name: str, votes: Votes) -> People:
    """The people with a new one (or an old one anew): about ten votes do, since the prior says where people differ."""
    axes, prior = people.axes.double().numpy(), people.prior.double().numpy()
    mean, spread = compute_posterior(votes.margins, votes.features @ axes, votes.chosen, prior)
    return People(
        people.axes,
        people.prior,
        {**people.shifts, name: torch.from_numpy(mean).float()},
        {**people.spreads, name: torch.from_numpy(spread).float()},
    )


def predict_votes(people: People, name: str | None, margins: Floats, features: Floats) -> Floats:
    """P(the person prefers a) for n pairs; for None, or somebody unknown, what the common model says."""
    known = people.shifts.get(name) if name is not None else None
    if known is None:
        return np.asarray(expit(margins))
    shift = known.double().numpy()
    return np.asarray(expit(margins + features @ people.axes.double().numpy() @ shift))


def choose_questions(people: People, margins: Floats, features: Floats, count: int) -> list[int]:
    """Which `count` of n candidate pairs to ask somebody new: greedily those whose answers say most of delta.

    A pair's answer is worth log(1 + s (1 - s) d^T C d) / 2 nats to first order, C the covariance so far, from the prior
    on; C is then as if it were answered (the D-optimal design of a logistic regression, Chaloner and Verdinelli 1995).
    """
    projected = features @ people.axes.double().numpy()
    covariance = people.prior.double().numpy()
    weights = expit(margins) * (1 - expit(margins))
    chosen: list[int] = []
    for _ in range(min(count, len(margins))):
        worth = weights * np.einsum("np,pq,nq->n", projected, covariance, projected)
        worth[chosen] = -1.0
        best = int(worth.argmax())
        chosen.append(best)
        along = covariance @ projected[best]
        covariance = covariance - np.outer(along, along) * weights[best] / (1 + worth[best])
    return chosen
