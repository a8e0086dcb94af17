"""Votes of people on a real model, predicted: the benchmark runs to its end on a tiny one, by either common model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import personal

SIZES = [
    "--prompts=24", "--new-tokens=5", "--votes=12", "--people=4", "--strangers=2", "--epochs=1", "--dtype=float32",
]  # fmt: skip


@pytest.mark.parametrize("common", ["fitted", "linear"])
def test_a_row_for_known_people_and_one_for_each_number_of_votes_of_new_ones(
    common: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found.json"
    options = ["--tastes", "length_words", "--seeds", "2", "--common", common, "--json", str(found)]
    monkeypatch.setattr("sys.argv", ["personal", f"--model={tiny_model}", f"--work={tmp_path}", *SIZES, *options])
    personal.main()
    rows = json.loads(found.read_text())["rows"]
    assert [row["name"].split(": ")[1] for row in rows] == [
        "known people", "new, 5 votes chosen", "new, 5 votes at random", "new, 10 votes chosen",
        "new, 10 votes at random", "new, 20 votes chosen", "new, 20 votes at random", "known people",
    ]  # fmt: skip
    assert all(len(row["of each seed"].split()) == len(row["tastes"].split()) == 2 for row in rows)


def test_the_gain_is_of_means_over_people() -> None:
    """By hand: 0.5 and 0.7 by the common model, 0.6 and 1.0 by their own, are 60 % and 80 %."""

    class Nobody:
        axes = np.zeros((3, 1))

    row = {"people": Nobody, "common": [0.5, 0.7], "personal": [0.6, 1.0]}
    told = personal.summarise("x", [row])
    assert (told["common %"], told["personal %"], told["gain"], told["tastes"]) == (60.0, 80.0, "+20.0", "1")
