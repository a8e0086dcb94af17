"""Aggregations against planted truth, closed forms and a second library."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene
from scipy.integrate import quad
from scipy.stats import beta, norm

from accord.errors import ConfigError
from accord.feedback.consensus import CONSENSUS, compute_consensus
from accord.feedback.dawid_skene import fit_dawid_skene
from accord.feedback.pairs import build_pair_table
from accord.feedback.ratings import calibrate_ratings, compute_rating_preference
from accord.feedback.records import build_vote
from accord.feedback.simulate import simulate_votes
from accord.types import Completion, Preference, Prompt, Vote
from tests.feedback.vote_strategies import compare

METHODS = list(CONSENSUS)


@dataclass(frozen=True)
class Annotator:
    name: str
    skill: float = 2.0
    side_bias: float = 0.0
    tie_rate: float = 0.0
    inconsistency: float = 0.0


PLANTED = [
    Annotator("sharp", skill=3.0),
    Annotator("leaning", skill=1.5, side_bias=1.0),
    Annotator("dull", skill=0.5, side_bias=-0.7),
    Annotator("blind", skill=0.0, side_bias=2.0),
    Annotator("contrary", skill=-1.5),
]


def plant(annotators: Sequence[Annotator], count: int, votes_per_pair: int) -> tuple[list[Vote], dict[str, float]]:
    """Votes on pairs whose margins are standard normal, and the utility of each completion's text."""
    generator = np.random.default_rng(3)
    draws = generator.normal(size=(count, 2)) / math.sqrt(2)
    pairs = [
        (Prompt.from_user(f"q{i}"), Completion.from_text(f"a{i}"), Completion.from_text(f"b{i}")) for i in range(count)
    ]
    utility = {c.text: float(draws[i, side]) for i, (_, a, b) in enumerate(pairs) for side, c in enumerate((a, b))}
    votes = simulate_votes(
        pairs, lambda _, c: utility[c.text], annotators, votes_per_pair=votes_per_pair, seed=1, source="test"
    )
    return votes, utility


def margins(preferences: Sequence[Preference], utility: dict[str, float]) -> np.ndarray:
    return np.array([utility[p.a.text] - utility[p.b.text] for p in preferences])


@pytest.fixture(scope="module")
def planted() -> tuple[list[Vote], dict[str, float]]:
    return plant(PLANTED, 3000, 5)


def test_bradley_terry_recovers_skill_side_bias_and_truth(planted: tuple[list[Vote], dict[str, float]]) -> None:
    votes, utility = planted
    preferences, report = compute_consensus(votes, "bradley_terry")
    for annotator in PLANTED:
        found = report.annotators[annotator.name]
        assert found.skill == pytest.approx(annotator.skill, abs=0.3)
        assert found.side_bias == pytest.approx(annotator.side_bias, abs=0.2)
        assert found.votes == 3000
    truth = margins(preferences, utility)
    right = np.mean((truth > 0) == ([p.probability > 0.5 for p in preferences]))
    # What nobody can beat: the posterior under the planted annotators themselves.
    assert right >= compute_best_accuracy(votes, preferences, utility) - 0.01


def compute_best_accuracy(votes: list[Vote], preferences: Sequence[Preference], utility: dict[str, float]) -> float:
    """Accuracy of the Bayes decision with the planted skills and biases, on a fine grid of margins."""
    known = {annotator.name: annotator for annotator in PLANTED}
    grid = np.linspace(-5, 5, 201)
    logs: dict[str, np.ndarray] = {}
    for vote in votes:
        annotator = known[vote.annotator]
        logit = annotator.skill * grid + annotator.side_bias
        sign = 1.0 if vote.choice == "a" else -1.0
        logs.setdefault(vote.prompt.id, norm.logpdf(grid))
        logs[vote.prompt.id] = logs[vote.prompt.id] - np.log1p(np.exp(-sign * logit))
    right = 0
    for preference in preferences:
        weight = np.exp(logs[preference.prompt.id])
        # The grid's margin is first minus second as shown, and the first text begins with an "a".
        first_wins = weight[grid > 0].sum() > weight[grid < 0].sum()
        shown_first = preference.a if preference.a.text.startswith("a") else preference.b
        other = preference.b if shown_first is preference.a else preference.a
        right += first_wins == (utility[shown_first.text] > utility[other.text])
    return right / len(preferences)


def test_models_of_annotators_beat_the_plain_fraction(planted: tuple[list[Vote], dict[str, float]]) -> None:
    votes, utility = planted
    accuracy = {}
    for method in METHODS:
        preferences, _ = compute_consensus(votes, method)
        truth = margins(preferences, utility)
        accuracy[method] = np.mean((truth > 0) == np.array([p.probability > 0.5 for p in preferences]))
    assert accuracy["dawid_skene"] > accuracy["fraction"] + 0.05
    assert accuracy["bradley_terry"] > accuracy["fraction"] + 0.05


def test_bradley_terry_is_calibrated() -> None:
    """Among pairs called p, a fresh unbiased annotator of that skill prefers a in a share p."""
    people = [Annotator(f"p{i}", skill=2.0) for i in range(3)]
    votes, utility = plant(people, 4000, 3)
    preferences, _ = compute_consensus(votes, "bradley_terry")
    chance = 1 / (1 + np.exp(-2.0 * margins(preferences, utility)))
    called = np.array([p.probability for p in preferences])
    spread = np.array([p.uncertainty for p in preferences])
    for low in np.arange(0.1, 0.9, 0.2):
        inside = (called >= low) & (called < low + 0.2)
        if inside.sum() > 100:
            assert chance[inside].mean() == pytest.approx(called[inside].mean(), abs=0.04)
    # And the standard error is the size of the error: mean squared error over mean variance.
    assert np.mean((chance - called) ** 2) == pytest.approx(np.mean(spread**2), rel=0.1)


def test_bradley_terry_with_one_vote_a_pair_is_the_chance_that_a_second_annotator_agrees() -> None:
    """p = E[sigmoid(s d)^2 + sigmoid(-s d)^2], d ~ N(0, 1), s = 2.4: InstructGPT's 73 %."""
    votes = [compare(f"q{i}", choice=random.Random(i).choice("ab")) for i in range(400)]
    preferences, report = compute_consensus(votes, "bradley_terry")
    s = report.annotators["ann"].skill
    assert s == pytest.approx(2.4, abs=0.02)

    def integrand(d: float) -> float:
        p = 1 / (1 + math.exp(-2.4 * d))
        return float(norm.pdf(d)) * (p * p + (1 - p) ** 2)

    expected = quad(integrand, -8, 8)[0]
    assert expected == pytest.approx(0.73, abs=0.005)
    side_bias = report.annotators["ann"].side_bias
    assert side_bias == pytest.approx(0.0, abs=0.35)
    sure = [max(p.probability, 1 - p.probability) for p in preferences]
    assert np.mean(sure) == pytest.approx(expected, abs=0.01)


def test_dawid_skene_recovers_skill_and_side_bias_of_a_true_class() -> None:
    """Pairs with a clear better side: P(a | true a) = sigmoid(s + c), P(a | true b) = sigmoid(-s + c) exactly."""
    people = [
        Annotator("sharp", skill=2.0, side_bias=0.5),
        Annotator("plain", skill=1.5),
        Annotator("dull", skill=0.8, side_bias=-0.6),
        Annotator("contrary", skill=-1.0),
    ]
    pairs = [
        (Prompt.from_user(f"q{i}"), Completion.from_text(f"a{i}"), Completion.from_text(f"b{i}")) for i in range(4000)
    ]
    better = {f"q{i}": random.Random(i).choice((1.0, -1.0)) for i in range(4000)}
    votes = simulate_votes(
        pairs,
        lambda prompt, c: better[prompt.messages[0].content] / 2 * (1 if c.text.startswith("a") else -1),
        people,
        votes_per_pair=4,
        seed=0,
        source="test",
    )
    _, report = compute_consensus(votes, "dawid_skene")
    for annotator in people:
        assert report.annotators[annotator.name].skill == pytest.approx(annotator.skill, abs=0.25)
        assert report.annotators[annotator.name].side_bias == pytest.approx(annotator.side_bias, abs=0.25)


def test_dawid_skene_agrees_with_crowd_kit() -> None:
    """The same labels with ties, without priors. Each pair comes with its mirror image: both classes weigh the same."""
    people = [Annotator(f"p{i}", skill=s, tie_rate=0.3) for i, s in enumerate((3.0, 2.0, 1.0, 0.5))]
    votes, _ = plant(people, 150, 4)
    rows = []
    mirrored = []
    for vote in votes:
        rows.append((vote.prompt.messages[0].content, vote.annotator, vote.choice))
        other = {"a": "b", "b": "a", "tie": "tie"}[vote.choice or ""]
        question = f"mirror of {vote.prompt.messages[0].content}"
        rows.append((question, vote.annotator, other))
        mirrored.append(compare(question, *(c.text for c in vote.completions), choice=other, annotator=vote.annotator))
    labels = pd.DataFrame(rows, columns=["task", "worker", "label"])
    expected = DawidSkene(n_iter=400, tol=-1.0).fit_predict_proba(labels)
    table = build_pair_table([*votes, *mirrored])
    found = fit_dawid_skene(table, prior_votes=0.0).probability
    for (prompt, a, _), probability in zip(table.pairs, found, strict=True):
        theirs = expected.loc[prompt.messages[0].content]
        value = theirs["a"] + theirs["tie"] / 2
        ours = probability if a.text.startswith("a") else 1 - probability
        assert ours == pytest.approx(value, abs=1e-4)


def test_dawid_skene_counts_what_has_no_side_once() -> None:
    """Two votes without a side are, together, one vote on each side: the same fit, to the last digit of EM."""
    votes, _ = plant([Annotator("x"), Annotator("y", skill=1.0), Annotator("z", skill=3.0)], 50, 3)
    table = build_pair_table(votes)
    columns = {name: np.repeat(getattr(table, name), 2) for name in ("pair", "annotator", "outcome", "strength")}
    sideless = replace(table, side=np.zeros(2 * len(votes)), **columns)
    sided = replace(table, side=np.tile([1.0, -1.0], len(votes)), **columns)
    one, other = fit_dawid_skene(sideless), fit_dawid_skene(sided)
    assert one.probability == pytest.approx(other.probability, abs=1e-6)
    assert one.skill == pytest.approx(other.skill, abs=1e-6)


def test_fraction_is_the_share_and_its_uncertainty_jeffreys() -> None:
    votes = [compare(choice=c, annotator=f"p{i}") for i, c in enumerate(["a", "a", "b", "tie"])]
    (preference,), _ = compute_consensus(votes, "fraction")
    expected = 2.5 / 4
    assert (preference.probability if preference.a.text == "yes" else 1 - preference.probability) == expected
    assert preference.uncertainty == pytest.approx(beta(3.0, 2.0).std())
    assert preference.votes == 4


@pytest.mark.parametrize("method", METHODS)
def test_both_orders_are_one_pair_and_the_order_of_votes_is_nothing(method: str) -> None:
    votes = [
        compare(choice="a", strength=7),
        compare(a="no", b="yes", choice="b", annotator="bob"),
        compare(a="no", b="yes", choice="tie", annotator="cat", strength=1),
        *(
            compare(f"q{i}", choice=random.Random(i).choice(["a", "b", "tie"]), annotator=f"p{i % 3}")
            for i in range(60)
        ),
    ]
    first = compute_consensus(votes, method)
    random.Random(0).shuffle(votes)
    assert compute_consensus(votes, method) == first  # to the bit
    (pair,) = [p for p in first.preferences if p.prompt == Prompt.from_user("why?")]
    assert pair.votes == 3
    assert pair.strength == pytest.approx((7 + 1) / 2 / 7)
    assert (pair.probability > 0.5) == (pair.a.text == "yes")


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_sides_turns_the_probability(method: str) -> None:
    """Everybody's sides swapped and choices turned: only side biases change sign."""
    votes, _ = plant(PLANTED[:3], 60, 3)
    turned = [
        compare(
            vote.prompt.messages[0].content,
            *(c.text for c in reversed(vote.completions)),
            choice={"a": "b", "b": "a"}[vote.choice or ""],
            annotator=vote.annotator,
        )
        for vote in votes
    ]
    one, other = compute_consensus(votes, method), compute_consensus(turned, method)
    for p, q in zip(one.preferences, other.preferences, strict=True):
        assert p.probability == pytest.approx(q.probability, abs=1e-3)
    for name, annotator in one.report.annotators.items():
        if annotator.side_bias is not None:
            assert other.report.annotators[name].side_bias == pytest.approx(-annotator.side_bias, abs=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_both_bad_weighs_nothing(method: str) -> None:
    bad = compare("bad", choice="both_bad")
    mixed = [compare("mixed", choice="both_bad"), *(compare("mixed", choice="a", annotator=f"p{i}") for i in range(3))]
    preferences, report = compute_consensus([bad, *mixed], method)
    found = {p.prompt.messages[0].content: p for p in preferences}
    assert (found["bad"].weight, found["bad"].probability, found["bad"].votes) == (0.0, 0.5, 1)
    assert (found["mixed"].weight, found["mixed"].votes) == (0.75, 4)
    assert found["mixed"].probability != 0.5
    assert report.annotators["ann"].votes == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_is_all_its_pairs(method: str) -> None:
    answers = tuple(Completion.from_text(text) for text in ("worst", "best", "mid", "mid too"))
    vote = build_vote(
        kind="ranking", prompt=Prompt.from_user("q"), completions=answers, annotator="ann", ranks=(3, 1, 2, 2)
    )
    preferences, _ = compute_consensus([vote], method)
    rank = {"worst": 3, "best": 1, "mid": 2, "mid too": 2}
    assert len(preferences) == 6
    for p in preferences:
        expected = np.sign(rank[p.b.text] - rank[p.a.text])
        assert np.sign(round(p.probability - 0.5, 9)) == expected


def rate(answer: str, rating: float, annotator: str, question: str = "q") -> Vote:
    return build_vote(
        kind="rating",
        prompt=Prompt.from_user(question),
        completions=(Completion.from_text(answer),),
        annotator=annotator,
        rating=rating,
    )


def test_calibration_takes_each_annotators_own_mean_and_scale_away() -> None:
    """A mild and a harsh annotator, one of them timid: the same qualities, so nearly the same calibrated ratings."""
    quality = np.random.default_rng(0).normal(size=2000)
    mild, harsh = 0.8 + 0.02 * quality, 0.3 + 0.1 * quality
    z = calibrate_ratings(np.concatenate([mild, harsh]), np.repeat([0, 1], 2000))
    expected = (quality - quality.mean()) / quality.std()
    assert z[:2000] == pytest.approx(expected, abs=0.1)
    assert z[2000:] == pytest.approx(expected, abs=0.1)


def test_calibration_of_few_ratings_is_shrunk_to_everybody() -> None:
    """Someone's only rating, the pooled mean: z is 0. By hand for one rating r: mean (r + 5 m) / 6."""
    crowd = np.array([0.2, 0.4, 0.6, 0.8] * 25)
    z = calibrate_ratings(np.append(crowd, 1.0), np.append(np.zeros(100, dtype=np.intp), 1))
    pooled = np.append(crowd, 1.0).mean()
    mean = (1.0 + 5 * pooled) / 6
    variance = ((1.0 - mean) ** 2 + 5 * (crowd.var() * 100 / 101)) / 6
    assert z[-1] == pytest.approx((1.0 - mean) / math.sqrt(variance))
    assert np.all(calibrate_ratings(np.full(4, 0.5), np.arange(4)) == 0.0)


def test_two_ratings_are_thurstones_case_five() -> None:
    """Drawn: qualities that differ by d, each seen with noise of unit variance."""
    noise = np.random.default_rng(0).normal(size=(2, 400_000))
    differences = np.array([-1.0, 0.0, 0.5, 2.0])
    drawn = [(d + noise[0] > noise[1]).mean() for d in differences]
    assert compute_rating_preference(differences) == pytest.approx(drawn, abs=0.003)


def test_ratings_become_preferences_in_the_annotators_own_measure() -> None:
    """A difference of 0.1 says more from someone who uses a tenth of the scale."""
    votes = []
    for i in range(40):
        shade = (i % 5) / 4
        votes += [rate(f"x{i}", 0.45 + 0.1 * shade, "timid", f"t{i}"), rate(f"x{i}", shade, "bold", f"b{i}")]
    votes += [rate("good", 0.55, "timid", "T"), rate("poor", 0.45, "timid", "T")]
    votes += [rate("good", 0.55, "bold", "B"), rate("poor", 0.45, "bold", "B")]
    preferences, _ = compute_consensus(votes, "fraction")
    found = {
        p.prompt.messages[0].content: p.probability if p.a.text == "good" else 1 - p.probability for p in preferences
    }
    assert found.keys() == {"T", "B"}
    assert 0.5 < found["B"] < 0.65 < 0.75 < found["T"]


def test_ratings_by_the_same_annotator_outrank_mixed_ones() -> None:
    votes = [rate("x", 0.9, "ann"), rate("y", 0.1, "ann"), rate("y", 1.0, "bob")]
    preferences, report = compute_consensus(votes, "fraction")
    assert set(report.annotators) == {"ann"}
    assert len(preferences) == 1
    mixed = compute_consensus([rate("x", 0.9, "ann"), rate("y", 0.1, "bob")], "fraction")
    assert set(mixed.report.annotators) == {"ratings"}


@pytest.mark.parametrize("method", METHODS)
def test_no_votes_and_no_pairs(method: str) -> None:
    flag = build_vote(
        kind="flag",
        prompt=Prompt.from_user("q"),
        completions=(Completion.from_text("x"),),
        annotator="ann",
        flag="rude",
    )
    for votes in ([], [flag], [rate("x", 0.5, "ann")]):
        preferences, report = compute_consensus(votes, method)
        assert (preferences, report.to_dict()) == ([], {"method": method, "annotators": {}})
    with pytest.raises(ConfigError, match="unknown consensus"):
        compute_consensus([], "majority")


def test_a_hundred_thousand_votes_take_seconds() -> None:
    pairs = [(Prompt.from_user(f"q{i}"), Completion.from_text("x"), Completion.from_text("y")) for i in range(20_000)]
    votes = [
        Vote(f"{i}{name}", "comparison", prompt, (a, b), name, choice="a" if hash((i, name, 0)) % 2 else "b")
        for i, (prompt, a, b) in enumerate(pairs)
        for name in "vwxyz"
    ]
    for method in METHODS:
        began = time.process_time()
        compute_consensus(votes, method)
        assert time.process_time() - began < 20
