"""The report card against numbers worked out by hand and against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from accord.errors import DataError
from accord.evaluation import compute_reward_card
from accord.types import Completion, Preference, Prompt


def make_preference(probability: float, number: int, *, weight: float = 1.0, prompt: int | None = None) -> Preference:
    a, b = Completion.from_text(f"a {number}"), Completion.from_text(f"b {number}")
    asked = Prompt.from_user(f"question {number if prompt is None else prompt}")
    return Preference(asked, a, b, probability, 0.0, weight=weight)


def make_card(
    margins: list[float], labels: list[float], gaps: list[int] | None = None, **options: Any
) -> dict[str, Any]:
    preferences = [make_preference(label, i) for i, label in enumerate(labels)]
    lengths = [100 + gap for gap in gaps or [0] * len(margins)]
    return compute_reward_card(
        margins, [0.0] * len(margins), preferences, lengths_a=lengths, lengths_b=[100] * len(margins),
        annotator_agreement=0.7, **options,
    )  # fmt: skip


def test_numbers_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.0, 1.5, size=400)
    labels = (rng.random(400) < expit(margins)).astype(float)
    card = make_card(margins.tolist(), labels.tolist())
    predicted = expit(margins)
    assert card["accuracy"]["value"] == pytest.approx(accuracy_score(labels, margins > 0))
    assert card["log_loss_nats"] == pytest.approx(log_loss(labels, predicted))
    assert card["brier"] == pytest.approx(brier_score_loss(labels, predicted))
    assert card["annotator_agreement"] == 0.7


def test_calibration_error_is_that_of_scikit_learns_bins() -> None:
    rng = np.random.default_rng(1)
    margins = rng.normal(0.0, 2.0, size=500)
    labels = (rng.random(500) < expit(0.5 * margins)).astype(float)  # overconfident by a factor of 2
    card = make_card(margins.tolist(), labels.tolist())
    confidence, right = expit(np.abs(margins)), (labels == (margins > 0)).astype(float)
    frequency, mean = calibration_curve(right, (confidence - 0.5) * 2, n_bins=10)  # 20 bins of [0, 1], the upper ten
    counts = np.histogram(confidence, bins=np.linspace(0.5, 1.0, 11))[0]
    expected = float((counts[counts > 0] / 500 * np.abs(frequency - (mean / 2 + 0.5))).sum())
    assert card["calibration_error"] == pytest.approx(expected, abs=1e-9)
    assert card["calibration_error"] > 0.08


def test_a_calibrated_model_has_little_calibration_error() -> None:
    rng = np.random.default_rng(2)
    margins = rng.normal(0.0, 2.0, size=2000)
    card = make_card(margins.tolist(), expit(margins).tolist())  # soft labels equal to the predictions
    assert card["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert card["brier"] == pytest.approx(0.0, abs=1e-12)
    assert card["log_loss_nats"] == pytest.approx(card["label_entropy_nats"])


def test_normalised_scores_are_scaled_back() -> None:
    margins, labels = [2.0, -1.0, 0.5, 3.0], [0.9, 0.2, 0.6, 0.4]
    plain = make_card(margins, labels)
    assert make_card([m / 4 for m in margins], labels, score_std=4.0) == plain  # a power of two loses no bit


def test_length_baseline_says_longer_and_does_not_peek() -> None:
    card = make_card([1.0] * 4, [1.0, 1.0, 0.0, 1.0], [5, -5, -5, 0])
    assert card["length_accuracy"]["value"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    short = make_card([1.0] * 4, [0.0] * 4, [5] * 4)
    assert short["length_accuracy"]["value"] == 0.0  # the better of both rules would say 1
    assert short["accuracy_minus_length"]["value"] == 0.0


def test_undecided_and_weightless_pairs() -> None:
    labels, weights = [1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    preferences = [make_preference(p, i, weight=w) for i, (p, w) in enumerate(zip(labels, weights))]
    card = compute_reward_card(
        [1.0, 1.0, 1.0, -9.0], [0.0] * 4, preferences, lengths_a=[1] * 4, lengths_b=[1] * 4, annotator_agreement=None
    )
    assert (card["pairs"], card["decided_pairs"], card["prompts"]) == (3, 2, 3)
    assert card["accuracy"]["value"] == 0.5
    assert card["annotator_agreement"] is None


def test_bins_hold_every_decided_pair_once() -> None:
    rng = np.random.default_rng(3)
    margins, gaps = rng.normal(size=300).tolist(), rng.integers(-80, 80, size=300).tolist()
    card = make_card(margins, (rng.random(300) < 0.5).astype(float).tolist(), gaps)
    for key in ("accuracy_by_margin", "accuracy_by_length"):
        bins = card[key]
        assert sum(b["n"] for b in bins) == 300
        mean = sum(b["n"] * b["accuracy"]["value"] for b in bins) / 300
        assert mean == pytest.approx(card["accuracy"]["value"])


def test_a_model_of_length_is_found_out() -> None:
    gaps = [40, 20, -20, -40, 10, -10] * 5
    card = make_card([float(g) for g in gaps], [1.0, 1.0, 1.0, 0.0, 1.0, 0.0] * 5, gaps)
    assert card["margin_length_correlation"] == pytest.approx(1.0)
    assert card["accuracy"] == card["length_accuracy"]
    where_shorter_won = [b for b in card["accuracy_by_length"] if b["high"] is not None and b["high"] < 0]
    assert [b["accuracy"]["value"] for b in where_shorter_won] == [0.0]


def test_pairs_of_one_prompt_count_as_one_observation() -> None:
    preferences = [make_preference(1.0, i, prompt=i // 10) for i in range(40)]
    card = compute_reward_card(
        [1.0] * 40, [0.0] * 40, preferences, lengths_a=[1] * 40, lengths_b=[1] * 40, annotator_agreement=None
    )
    assert (card["accuracy"]["n"], card["decided_pairs"]) == (4, 40)


def test_no_decided_pair_is_said_and_not_passed() -> None:
    card = make_card([1.0, 2.0], [0.5, 0.5])
    assert card["accuracy"] is None
    assert card["accuracy_by_margin"] == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="beside columns"):
        compute_reward_card(
            [1.0], [0.0, 1.0], [make_preference(1, 0)], lengths_a=[1], lengths_b=[1], annotator_agreement=None
        )
    with pytest.raises(DataError, match="finite"):
        make_card([float("nan")], [1.0])
    with pytest.raises(DataError, match="counts"):
        compute_reward_card(
            [1.0], [0.0], [make_preference(1, 0, weight=0.0)], lengths_a=[1], lengths_b=[1], annotator_agreement=None
        )
