"""Personal corrections: scikit-learn's ridge as the oracle, planted tastes, shrinkage to nothing, and ten votes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from accord.config.schema import RewardModelSection
from accord.errors import ConfigError, DataError
from accord.models import Base, LoraSettings
from accord.rewards.personal import People, PersonalReward
from accord.rollout import Sampler
from accord.training import train_reward_model
from accord.training.personal import (
    Votes,
    add_person,
    choose_questions,
    compute_pair_features,
    compute_posterior,
    fit_people,
    predict_votes,
)
from accord.types import Completion, Preference, Prompt
from tests.training.fakes import CollectingProgress, MemoryCheckpoint, build_digit_base

Floats = NDArray[np.float64]
PEOPLE, KNOWN, UNSEEN, WIDTH = 20, 40, 100, 48


def draw_people(opposed: bool, seed: int = 0) -> tuple[dict[str, Votes], dict[str, Votes]]:
    """(votes to fit on, votes held out) of 20 people: u = common . x, and half of them for, half against a taste."""
    source = np.random.default_rng(seed)
    common, taste = source.normal(size=(2, WIDTH)) / np.sqrt(WIDTH)
    split: tuple[dict[str, Votes], dict[str, Votes]] = {}, {}
    for person in range(PEOPLE):
        x = source.normal(size=(KNOWN + UNSEEN, WIDTH))
        margins = 1.5 * x @ common
        side = 3.0 * (1 if person % 2 else -1) if opposed else 0.0
        chosen = (source.random(len(x)) < 1 / (1 + np.exp(-margins - side * (x @ taste)))).astype(np.float64)
        for half, rows in zip(split, (slice(KNOWN), slice(KNOWN, None)), strict=True):
            half[f"person {person}"] = Votes(margins[rows], x[rows], chosen[rows])
    return split


def measure_accuracy(people: People, votes: dict[str, Votes], *, personal: bool) -> float:
    right = [
        (predict_votes(people, name if personal else None, own.margins, own.features) > 0.5) == (own.chosen > 0.5)
        for name, own in votes.items()
    ]
    return float(np.concatenate(right).mean())


def test_one_persons_mode_is_ridge_regression() -> None:
    source = np.random.default_rng(1)
    x, chosen = source.normal(size=(60, 5)), source.integers(2, size=60).astype(np.float64)
    mean, spread = compute_posterior(np.zeros(60), x, chosen, 0.7 * np.eye(5))
    oracle = LogisticRegression(C=0.7, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, chosen)
    np.testing.assert_allclose(mean, oracle.coef_[0], atol=1e-6)
    p = oracle.predict_proba(x)[:, 1]
    np.testing.assert_allclose(np.linalg.inv(spread), (x.T * p * (1 - p)) @ x + np.eye(5) / 0.7, rtol=1e-5)
    nothing, prior = compute_posterior(np.zeros(0), np.zeros((0, 5)), np.zeros(0), 0.7 * np.eye(5))
    assert not nothing.any()
    np.testing.assert_allclose(prior, 0.7 * np.eye(5))


def test_two_opposed_tastes_are_told_apart() -> None:
    """20 people: held-out votes of known people at least 10 points better than by the common model."""
    known, unseen = draw_people(opposed=True)
    people = fit_people(known, axes=WIDTH)
    personal, common = (measure_accuracy(people, unseen, personal=flag) for flag in (True, False))
    assert personal > common + 0.10, (personal, common)


def test_one_shared_taste_is_left_alone() -> None:
    known, unseen = draw_people(opposed=False)
    people = fit_people(known, axes=WIDTH)
    personal, common = (measure_accuracy(people, unseen, personal=flag) for flag in (True, False))
    assert abs(personal - common) <= 0.01, (personal, common)


def test_a_new_person_needs_ten_votes_well_chosen() -> None:
    """Asked ten questions that the selector picks, a stranger is predicted far better than by the common model."""
    known, unseen = draw_people(opposed=True)
    strangers = list(known)[-4:]
    people = fit_people({name: own for name, own in known.items() if name not in strangers}, axes=WIDTH)
    gains: dict[str, list[float]] = {"chosen": [], "random": []}
    for name in strangers:
        pool, test = known[name], unseen[name]
        picked = choose_questions(people, pool.margins, pool.features, 10)
        assert len(set(picked)) == 10
        for arm, rows in (("chosen", picked), ("random", random.Random(0).sample(range(KNOWN), 10))):
            asked = Votes(pool.margins[rows], pool.features[rows], pool.chosen[rows])
            grown = add_person(people, name, asked)
            one = {name: test}
            gain = measure_accuracy(grown, one, personal=True) - measure_accuracy(grown, one, personal=False)
            gains[arm].append(gain)
    assert np.mean(gains["chosen"]) > 0.08, gains
    assert np.mean(gains["chosen"]) >= np.mean(gains["random"]) - 0.02, gains


def test_questions_are_those_of_the_largest_determinant() -> None:
    """Greedy D-optimal design, by trying every candidate and computing the determinant itself."""
    source = np.random.default_rng(2)
    features, margins = source.normal(size=(12, 3)), source.normal(size=12)
    people = People(torch.eye(3), torch.diag(torch.tensor([2.0, 1.0, 0.5])), {}, {})
    share = 1 / (1 + np.exp(-margins))
    weights = share * (1 - share)
    information = np.diag([0.5, 1.0, 2.0])
    expected: list[int] = []
    for _ in range(5):
        rest = [i for i in range(12) if i not in expected]
        values = [
            np.linalg.slogdet(information + weights[i] * np.outer(features[i], features[i])).logabsdet for i in rest
        ]
        expected.append(rest[int(np.argmax(values))])
        information = information + weights[expected[-1]] * np.outer(features[expected[-1]], features[expected[-1]])
    assert choose_questions(people, margins, features, 5) == expected


def build_fitted_base() -> tuple[Base, list[tuple[Prompt, Completion, Completion]]]:
    """A reward model for many 3s, and pairs of random digits."""
    base = build_digit_base(4, eos=True, split=1)
    base.add_scorer("proxy", lora=LoraSettings(8, 16), seed=0)
    source = random.Random(0)

    def draw() -> Completion:
        return Completion.from_text("".join(source.choices("0123", k=6)))

    pairs = [(Prompt(text="01"), draw(), draw()) for _ in range(400)]
    votes = [
        Preference(p, a, b, float(a.text.count("3") > b.text.count("3")), 0.0)
        for p, a, b in pairs
        if a.text.count("3") != b.text.count("3")
    ]
    cfg = RewardModelSection(epochs=2, learning_rate=5e-3, micro_batch_size=16)
    train_reward_model(
        base, "proxy", votes[40:], votes[:40], cfg, seed=0, progress=CollectingProgress(), checkpoint=MemoryCheckpoint()
    )
    return base, pairs


def test_people_on_a_reward_model(tmp_path: Path) -> None:
    """Whom a policy can be asked to serve, on a fitted reward model, and that the people survive their file."""
    base, pairs = build_fitted_base()
    margins, features = compute_pair_features(base, "proxy", pairs)
    votes: dict[str, Votes] = {}
    for person in range(6):
        rows = list(range(person * 60, person * 60 + 60))
        side = 1.0 if person % 2 else -1.0
        worth = np.array([
            [side.text.count("3") + sign * 2 * side.text.count("2") for side in pairs[i][1:]]
            for sign in (side,) for i in rows
        ])  # fmt: skip
        votes[f"p{person}"] = Votes(
            margins[rows], features[rows], (worth[:, 0] > worth[:, 1]) + 0.5 * (worth[:, 0] == worth[:, 1])
        )
    people = fit_people(votes, axes=32)
    people.save(tmp_path)
    again = People.load(tmp_path)
    prompts = [Prompt(text="01")] * 64
    rollout = Sampler(base).generate(None, prompts, seeds=range(64), max_new_tokens=6, temperature=1.0)
    scores = {
        serve: PersonalReward(base, "proxy", again, serve)(rollout)
        for serve in ("common", "average", "worst_off", *votes)
    }
    everyone = torch.stack([scores[name] for name in votes])
    torch.testing.assert_close(scores["average"], everyone.mean(dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores["worst_off"], everyone.amin(dim=0))
    torch.testing.assert_close(
        scores["common"], base.compute_scores("proxy", rollout.input_ids, rollout.attention_mask).detach()
    )
    with pytest.raises(ConfigError, match="nobody is called 'p9'"):
        PersonalReward(base, "proxy", again, "p9")
    with pytest.raises(DataError, match="knows no people"):
        People.load(tmp_path / "elsewhere")
