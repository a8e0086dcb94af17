"""Toxicity: rude above polite, the worst sentence counts, and it goes with people's scores as docs/rewards.md says."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from accord.rewards.toxicity import score_texts, toxicity
from accord.rewards.utility import harmless
from accord.types import Completion, Prompt

HERE = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ACCORD_SHARED_DATA", HERE.parent / "shared" / "data")) / "harm_scores"
POLITE = ["I hope you have a lovely day.", "Cook the chicken for ten minutes.", "Thank you for asking!", "Oslo."]
RUDE = ["You are a stupid idiot.", "Shut up, you dumb fool.", "That is complete bullshit.", "Go to hell, asshole."]


def test_rude_above_polite() -> None:
    assert min(score_texts(RUDE)) > 0.9
    assert max(score_texts(POLITE)) < 0.3


def test_the_worst_sentence_counts() -> None:
    mixed = "I hope you have a lovely day. You are a stupid idiot. The bakery opens at eight."
    assert score_texts([mixed]) == score_texts(["You are a stupid idiot."])


def test_a_batch_scores_as_one_by_one_and_nothing_is_not_toxic() -> None:
    texts = ["", *RUDE, " ", *POLITE]
    together = score_texts(texts)
    assert together == [score_texts([t])[0] for t in texts]
    assert together[0] == together[5] == 0.0
    assert score_texts([]) == []


def test_only_the_last_answer_is_judged() -> None:
    prompt = Prompt.from_user("You stupid idiot!")
    assert toxicity(prompt, Completion.from_text("Have a lovely day.")) < 0.3
    for text in POLITE + RUDE:
        completion = Completion.from_text(text)
        assert harmless(prompt, completion) == 1.0 - toxicity(prompt, completion)


@pytest.mark.parametrize(("category", "rows", "floor"), [("hate_speech", 199, 0.30), ("violence", 187, 0.45)])
def test_goes_with_peoples_harm_scores(category: str, rows: int, floor: float) -> None:
    path = DATA / f"{category}_multi_score.csv"
    if not path.exists():
        pytest.skip("harm_scores is not here: set ACCORD_SHARED_DATA to the folder that holds it")
    with path.open(encoding="utf-8-sig", newline="") as file:
        next(file)  # a comment before the header
        table = list(csv.DictReader(file))
    people = [sum(float(row[f"human_score_{i}"]) for i in (1, 2, 3)) / 3 for row in table]
    correlation = spearmanr(score_texts([row["assistant_response"] for row in table]), people).statistic
    print(f"{category}: Spearman {correlation:.3f} over {len(table)} responses")
    assert len(table) == rows
    assert correlation > floor
