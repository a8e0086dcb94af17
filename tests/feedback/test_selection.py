"""Which pairs come next: the order of each rule, and propensities that equal the count over every possible draw."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from accord.errors import ConfigError, DataError
from accord.feedback.selection import SELECTORS, Candidate, compute_propensities, select_pairs
from accord.types import Completion, Prompt


def candidate(name: object = 0, prompt: object = None, **fields: object) -> Candidate:
    answers = (Completion.from_text(f"{name} one"), Completion.from_text(f"{name} other"))
    return Candidate(Prompt.from_user(str(name if prompt is None else prompt)), *answers, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "total, drawn, best", [(7, 2, 3), (6, 1, 1), (6, 3, 2), (5, 2, 3), (5, 5, 0), (8, 1, 0), (8, 1, 6)]
)
def test_propensities_are_the_share_of_all_draws(total: int, drawn: int, best: int) -> None:
    """Oracle: every set that the random arm could draw, each as likely as the next."""
    chosen = Counter[int]()
    draws = list(combinations(range(total), drawn))
    for draw in draws:
        chosen.update(draw)
        chosen.update([rank for rank in range(total) if rank not in draw][:best])
    expected = [chosen[rank] / len(draws) for rank in range(total)]
    assert compute_propensities(total, drawn, best) == pytest.approx(expected, abs=1e-12)
    assert sum(compute_propensities(total, drawn, best)) == pytest.approx(drawn + best)


def test_propensities_are_how_often_a_pair_is_chosen() -> None:
    candidates = [candidate(i, margins=(0.0, float(i))) for i in range(12)]
    runs, counts, stored = 3000, np.zeros(12), {}
    for seed in range(runs):
        for row in select_pairs(candidates, 5, selector="uncertain", seed=seed, random_share=0.4):
            counts[row.index] += 1
            stored[row.index] = row.propensity
    expected = np.array([stored[i] for i in range(12)])
    error = np.sqrt(expected * (1 - expected) / runs) + 1e-9
    assert np.all(np.abs(counts / runs - expected) < 4.5 * error)  # by chance once in 12,000 runs of this test
    assert expected.min() > 0.0


def test_inverse_propensities_make_an_estimate_of_all_pairs_unbiased() -> None:
    """Horvitz and Thompson (1952): the mean over all pairs, from chosen ones only; the rule prefers large values."""
    values = np.arange(10.0)
    candidates = [candidate(i, margins=(0.0, float(i))) for i in range(10)]
    estimates = [
        sum(values[row.index] / row.propensity for row in select_pairs(candidates, 4, selector="uncertain", seed=seed))
        / len(candidates)
        for seed in range(4000)
    ]
    standard_error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - values.mean()) < 4.0 * standard_error


def test_the_random_arm_always_stays() -> None:
    candidates = [candidate(i, margins=(0.0, float(i))) for i in range(100)]
    rows = select_pairs(candidates, 20, selector="uncertain", seed=0)
    assert Counter(row.arm for row in rows) == {"random": 4, "uncertain": 16}
    assert len({row.index for row in rows}) == 20
    assert rows == select_pairs(candidates, 20, selector="uncertain", seed=0)
    assert Counter(row.arm for row in select_pairs(candidates, 1, selector="uncertain", seed=0)) == {"random": 1}
    everything = select_pairs(candidates, 200, selector="uncertain", seed=0)
    assert [row.propensity for row in everything] == [1.0] * 100
    assert {row.arm for row in select_pairs(candidates, 20, selector="random", seed=0)} == {"random"}
    assert {row.propensity for row in select_pairs(candidates, 20, selector="random", seed=0)} == {0.2}
    assert select_pairs([], 5, selector="random", seed=0) == []
    for share in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="random share"):
            select_pairs(candidates, 5, selector="random", seed=0, random_share=share)
    with pytest.raises(ConfigError, match="uncertain"):
        select_pairs(candidates, 5, selector="unsure", seed=0)


def test_uncertain_prefers_where_the_ensemble_disagrees() -> None:
    agreed, torn, mild = (
        candidate(name, margins=m) for name, m in (("x", (3.0, 3.0)), ("y", (-4.0, 4.0)), ("z", (-0.5, 0.5)))
    )
    assert SELECTORS["uncertain"]([agreed, torn, mild], 0) == [1, 2, 0]
    for margins in ((), (1.0,), (1.0, float("nan"))):
        with pytest.raises(DataError, match="margins"):
            SELECTORS["uncertain"]([candidate(margins=margins)], 0)


def test_conflict_prefers_where_people_and_the_model_differ() -> None:
    pairs = [
        candidate("agrees", human=0.9, margins=(math.log(9.0),)),
        candidate("differs", human=0.1, margins=(math.log(9.0),)),
        candidate("unjudged"),
        candidate("half", human=0.5, margins=(math.log(9.0), math.log(9.0))),
    ]
    assert SELECTORS["conflict"](pairs, 0) == [1, 3, 0, 2]
    with pytest.raises(DataError, match="margins"):
        SELECTORS["conflict"]([candidate(human=0.5)], 0)


def test_coverage_goes_round_the_prompts() -> None:
    pairs = [candidate(i, prompt=f"p{i % 4}") for i in range(12)]
    order = SELECTORS["coverage"](pairs, 1)
    assert sorted(order) == list(range(12))
    for start in (0, 4, 8):
        assert {i % 4 for i in order[start : start + 4]} == {0, 1, 2, 3}
    judged = [candidate(i, prompt_votes=i % 3) for i in range(9)]
    assert [i % 3 for i in SELECTORS["coverage"](judged, 1)] == [0] * 3 + [1] * 3 + [2] * 3


def test_taste_asks_what_tells_most_of_a_person() -> None:
    """Far apart in taste and near in common score first; a second question of the other taste before one alike."""
    places = [(0.1, 0.0), (3.0, 0.0), (2.9, 0.0), (0.0, 2.0), (3.5, 0.0)]
    margins = [0.0, 0.0, 0.0, 0.0, 6.0]
    candidates = [candidate(i, margins=(m,), places=p) for i, (m, p) in enumerate(zip(margins, places, strict=True))]
    assert SELECTORS["taste"](candidates, 0)[:2] == [1, 3]
    alike = [candidate(i, margins=(float(i),)) for i in range(5)]
    assert sorted(SELECTORS["taste"](alike, 0)) == list(range(5))
    assert SELECTORS["taste"](alike, 0) != SELECTORS["taste"](alike, 3)
    with pytest.raises(DataError, match="taste"):
        SELECTORS["taste"]([candidate()], 0)
