"""Personal corrections: scikit-learn's ridge as the oracle, planted tastes, shrinkage to nothing, and ten votes."""

from __future__ import annotations

import math
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
from accord.rewards import LearnedReward
from accord.rewards.personal import People, PersonalReward, require_served
from accord.rollout import Sampler
from accord.training import train_reward_model
from accord.training.personal import (
    Votes,
    add_person,
    choose_questions,
    compute_answer_features,
    compute_posterior,
    fit_people,
    is_apart,
    predict_votes,
    scale_scores,
    weigh_features,
)
from accord.training.tastes import find_axes, fit_slope
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
    people = fit_people(known)
    personal, common = (measure_accuracy(people, unseen, personal=flag) for flag in (True, False))
    assert personal > common + 0.10, (personal, common)


def test_one_shared_taste_is_left_alone() -> None:
    known, unseen = draw_people(opposed=False)
    people = fit_people(known)
    personal, common = (measure_accuracy(people, unseen, personal=flag) for flag in (True, False))
    assert abs(personal - common) <= 0.01, (personal, common)


def test_a_new_person_needs_ten_votes_well_chosen() -> None:
    """Asked ten questions that the selector picks, a stranger is predicted far better than by the common model."""
    known, unseen = draw_people(opposed=True)
    strangers = list(known)[-4:]
    people = fit_people({name: own for name, own in known.items() if name not in strangers})
    gains: dict[str, list[float]] = {"chosen": [], "random": []}
    for name in strangers:
        pool, test = known[name], unseen[name]
        picked = choose_questions(people, pool.margins, pool.features, 10)
        assert len(set(picked)) == 10
        for arm, rows in (("chosen", picked), ("random", random.Random(0).sample(range(KNOWN), 10))):
            grown = add_person(people, name, pool.take(rows))
            one = {name: test}
            gain = measure_accuracy(grown, one, personal=True) - measure_accuracy(grown, one, personal=False)
            gains[arm].append(gain)
    assert np.mean(gains["chosen"]) > 0.08, gains
    assert np.mean(gains["chosen"]) >= np.mean(gains["random"]) - 0.02, gains


def test_questions_are_those_of_the_largest_determinant() -> None:
    """Greedy D-optimal design, by trying every candidate and computing the determinant itself."""
    source = np.random.default_rng(2)
    features, margins = source.normal(size=(12, 3)), source.normal(size=12)
    people = People(torch.eye(3), torch.zeros(3), 1.0, 1.0, torch.diag(torch.tensor([2.0, 1.0, 0.5])), {}, {})
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


def test_weights_are_the_prior_deviations_of_a_taste() -> None:
    """By the closed form: axes z with z ~ N(0, I) are coefficients of variance weight^2 / variance of the feature."""
    differences = np.random.default_rng(5).normal(size=(400, 9)) * np.linspace(0.1, 3.0, 9)
    weights = weigh_features(9)
    np.testing.assert_allclose(weights**2, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.4])
    axes = find_axes(differences, weights)
    prior = np.diag(weights**2 / (differences**2).mean(axis=0)) / (weights**2).sum()
    np.testing.assert_allclose(axes @ axes.T, prior, atol=1e-9)


def build_fitted_base(split: int) -> Base:
    """A reward model for many 3s on a random model of digits."""
    base = build_digit_base(4, eos=True, split=split)
    base.add_scorer("proxy", lora=LoraSettings(8, 16), seed=0)
    votes = [
        Preference(p, a, b, float(a.text.count("3") > b.text.count("3")), 0.0)
        for p, a, b in draw_pairs(400, seed=0)
        if a.text.count("3") != b.text.count("3")
    ]
    cfg = RewardModelSection(epochs=2, learning_rate=5e-3, micro_batch_size=16)
    train_reward_model(
        base, "proxy", votes[40:], votes[:40], cfg, seed=0, progress=CollectingProgress(), checkpoint=MemoryCheckpoint()
    )
    return base


def draw_pairs(count: int, seed: int) -> list[tuple[Prompt, Completion, Completion]]:
    source = random.Random(seed)
    answers = [Completion.from_text("".join(source.choices("0123", k=6))) for _ in range(2 * count)]
    return [(Prompt(text="01"), a, b) for a, b in zip(answers[::2], answers[1::2], strict=True)]


def cast(base: Base, people: int, each: int, opposed: bool, seed: int) -> dict[str, Votes]:
    """Votes of people who all like 3s, and of whom half like and half dislike 2s twice as much."""
    pairs = draw_pairs(people * each, seed)
    a, b = ([(prompt, sides[i]) for prompt, *sides in pairs] for i in (0, 1))
    features = compute_answer_features(base, a) - compute_answer_features(base, b)
    reward = LearnedReward(base, "proxy")
    scores = [reward.score_texts(*zip(*side, strict=True)).double().numpy() for side in (a, b)]
    threes, twos = (np.array([x.text.count(d) - y.text.count(d) for _, x, y in pairs]) for d in "32")
    side = np.repeat([1.0 if person % 2 or not opposed else -1.0 for person in range(people)], each)
    logits = 2.0 * (threes + 2.0 * side * twos * opposed)
    chosen = (np.random.default_rng(seed).random(len(pairs)) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    everything = Votes(scores[0] - scores[1], features, chosen)
    return {f"p{person}": everything.take(range(person * each, person * each + each)) for person in range(people)}


@pytest.mark.parametrize("split", [0, 1])
def test_tastes_in_text_are_told_apart_on_the_states_of_a_model(split: int) -> None:
    """Where the taste is of the text, the reward model knows nothing of it, and features come from the model itself."""
    base = build_fitted_base(split)
    for opposed in (True, False):
        people = fit_people(cast(base, 20, 40, opposed, seed=1), weights=weigh_features(2 * base.hidden_size + 1))
        unseen = cast(base, 20, 100, opposed, seed=2)
        personal, common = (measure_accuracy(people, unseen, personal=flag) for flag in (True, False))
        apart = sum(is_apart(people, name) for name in unseen)
        if opposed:
            assert personal > common + 0.10, (personal, common)
            assert apart >= 18
        else:
            assert abs(personal - common) <= 0.01, (personal, common)
            assert apart <= 2


@pytest.mark.parametrize("split", [0, 1])
def test_features_are_the_mean_over_the_answer_its_end_and_its_length(split: int) -> None:
    """Against transformers' own list of hidden states, each answer alone and without padding."""
    base = build_digit_base(4, eos=True, split=split)
    answers = [(Prompt(text="01"), Completion.from_text(text)) for text in ("3", "2213", "012301")]
    found = compute_answer_features(base, answers)
    for row, (prompt, answer) in zip(found, answers, strict=True):
        head = base.tokens.encode_prompt(prompt)
        ids = torch.tensor([head + base.tokens.encode_completion(answer)])
        with torch.no_grad():
            states = base.model(ids, output_hidden_states=True).hidden_states[split or -1][0]
        length = torch.tensor([math.log(1 + len(ids[0]) - len(head))])
        expected = torch.cat([states[len(head) :].mean(dim=0), states[-1], length])
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)


def test_whom_a_policy_can_serve(tmp_path: Path) -> None:
    """On a fitted reward model, from a file; with and without the trunk that PPO has."""
    base = build_fitted_base(1)
    source = np.random.default_rng(0)
    scores, features = source.normal(size=200), source.normal(1.0, size=(200, 2 * base.hidden_size + 1))
    people = scale_scores(fit_people(cast(base, 6, 60, opposed=True, seed=1)), scores, features)
    people.save(tmp_path)
    again = People.load(tmp_path)
    rollout = Sampler(base).generate(None, [Prompt(text="01")] * 48, seeds=range(48), max_new_tokens=6, temperature=1.0)
    trunk = base.compute_trunk(rollout.input_ids, rollout.attention_mask)
    common = LearnedReward(base, "proxy")
    scores = {
        serve: PersonalReward(base, common, again, serve)(rollout)
        for serve in ("common", "average", "worst_off", "somebody else", *again.shifts)
    }
    everyone = torch.stack([scores[name] for name in again.shifts])
    torch.testing.assert_close(scores["average"], everyone.mean(dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores["worst_off"], everyone.amin(dim=0))
    torch.testing.assert_close(scores["common"], common(rollout))
    torch.testing.assert_close(scores["somebody else"], common(rollout))
    parted = PersonalReward(base, common, again, "p1").score(rollout, trunk)
    torch.testing.assert_close(parted.total, scores["p1"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parted.parts["common"], scores["common"], atol=1e-4, rtol=1e-4)
    answers = list(zip(rollout.prompts, rollout.completions, strict=True))
    features = torch.from_numpy(compute_answer_features(base, answers)).float()
    correction = (features - again.centre) @ again.axes @ again.shifts["p1"]
    expected = (again.slope * scores["common"] + correction) / again.unit
    said = torch.tensor([len(base.tokens.encode_completion(answer)) for _, answer in answers])
    whole = said == rollout.completion_mask.sum(dim=1)  # a sampled PAD is lost in the text
    assert whole.sum() > 30
    torch.testing.assert_close(scores["p1"][whole], expected[whole], atol=1e-3, rtol=1e-3)
    with pytest.raises(DataError, match="no people"):
        People.load(tmp_path / "elsewhere")


def test_a_name_that_nobody_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nobody is called 'adda'") as refused:
        require_served("adda", ["ada", "ben"], "reward.serve")
    assert refused.value.mend == "did you mean 'ada'?"
    require_served("worst_off", [], "reward.serve")


def test_the_slope_is_that_of_a_logistic_regression() -> None:
    source = np.random.default_rng(3)
    margins = source.normal(size=300)
    chosen = (source.random(300) < 1 / (1 + np.exp(-1.7 * margins))).astype(np.float64)
    oracle = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(margins[:, None], chosen)
    assert fit_slope(margins, chosen) == pytest.approx(float(oracle.coef_[0, 0]), abs=1e-6)


def test_personal_scores_vary_as_the_common_ones_do() -> None:
    """The unit by its definition: the variance of everybody's score, the mean over people, is that of the common."""
    source = np.random.default_rng(4)
    shifts = {name: torch.tensor(value) for name, value in (("for", [2.0, 0.0]), ("against", [-3.0, 1.0]))}
    axes = torch.from_numpy(source.normal(size=(6, 2))).float()
    people = People(axes, torch.zeros(6), 0.7, 0.7, torch.eye(2), shifts, {})
    scores, features = source.normal(size=50), source.normal(2.0, size=(50, 6))
    scaled = scale_scores(people, scores, features)
    reward = [
        (0.7 * scores + (features - features.mean(axis=0)) @ axes.double().numpy() @ shift.double().numpy())
        / scaled.unit
        for shift in shifts.values()
    ]
    assert np.mean([own.var() for own in reward]) == pytest.approx(scores.var(), rel=1e-5)
    np.testing.assert_allclose(scaled.centre, features.mean(axis=0), rtol=1e-5)
