"""The laboratory end to end in its smallest form: runs, laws, page; and that a stopped experiment goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from accord.cli import app
from accord.laboratory import QUICK, render_lab, run_lab, summarise_lab
from accord.laboratory.bench import Bench, BenchSettings
from accord.laboratory.experiment import list_arms
from accord.laboratory.outcome import describe_outcome
from accord.laboratory.world import build_letter_utility, build_toy_world
from accord.types import Completion, Prompt
from tests.training.fakes import CollectingProgress

TINY = BenchSettings(updates=4, looks=2, candidates=8, judge_votes=1, judge_pairs=60, look_votes=8, tournament_votes=16)
SMALL = replace(QUICK, votes=(30, 60), members=2, bench=TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("lab")
    run_lab(SMALL, place, CollectingProgress())
    return place


def test_every_arm_is_run_and_kept(folder: Path) -> None:
    names = [path.stem for path in sorted((folder / "runs").iterdir())]
    assert sorted(names) == sorted(f"000-{arm.name}" for arm in list_arms(SMALL))
    before = {path.name: path.read_bytes() for path in (folder / "runs").iterdir()}
    progress = CollectingProgress()
    (folder / "runs" / "000-votes-60.json").unlink()
    run_lab(SMALL, folder, progress)
    assert [row["run"] for row in progress.rows] == ["000-votes-60"], "only what is missing is made"
    assert {path.name: path.read_bytes() for path in (folder / "runs").iterdir()} == before, "to the byte"


def test_runs_hold_what_the_page_draws(folder: Path) -> None:
    runs = run_lab(SMALL, folder, CollectingProgress())
    for run in runs:
        assert [look["update"] for look in run["looks"]] == [0, 2, 4]
        assert run["looks"][0]["kl_nats"] == pytest.approx(0.0, abs=1e-3)
        assert (run["looks"][0]["disagreement"] is not None) == (run["members"] > 1)
    truth = next(run for run in runs if run["name"] == "truth")
    assert all(look["proxy"] == look["gold_seen"] for look in truth["looks"])
    golds = [row["gold"] for row in truth["best_of_n"]]
    assert golds == sorted(golds), "best of n by the truth itself never falls"
    summary = summarise_lab(runs)
    page = render_lab(summary)
    assert page == render_lab(json.loads(json.dumps(summary)))
    assert 'http-equiv="Content-Security-Policy"' in page
    for arm in summary["arms"]:
        assert arm in page
    kept = [
        truth | {"rose": True, "kept_share": share, "judge_alone": {"alarm": None, "kept_share": -1.0}}
        for share in (0.95, 0.9, 0.5)
    ]
    counted = summarise_lab(kept)["alarms"]["truth"]
    assert (counted["rose"], counted["kept_enough"], counted["kept_least"]) == (3, 2, 0.5)
    assert counted["judge_alone"]["kept_enough"] == 0


def test_gold_rises_and_falls_while_the_proxy_rises() -> None:
    """The shape that the laboratory is for, in one world: a proxy of 5000 noisy votes, optimised to the end."""
    torch.set_num_threads(1)
    bench = Bench(build_toy_world(101), BenchSettings(), 101)
    looks, _ = bench.optimise(bench.fit_proxy(5000))
    found = describe_outcome(looks, [look.gold or () for look in looks], 0.05)
    assert found["rose"] and found["gamed"]
    assert 1 <= found["peak_look"] <= 6
    assert found["fall"] > 2, "in deviations of the reference's answers"
    gold, proxy = ([sum(getattr(look, name)) / len(look.prompts) for look in looks] for name in ("gold", "proxy"))
    assert gold[-1] < gold[0], "in the end it is worse than where it began"
    assert proxy[-1] > proxy[found["peak_look"]] > proxy[0]


def test_the_toys_truth_by_hand() -> None:
    worth = {
        letter: build_letter_utility(3)(build_toy_world(3).prompts[0], Completion.from_text(letter * 8))
        for letter in "ab"
    }
    mixed = build_letter_utility(3)(build_toy_world(3).prompts[0], Completion.from_text("abababab"))
    # one letter: its worth less 5 (1 - 0.35); two in turn: their mean less 5 (0.5 - 0.35)
    assert mixed == pytest.approx((worth["a"] + worth["b"]) / 2 + 5 * 0.65 - 5 * 0.15)


def test_people_choose_the_best_policy_whatever_its_place() -> None:
    """Three policies that write one letter each, a quarter of the votes flipped: the worth of the letter decides."""
    bench = Bench(build_toy_world(3), replace(TINY, tournament_votes=600), 3)
    letters = [Completion.from_text(letter * 8) for letter in "abcdefghijkl"]
    worst, *_, middle, best = sorted(letters, key=lambda answer: bench.world.utility(bench.asked[0], answer))
    for order in ((middle, best, worst), (best, worst, middle), (worst, middle, best)):

        def answer(weights: Any, prompts: Sequence[Prompt], use: str, order: Any = order) -> Any:
            assert len(prompts) == 200, "600 votes, three on each question"
            return SimpleNamespace(completions=[order[weights["place"]]] * len(prompts))

        bench._answer = answer  # type: ignore[method-assign]
        assert order[bench.choose([{"place": place} for place in range(3)], 0)] is best  # type: ignore[dict-item]


def test_nobodys_prompts_are_anothers() -> None:
    bench = Bench(build_toy_world(3), BenchSettings(), 3)
    uses = [bench.validation, bench.normal, bench.rollout, bench.judged, bench.voted, bench.golden, bench.asked]
    assert [len(prompts) for prompts in uses] == [128, 128, 1024, 1500, 5412, 1024, 2048]
    assert len({prompt.id for prompts in uses for prompt in prompts}) == sum(map(len, uses))


def test_an_unknown_experiment_is_refused() -> None:
    result = CliRunner().invoke(app, ["lab", "overoptimisation"])
    assert result.exit_code != 0
    assert "did you mean overoptimization" in str(getattr(result.exception, "mend", ""))
