"""What sets one person's judgement apart: corrections to the common reward model, shrunk towards it by empirical Bayes.

Implements, on top of a fitted reward model, P(person j prefers a) = sigmoid(beta m + delta_j . V d), with m the common
margin and d the difference of the two answers' features; the few directions V in which people differ, learnt from
everybody's votes together (`tastes`); delta_j ~ N(0, Sigma), with Sigma by EM with a Laplace approximation; and how
many directions votes that were held back bear out: none where people do not differ, and the common model is left. Also
which pairs to ask a new person. Leaves out the common fit (`reward_model`), the features themselves and the scores of a
policy's answers (`rewards.personal`).

Source: hierarchical logistic regression, MacKay 1992, "The Evidence Framework Applied to Classification Networks"; EM
for the covariance as in Laird and Ware 1982; rewards of low rank over people as in Bose et al. 2025, "LoRe".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit
from scipy.stats import chi2

from accord.distributed import map_shared
from accord.errors import DataError
from accord.feedback.pairs import PairTable
from accord.feedback.selection import design_questions
from accord.models import Base
from accord.rewards.personal import People, describe_answers
from accord.training.sequences import build_batch, encode_tree, iterate_buckets
from accord.training.tastes import find_axes, find_tastes, fit_slope
from accord.types import Completion, Prompt

Floats = NDArray[np.float64]
MOST_TASTES = 2
"""Directions that are tried, at most."""
FOLDS = 5
EM_STEPS, NEWTON_STEPS = 40, 8
FLOOR = 1e-6
"""Variances are kept above this, so that the prior can be inverted."""
LEAST_SLOPE = 0.05
"""Of the common margin: a reward model that is worse than chance on fresh votes is left out, not turned round."""
BATCH_TOKENS = 4096
LAST_SHARE = LENGTH_SHARE = 0.1
"""How much of a taste is looked for in an answer's last state and in its length, where 1 is for its mean state."""


@dataclass(frozen=True)
class Votes:
    """One person's n votes: margins (n,), the common model's score(a) - score(b); features (n, F), the difference of
    the answers' features, a minus b; chosen (n,), 1 where a was preferred, 0 where b, one half for a tie.
    """

    margins: Floats
    features: Floats
    chosen: Floats

    def take(self, rows: NDArray[np.bool_] | Sequence[int]) -> Votes:
        """Some of the votes."""
        return Votes(self.margins[rows], self.features[rows], self.chosen[rows])


def gather_votes(table: PairTable, margins: Floats, features: Floats) -> dict[str, Votes]:
    """Each annotator's votes, from margins (P,) and feature differences (P, F) of the table's P pairs."""
    table = table.judged()
    found = {}
    for place, name in enumerate(table.annotators):
        rows = table.annotator == place
        found[name] = Votes(margins[table.pair[rows]], features[table.pair[rows]], table.outcome[rows])
    return found


@torch.no_grad()
def compute_answer_features(base: Base, answers: Sequence[tuple[Prompt, Completion]]) -> Floats:
    """(n, F) features of n answers to their prompts (`rewards.personal.describe_answers`)."""
    trees = [encode_tree(base, prompt, (completion,)) for prompt, completion in answers]
    groups = list(iterate_buckets([len(tree) for tree in trees], BATCH_TOKENS))

    def describe(group: list[int]) -> torch.Tensor:
        batch = build_batch(base, [trees[i] for i in group])
        return describe_answers(base, batch.input_ids, batch.attention_mask, batch.branches >= 1).cpu()

    features = torch.zeros(len(trees), 2 * base.hidden_size + 1)
    for group, found in zip(groups, map_shared(describe, groups), strict=True):
        features[group] = found
    return features.double().numpy()


def weigh_features(width: int) -> Floats:
    """(F,) prior deviations of a taste's coefficients on the F = `width` features of `describe_answers`, in deviations.

    Squared they sum to 1 for the mean state, LAST_SHARE for the last one and LENGTH_SHARE for the length, times H: the
    last state says little of tone and words, and with as much of a prior as the mean its noise would drown them.
    """
    hidden = width // 2
    shares = np.concatenate([np.ones(hidden), np.full(hidden, LAST_SHARE), [hidden * LENGTH_SHARE]])
    return np.asarray(np.sqrt(shares))


def fit_people(votes: Mapping[str, Votes], fresh: Sequence[Votes] = (), *, weights: Floats | float = 1.0) -> People:
    """Everybody's corrections, the directions they live in, and the prior they share.

    beta is fitted to all votes and, from there, to `fresh`, those on pairs that the common model was not fitted on:
    of its own pairs it knows more than it will ever know again. V has as many directions as votes held back bear out,
    and is shortened to what they do (`choose_tastes`); weights (F,) as in `weigh_features`, for all features alike by
    default. Sigma by EM: given Sigma, delta_j is the mode of its posterior
    and C_j = (D^T W D + Sigma^-1)^-1 its covariance; given these, Sigma = mean_j (delta_j delta_j^T + C_j). Of scores
    see `scale_scores`.

    Raises:
        DataError: nobody has voted.
    """
    if not any(len(own.chosen) for own in votes.values()):
        raise DataError("nobody has voted", where="fit_people", mend="gather votes with annotators")
    axes = find_axes(np.concatenate([own.features for own in votes.values()]), weights)
    slope = fit_slope(*_join(votes.values()))
    slope = max(LEAST_SLOPE, fit_slope(*_join(fresh), towards=slope) if fresh else slope)
    rotated = {name: Votes(slope * own.margins, own.features @ axes, own.chosen) for name, own in votes.items()}
    count, share = choose_tastes(rotated)
    tastes, prior = _fit(rotated, count)
    posteriors = {name: _judge(own, tastes, prior) for name, own in rotated.items()}
    return People(
        torch.from_numpy(share * axes @ tastes.T).float(),
        torch.zeros(axes.shape[0]),
        slope,
        slope,
        torch.from_numpy(prior).float(),
        {name: torch.from_numpy(mean).float() for name, (mean, _) in posteriors.items()},
        {name: torch.from_numpy(spread).float() for name, (_, spread) in posteriors.items()},
    )


def _join(votes: Iterable[Votes]) -> tuple[Floats, Floats]:
    """Margins and choices of everybody."""
    pairs = [(own.margins, own.chosen) for own in votes]
    return np.concatenate([margins for margins, _ in pairs]), np.concatenate([chosen for _, chosen in pairs])


def scale_scores(people: People, scores: Floats, features: Floats) -> People:
    """The people with centre and unit by n answers, their common scores (n,) and features (n, F).

    centre: the mean features. unit: logits in a point of a personal score, such that over these answers personal scores
    vary as much as the common ones do, root mean square over people: an optimiser's settings then fit either.
    """
    corrections = features @ people.axes.double().numpy() @ np.stack([s.numpy() for s in people.shifts.values()]).T
    logits = people.slope * scores[:, None] + corrections
    ratio = float(np.sqrt(logits.var(axis=0).mean()) / scores.std()) if scores.std() > 0 else 0.0
    return replace(people, centre=torch.from_numpy(features.mean(axis=0)).float(), unit=ratio or people.slope)


def choose_tastes(votes: Mapping[str, Votes]) -> tuple[int, float]:
    """(how many directions to keep, 0 to `MOST_TASTES`; what share of corrections in them votes held back bear out).

    Each of `FOLDS` parts of the pairs is predicted from the others. The share c is the slope of these predicted
    corrections, P(a) = sigmoid(m + c delta_j . V d), at most 1: directions found among hundreds fit their own votes too
    well, and c is by how much. The common model (0) stays unless the best number is better by more than one standard
    error of the mean difference of log-likelihoods (Breiman et al. 1984, section 3.4.3, the one-standard-error rule).
    """
    margins, chosen = _join(votes.values())
    _, pair = np.unique(np.concatenate([own.features for own in votes.values()]), axis=0, return_inverse=True)
    fold = np.random.default_rng(0).permutation(int(pair.max()) + 1)[pair.ravel()] % FOLDS
    best, share, most = 0, 1.0, 0.0
    for count in range(1, MOST_TASTES + 1):
        corrections = _predict_corrections(votes, fold, count)
        slope = min(1.0, fit_slope(corrections, chosen, margins))
        gain = _measure_fit(margins + slope * corrections, chosen) - _measure_fit(margins, chosen)
        if slope > 0 and gain.mean() > max(most, gain.std() / np.sqrt(len(gain))):
            best, share, most = count, slope, float(gain.mean())
    return best, share


def _predict_corrections(votes: Mapping[str, Votes], fold: NDArray[np.intp], count: int) -> Floats:
    """delta_j . V d of every vote, in logits, by a fit to the other folds."""
    ends = np.cumsum([len(own.chosen) for own in votes.values()])
    folds = dict(zip(votes, np.split(fold, ends[:-1]), strict=True))
    found = {name: np.zeros(len(own.chosen)) for name, own in votes.items()}
    for part in range(FOLDS):
        seen = {name: own.take(folds[name] != part) for name, own in votes.items()}
        tastes, prior = _fit(seen, count)
        for name, own in votes.items():
            held = folds[name] == part
            found[name][held] = own.features[held] @ tastes.T @ _judge(seen[name], tastes, prior)[0]
    return np.concatenate(list(found.values()))


def _measure_fit(logits: Floats, chosen: Floats) -> Floats:
    return np.asarray(chosen * log_expit(logits) + (1 - chosen) * log_expit(-logits))


def _fit(votes: Mapping[str, Votes], count: int) -> tuple[Floats, Floats]:
    """(V (K, P), Sigma (K, K)) with K = `count`, or fewer where there are not as many people."""
    tastes = find_tastes([(own.margins, own.features, own.chosen) for own in votes.values()], count)
    projected = {name: replace(own, features=own.features @ tastes.T) for name, own in votes.items()}
    return tastes, fit_prior(projected)


def _judge(own: Votes, tastes: Floats, prior: Floats) -> tuple[Floats, Floats]:
    return compute_posterior(own.margins, own.features @ tastes.T, own.chosen, prior)


def fit_prior(votes: Mapping[str, Votes]) -> Floats:
    """Sigma (K, K) by EM, from votes on K features."""
    width = next(iter(votes.values())).features.shape[1]
    prior: Floats = np.eye(width)
    for _ in range(EM_STEPS if width else 0):
        found = [compute_posterior(own.margins, own.features, own.chosen, prior) for own in votes.values()]
        prior = np.mean([np.outer(mean, mean) + spread for mean, spread in found], axis=0) + FLOOR * np.eye(width)
    return prior


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
    features = votes.features @ people.axes.double().numpy()
    mean, spread = compute_posterior(
        people.slope * votes.margins, features, votes.chosen, people.prior.double().numpy()
    )
    return replace(
        people,
        shifts={**people.shifts, name: torch.from_numpy(mean).float()},
        spreads={**people.spreads, name: torch.from_numpy(spread).float()},
    )


def predict_votes(people: People, name: str | None, margins: Floats, features: Floats) -> Floats:
    """P(the person prefers a) for n pairs; for None, or somebody unknown, what the common model says."""
    known = people.shifts.get(name) if name is not None else None
    if known is None:
        return np.asarray(expit(people.slope * margins))
    shift = known.double().numpy()
    return np.asarray(expit(people.slope * margins + features @ people.axes.double().numpy() @ shift))


def is_apart(people: People, name: str) -> bool:
    """Whether the person differs from the common model beyond chance: delta^T C^-1 delta above the 95 % point of chi^2
    with K degrees of freedom (Wald's test with the posterior's covariance)."""
    shift = people.shifts[name].double().numpy()
    if not len(shift):
        return False
    return bool(shift @ np.linalg.solve(people.spreads[name].double().numpy(), shift) > chi2.ppf(0.95, len(shift)))


def choose_questions(people: People, margins: Floats, features: Floats, count: int) -> list[int]:
    """Which `count` of n candidate pairs to ask somebody new: those whose answers say most of delta.

    It is `feedback.selection.design_questions` with delta = L u, Sigma = L L^T, u ~ N(0, I).
    """
    return design_questions(people.slope * margins, place_pairs(people, features), count)


def place_pairs(people: People, features: Floats) -> Floats:
    """(n, K): where the answers of n pairs differ on the tastes, in standard deviations of people: d^T V^T L."""
    deviations = np.linalg.cholesky(people.prior.double().numpy())
    return np.asarray(features @ people.axes.double().numpy() @ deviations)
