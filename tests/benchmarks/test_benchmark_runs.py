"""Each benchmark runs on a tiny model in seconds, ours alone, and gives the table and the JSON that it promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generate, gradients, kernels, ppo, precision, scaling, time_to_reward

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {
    "generate": generate, "gradients": gradients, "kernels": kernels, "ppo": ppo, "precision": precision,
    "scaling": scaling, "time_to_reward": time_to_reward,
}  # fmt: skip
BOTH_DTYPES, WITH_ROOFS = {"gradients", "precision"}, {"generate", "kernels", "ppo"}
TINY_UPDATE = ["--prompts", "4", "--new-tokens", "5", "--epochs", "1", "--iterations", "2"]


def start(name: str, model: Path, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    common = ["--model", str(model), "--threads", "1", "--json", str(path)]
    dtype = [] if name in BOTH_DTYPES else ["--dtype", "float32"]
    quick = ["--quick"] if name in WITH_ROOFS else []
    COMMANDS[name].main([*common, *dtype, *quick, *options])
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["benchmark"] == name
    assert {"date", "machine", "work", "rows"} <= result.keys()
    return result


def test_ppo(tiny_model: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY_UPDATE, "--prompt-tokens", "10", "--micro-batches", "2"]
    result = start("ppo", tiny_model, tmp_path, *options, "--split", "0")
    assert set(result["machine"]["matmul_gflops"]) == {"bfloat16", "float32"}
    result = start("ppo", tiny_model, tmp_path, *options, "--split", "1")
    assert [row["name"] for row in result["rows"]] == ["accord, split 0", "accord, split 1"]
    for row in result["rows"]:
        assert len(row["seconds"]) == 2
        assert row["tokens"] == [20, 20]
        assert set(row["by_phase"]) == {"sample", "experience", "score", "optimise"}
        shares = {name: phase["matmul_share"] for name, phase in row["by_phase"].items()}
        assert shares.pop("score") == 0, "read off the states of the critic's pass"
        assert all(0 < share < 1 for share in shares.values())
        assert row["peak_rss_bytes"] > 1e8
    whole, upper = (row["by_phase"] for row in result["rows"])
    assert upper["optimise"]["flops"] < whole["optimise"]["flops"]
    table = capsys.readouterr().out
    assert "% of matmul peak" in table
    assert "% of copy bandwidth" in table


def test_ratios_are_the_peers_over_ours() -> None:
    def row(contestant: str, seconds: float, memory: float) -> dict[str, Any]:
        summary = {"seconds": {"median": seconds}}
        sizes = {"peak_rss_bytes": memory, "cuda_peak_bytes": None}
        return {"name": f"{contestant} {seconds}", "contestant": contestant, "summary": summary, **sizes}

    rows = [row("ours", 40.0, 2e9), row("ours", 20.0, 1e9), row("peer", 100.0, 6e9)]
    assert [(r["seconds"], r["memory"]) for r in ppo.compute_ratios(rows)] == [(2.5, 3.0), (5.0, 6.0)]


def test_generate(tiny_model: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows", "4", "--prompt-tokens", "9", "--shortest", "2", "--longest", "11", "--repeats", "2"]
    result = start("generate", tiny_model, tmp_path, *sizes, "--only", "accord", "--only", "generate")
    assert [row["tokens"] for row in result["rows"]] == [2 + 5 + 8 + 11] * 2
    assert all(row["summary"]["tokens_per_second"] > 0 for row in result["rows"])
    assert "useful tokens/s" in capsys.readouterr().out


def test_an_engine_that_cannot_run_says_why() -> None:
    row = {"name": "transformers continuous batching", "error": "RuntimeError: no device"}
    assert "RuntimeError: no device" in generate.format_generation([row])


def test_time_to_reward(tiny_model: Path, tmp_path: Path, in_process: None) -> None:
    plot = tmp_path / "curves.html"
    options = [
        "--reward",
        "short_words",
        "--minibatches",
        "2",
        "--seeds",
        "0",
        "1",
        "--window",
        "1",
        "--target",
        "0",
        "--plot",
        str(plot),
    ]
    result = start("time_to_reward", tiny_model, tmp_path, *TINY_UPDATE, *options)
    assert [row["seed"] for row in result["rows"]] == [0, 1]
    assert all(len(row["scores"]) == len(row["ended_seconds"]) == 2 for row in result["rows"])
    assert all(run["ours"]["seconds"] > 0 for run in result["verdict"]["runs"])
    assert "seconds of training" in plot.read_text(encoding="utf-8")


def test_precision(tiny_model: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "4", "--new-tokens", "5", "--iterations", "2", "--reward", "short_words"]
    options = [*sizes, "--seeds", "0", "1", "--window", "1", "--evaluation-answers", "6"]
    result = start("precision", tiny_model, tmp_path, *options)
    assert {(row["contestant"], row["seed"]) for row in result["rows"]} == {
        (dtype, seed) for dtype in ("bfloat16", "float32") for seed in (0, 1)
    }
    assert all(0 <= row["reward_afterwards"] <= 1 for row in result["rows"])
    assert all(gap["seeds"] == 2 for gap in result["verdict"].values())
    assert "reward afterwards: bfloat16 less float32" in capsys.readouterr().out


def test_gradients(tiny_model: Path, tmp_path: Path, in_process: None) -> None:
    sizes = ["--prompts", "8", "--new-tokens", "6", "--iterations", "1", "--reward", "short_words"]
    ours, peft, other = start("gradients", tiny_model, tmp_path, *sizes)["rows"]
    for row in (ours, peft):
        assert 0 < row["error_share"] < 0.1
        assert row["cosine"] > 0.99
        assert 0 < row["logprob_sd_nats"] < 0.05
    assert other["error_share"] > 10 * ours["error_share"]


def test_kernels(tiny_model: Path, tmp_path: Path, in_process: None) -> None:
    sizes = ["--rows", "2", "--tokens", "6", "--decoding-rows", "2", "--cached-tokens", "4", "--repeats", "2"]
    rows = start("kernels", tiny_model, tmp_path, *sizes)["rows"]
    assert [row["name"] for row in rows] == [
        *2 * ["packed", "transformers, fused LoRA", "transformers, PEFT"],
        "packed", "transformers, accord_grouped", "transformers, eager", "transformers, sdpa",
    ]  # fmt: skip
    assert all(row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"] for row in rows)


def test_scaling(tiny_model: Path, tmp_path: Path, in_process: None) -> None:
    sizes = ["--prompts", "4", "--prompt-tokens", "8", "--new-tokens", "4"]
    start("scaling", tiny_model, tmp_path, *sizes, "--axis", "reward_models", "--points", "1", "3")
    plot = tmp_path / "scaling.html"
    options = ["--axis", "model_size", "--points", "0.7", "1", "--plot", str(plot)]
    result = start("scaling", tiny_model, tmp_path, *sizes, *options)
    assert set(result["lines"]) == {"reward_models", "model_size"}
    assert set(result["lines"]["model_size"]) == {"seconds", "gigabytes", "linear", "memory_growth"}
    layer = 32 * 8 * (2 * 4 + 2 * 2) + 3 * 32 * 64
    assert [row["x"] for row in result["rows"]] == [1, 3, 2 * layer + 32 * 259, 3 * layer + 32 * 259]
    assert "peak GB" in plot.read_text(encoding="utf-8")


def test_a_contestant_is_a_process_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--threads", "1", "--repeats", "1", "--part", "decoding", "--decoding-rows", "2"]
    command = [sys.executable, "-m", "benchmarks.kernels", "--model", str(tiny_model), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "accord_grouped" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["benchmark"] == "kernels"


@pytest.mark.parametrize("name", ["ppo", "time_to_reward"])
def test_a_missing_peer_is_said_before_any_work(
    name: str, tiny_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "python")
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[name].main(["--model", str(tiny_model), "--peer", "trl", "--peer-python", missing])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert missing in message
    assert "trl==1.10.0" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_the_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMANDS[name].main(["--help"])
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in text
    assert "--model" in text
    assert len(text.splitlines()) > 25
