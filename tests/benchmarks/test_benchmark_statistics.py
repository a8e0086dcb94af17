"""Fits, arrivals and intervals, held to published numbers, another library and cases worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from accord.errors import ConfigError
from benchmarks.tables import check_earlier_rows, fit_line, format_table, gather_rows, summarize
from benchmarks.text_rewards import score_second_person, score_short_words
from benchmarks.time_to_reward import estimate_ratio, find_arrival, judge, smooth

# Anscombe 1973, "Graphs in Statistical Analysis", data set I
ANSCOMBE_X = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
ANSCOMBE_Y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]


def test_the_line_through_anscombes_first_set() -> None:
    line = fit_line(ANSCOMBE_X, ANSCOMBE_Y)
    assert line["slope"] == pytest.approx(0.500, abs=5e-4)
    assert line["intercept"] == pytest.approx(3.00, abs=5e-3)
    assert line["r_squared"] == pytest.approx(0.667, abs=5e-4)


def test_a_line_without_slope_or_without_room() -> None:
    flat = fit_line([1, 2, 3], [4, 4, 4])
    assert flat["slope"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(fit_line([2, 2], [1, 3])["r_squared"])


def test_summaries_and_tables() -> None:
    assert summarize([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert format_table(["a", "b"], [["x", 1234.5], [None, 0.1234]]).splitlines() == [
        "| a | b |", "| --- | --- |", "| x | 1,234 |", "| - | 0.123 |"
    ]  # fmt: skip


def test_parts_of_a_table_join(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [{"name": "a", "x": 1}, {"name": "b", "x": 2}]}))
    assert gather_rows(path, [{"name": "b", "x": 3}]) == [{"name": "a", "x": 1}, {"name": "b", "x": 3}]
    assert gather_rows(tmp_path / "none.json", [{"name": "b"}]) == [{"name": "b"}]


def test_short_words() -> None:
    assert score_short_words("An owl, sleeping; flew!") == 0.75
    assert score_short_words("...") == 0.0


def test_second_person() -> None:
    assert score_second_person("Youth knows no yours.") == 0.5
    assert score_second_person("You and your cat, you see") == 1.0
    assert score_second_person("") == 0.0


def run(contestant: str, seed: int, scores: list[float], kl: list[float], step: float) -> dict[str, Any]:
    seconds = [step * (i + 1) for i in range(len(scores))]
    return {"contestant": contestant, "seed": seed, "scores": scores, "kl_nats": kl, "ended_seconds": seconds}


def test_an_arrival_needs_reward_and_kl() -> None:
    assert smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    row = run("ours", 0, [0.1, 0.5, 0.6, 0.6], [0.0, 2.0, 3.0, 1.0], 10.0)
    found = find_arrival(row, 0.5, 1)
    assert found == {"seconds": 20.0, "kl_nats": 2.0, "score": 0.5}
    late = find_arrival(row, 0.5, 1, max_kl_nats=1.0)
    assert late is not None
    assert late["seconds"] == 40.0
    assert find_arrival(row, 0.7, 1) is None
    assert find_arrival(run("ours", 0, [0.9, 0.9], [0.0, 0.0], 1.0), 0.5, 2)["seconds"] == 2.0  # type: ignore[index]


def test_the_verdict_pairs_seeds_and_holds_ours_to_the_peers_kl() -> None:
    rows = [
        run("peer", 0, [0.2, 0.5], [0.0, 1.0], 100.0),
        run("peer", 1, [0.2, 0.5], [0.0, 2.0], 100.0),
        run("peer", 2, [0.2, 0.5], [0.0, 3.0], 100.0),
        run("ours", 0, [0.5, 0.6], [1.5, 1.0], 20.0),
        run("ours", 1, [0.4, 0.6], [0.0, 2.0], 20.0),
        run("ours", 2, [0.5, 0.6], [2.5, 2.5], 20.0),
    ]
    verdict = judge(rows, None, 1)
    assert verdict["target"] == 0.5
    assert verdict["max_kl_nats"] == 2.0
    assert [r["ours"] and r["ours"]["seconds"] for r in verdict["runs"]] == [20.0, 40.0, None]
    assert verdict["ratio"]["seeds"] == 2
    assert verdict["ratio"]["mean"] == pytest.approx(math.sqrt(10.0 * 5.0))


def test_the_interval_is_students() -> None:
    ratios = [4.0, 5.0, 6.5, 3.5, 5.5]
    interval = stats.ttest_1samp([math.log(r) for r in ratios], 0.0).confidence_interval(0.95)
    found = estimate_ratio(ratios)
    assert found["low"] == pytest.approx(math.exp(interval.low))
    assert found["high"] == pytest.approx(math.exp(interval.high))
    assert found["mean"] == pytest.approx(stats.gmean(ratios))
    assert estimate_ratio([2.0])["low"] is None
    assert estimate_ratio([])["mean"] is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"benchmark": "reward", "rows": []}', '{"benchmark": "ppo", "rows": [{"name": "an old one"}]}']
)
def test_a_file_of_something_else_is_refused_before_anything_is_measured(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no rows of benchmarks.ppo"):
        check_earlier_rows(path, "ppo")


def test_no_file_and_a_file_of_its_own_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    check_earlier_rows(path, "ppo")
    path.write_text('{"benchmark": "ppo", "rows": [{"name": "a", "contestant": "ours"}]}')
    check_earlier_rows(path, "ppo")
