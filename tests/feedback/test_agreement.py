"""Agreement against Krippendorff's published example, a second library and closed forms."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from crowdkit.metrics.data import alpha_krippendorff

from accord.errors import DataError
from accord.feedback.agreement import (
    Level,
    build_agreement_table,
    compute_agreement,
    compute_alpha,
    compute_pairwise_agreement,
)
from accord.feedback.importing import import_file
from accord.feedback.records import build_vote
from accord.feedback.store import VoteStore
from accord.types import Completion, Prompt
from tests.feedback.vote_strategies import compare

X = np.nan
# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: 4 coders, 12 units, gaps.
EXAMPLE = pd.DataFrame(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
        [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
    ]
)


@pytest.mark.parametrize(
    "level, published", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_krippendorffs_worked_example(level: Level, published: float) -> None:
    interval = compute_alpha(EXAMPLE, level, resamples=50)
    assert interval.estimate == pytest.approx(published, abs=5e-4)
    assert interval.low <= interval.estimate <= interval.high
    assert interval == compute_alpha(EXAMPLE, level, resamples=50)


def test_alpha_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two coders who copy a fair coin with probability c each agree beyond chance by c^2: alpha = c^2."""
    generator = np.random.default_rng(0)
    truth, hits, repeats = 0.6**2, 0, 40
    for repeat in range(repeats):
        coin = generator.integers(0, 2, 80)
        copies = [np.where(generator.random(80) < 0.6, coin, generator.integers(0, 2, 80)) for _ in range(2)]
        interval = compute_alpha(pd.DataFrame(copies).astype(float), resamples=100, seed=repeat)
        hits += interval.low <= truth <= interval.high
    assert hits >= 33  # 38 expected at 95 %, sd 1.4


def test_pairwise_agreement_counts_pairs_of_votes() -> None:
    # Items of 3 votes (1 of 3 pairs agree), 2 votes (1 of 1), 1 vote (none).
    table = pd.DataFrame([[0, 1, 2], [0, 1, X], [2, X, X]], dtype=float)
    assert compute_pairwise_agreement(table).estimate == pytest.approx(2 / 4)


def test_pairwise_interval_has_the_width_of_a_binomial() -> None:
    generator = np.random.default_rng(1)
    table = pd.DataFrame([np.zeros(400), (generator.random(400) < 0.3).astype(float)])
    interval = compute_pairwise_agreement(table, resamples=2000)
    p = interval.estimate
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.1)


def test_a_pair_is_one_item_in_either_order() -> None:
    votes = [
        compare(choice="a"),
        compare(a="no", b="yes", choice="b", annotator="bob"),
        compare("other", choice="a"),
        compare("other", a="no", b="yes", choice="a", annotator="bob"),
        compare("more", choice="b"),
        compare("more", a="no", b="yes", choice="a", annotator="bob"),
        compare("third", choice="tie"),
        compare("third", choice="both_bad", annotator="bob"),
        compare("alone"),
    ]
    agreement = compute_agreement(votes, resamples=10)
    assert (agreement.items, agreement.annotators, agreement.votes) == (4, 2, 8)
    assert agreement.pairwise is not None
    assert agreement.pairwise.estimate == pytest.approx(2 / 4)


def test_rankings_agree_pair_by_pair() -> None:
    answers = tuple(Completion.from_text(text) for text in "xyz")
    votes = [
        build_vote(kind="ranking", prompt=Prompt.from_user("q"), completions=answers, annotator=name, ranks=ranks)
        for name, ranks in (("ann", (1, 2, 3)), ("bob", (1, 3, 2)))
    ]
    agreement = compute_agreement(votes, resamples=10)
    assert agreement.pairwise is not None
    assert agreement.pairwise.estimate == pytest.approx(2 / 3)


def test_ratings_agree_at_the_interval_level() -> None:
    """The worked example again, as ratings of 12 completions."""
    votes = [
        build_vote(
            kind="rating",
            prompt=Prompt.from_user("q"),
            completions=(Completion.from_text(f"c{unit}"),),
            annotator=f"coder {coder}",
            rating=value / 10,
        )
        for coder, row in enumerate(EXAMPLE.to_numpy())
        for unit, value in enumerate(row)
        if not np.isnan(value)
    ]
    agreement = compute_agreement(votes, kind="rating", resamples=10)
    assert agreement.alpha is not None
    assert agreement.alpha.estimate == pytest.approx(0.849, abs=5e-4)


def test_without_overlap_there_is_no_agreement() -> None:
    agreement = compute_agreement([compare("x"), compare("y", annotator="bob")])
    assert (agreement.pairwise, agreement.alpha, agreement.items) == (None, None, 0)
    assert compute_agreement([]).to_dict()["alpha"] is None
    with pytest.raises(DataError, match="two annotators"):
        compute_alpha(pd.DataFrame([[1.0, X], [X, 1.0]]))


def test_pandalm_as_an_independent_library_sees_the_file(store: VoteStore, shared_data: Path) -> None:
    path = shared_data / "pandalm" / "pairs.jsonl.gz"
    import_file(store, path, skip_bad=True)
    agreement = compute_agreement(store.votes(), resamples=20)
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    usable = [r for r in rows if all(isinstance(r[k], str) and r[k].strip() for k in ("response1", "response2"))]
    people = ("annotator1", "annotator2", "annotator3")
    # Straight from the file: no code of ours lies between it and the other library.
    long = pd.DataFrame([(r["idx"], p, r[p]) for r in usable for p in people], columns=["task", "worker", "label"])
    assert agreement.items == len(usable) == 654
    assert agreement.alpha is not None
    assert agreement.pairwise is not None
    assert agreement.alpha.estimate == pytest.approx(alpha_krippendorff(long), abs=1e-9)
    equal = [r[p] == r[q] for r in usable for p, q in combinations(people, 2)]
    assert agreement.pairwise.estimate == pytest.approx(sum(equal) / len(equal))
    table = build_agreement_table(store.votes())
    assert table.shape == (3, 654)
