"""Bytes at a peak beside closed forms, torch's own profiler and a process's resident set; micro-batches in a budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import build_tiny_model, build_tiny_tokenizer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from accord.config.schema import RewardModelSection, SftSection
from accord.errors import ConfigError
from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import add_ensemble
from accord.models.recompute import recompute_layers
from accord.rollout import Sampler
from accord.training.memory import (
    RUNTIME_BYTES,
    SLACK,
    Workload,
    fit_rows,
    measure_peak,
    weigh_reward_model,
    weigh_sampling,
    weigh_sft,
)
from accord.training.peak import PeakCounter
from accord.training.reward_model import train_reward_model
from accord.training.sequences import encode_tree
from accord.training.sft import train_sft
from accord.types import Completion, Preference, Prompt
from tests.training.fakes import CollectingProgress, MemoryCheckpoint

ROOT = Path(__file__).resolve().parents[2]
LORA = LoraSettings(4, 8)


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 8 layers and 256 hidden units: large enough that its activations outweigh noise."""
    folder = tmp_path_factory.mktemp("medium")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def multiply(weight: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ weight).sum()


def test_the_peak_of_work_whose_memory_is_known() -> None:
    """x W is freed once tanh has its result; backwards come the gradients of tanh's input and of W."""
    weight, x = nn.Parameter(torch.randn(8, 16)), torch.randn(4, 8)
    with PeakCounter() as counter:
        product = x @ weight
        y = torch.tanh(product)
        assert counter.held_bytes == 2 * 4 * 16 * 4
        del product
        assert counter.held_bytes == 4 * 16 * 4
        view = y[:2].t()
        assert counter.held_bytes == 4 * 16 * 4
        del y
        assert counter.held_bytes == 4 * 16 * 4
        del view
    assert (counter.held_bytes, counter.peak_bytes) == (0, 2 * 4 * 16 * 4)
    loss = multiply(weight, x)
    with PeakCounter() as counter:
        torch.autograd.backward(loss)
    assert counter.held_bytes == 8 * 16 * 4
    assert weight.grad is not None


def find_peak_by_profiler(work: Callable[[], object]) -> int:
    """The largest running sum of what torch's allocator says that it gave and took back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = peak = 0
    inner: Any = seen.profiler
    for event in sorted(inner.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_peak_is_that_of_torchs_own_allocator(medium: Path, checkpointed: bool) -> None:
    base = load_base(str(medium), dtype="float32", split=2)
    base.add_scorer("critic", lora=LORA, seed=1)
    if checkpointed:
        recompute_layers(base)
    ids, mask = torch.randint(3, 200, (4, 64)), torch.ones(4, 64, dtype=torch.bool)

    def work() -> None:
        torch.autograd.backward(base.compute_values("critic", ids, mask, 16).sum())
        for weight in base.parameters("critic").values():
            weight.grad = None

    work()
    with PeakCounter() as counter:
        work()
    assert counter.peak_bytes == pytest.approx(find_peak_by_profiler(work), rel=0.05)


def build_load(measure: Callable[[int], float], *, held: float = 0, passing: float = 0) -> Workload:
    return Workload("it", round(held * 1e6), round(passing * 1e6), lambda rows: round(measure(rows) * 1e6 / SLACK))


def test_as_many_rows_as_fit_and_none_too_many_is_ever_run() -> None:
    """60 MB that stay and 10 a row, in a room of 500: 44 rows fit; one row alone says only 7."""
    tried: list[int] = []

    def measure(rows: int) -> float:
        tried.append(rows)
        return 60 + 10 * rows

    budget = RUNTIME_BYTES / 1e9 + 0.1 + 0.5
    fit = fit_rows(build_load(measure, held=100), budget, 1000)
    assert 44 / 1.25 <= fit.rows <= 44
    assert fit.expected_bytes <= budget * 1e9
    assert tried[0] == 1
    assert max(tried) <= fit.rows
    tried.clear()
    assert fit_rows(build_load(measure, held=100), budget, 7).rows == 7
    assert tried == [1]
    assert fit_rows(build_load(measure, held=100), budget - 0.2, 1000).rows < fit.rows


def test_a_budget_in_which_nothing_fits_is_refused_with_what_it_takes() -> None:
    needed = RUNTIME_BYTES / 1e9 + 0.18
    load = build_load(lambda rows: 80 * rows, held=100)
    with pytest.raises(ConfigError, match=f"it needs {needed:.2f} GB for a single sequence") as refused:
        fit_rows(load, needed - 0.01, 4)
    assert refused.value.where == "compute.memory_gb"
    assert f"allow {needed:.2f} or more" in str(refused.value.mend)
    assert fit_rows(load, needed + 0.001, 4).rows == 1
    with pytest.raises(ConfigError):
        fit_rows(build_load(lambda rows: rows, held=100, passing=200), needed, 4)


def test_weighing_leaves_weights_and_gradients_as_they_are(medium: Path) -> None:
    base = load_base(str(medium), dtype="float32")
    base.add_policy("policy", lora=LORA, seed=1)
    before = base.state("policy")
    assert weigh_sft(base, "policy", tokens=12, new_tokens=4, stored_tokens=0).measure(2) > 1000
    assert all(torch.equal(before[name], weight) for name, weight in base.parameters("policy").items())
    assert all(weight.grad is None for weight in base.parameters("policy").values())
    weights = [nn.Parameter(torch.ones(3))]
    with pytest.raises(ZeroDivisionError):
        measure_peak(weights, lambda: 1 // 0)
    assert weights[0].grad is None


def check_bound(load: Workload, weights_bytes: int, rows: int, work: Callable[[], object]) -> None:
    """What `work` really holds at its peak, optimiser and cached states included, is within what was weighed."""
    with PeakCounter() as counter:
        work()
    expected = load.expect(rows) - RUNTIME_BYTES - weights_bytes
    assert counter.peak_bytes < expected
    assert counter.peak_bytes > load.measure(rows) / 2, "what was weighed is what is done"


def count_weights(base: Base) -> int:
    return sum(weight.nbytes for weight in base.model.parameters())


@pytest.mark.parametrize(("architecture", "members"), [("llama", 1), ("llama", 3), ("gemma2", 1)])
def test_a_reward_models_fit_holds_no_more_than_was_weighed(
    medium: Path, tmp_path: Path, architecture: str, members: int
) -> None:
    """Gemma's layers see a window, so a pair has two rows there."""
    model = medium if architecture == "llama" else build_tiny_model(tmp_path, architecture)
    base = load_base(str(model), dtype="float32")
    ensemble = add_ensemble(base, "proxy", members, own_layers=1, lora=LORA, seed=0)
    prompts = [Prompt.from_user(chr(97 + i) * 100) for i in range(8)]
    pairs = [Preference(p, Completion.from_text("c" * 60), Completion.from_text("d" * 40), 0.9, 0.1) for p in prompts]
    shared, _ = base.branching
    assert shared == (architecture == "llama")
    sides = [
        encode_tree(base, p.prompt, side) for p in pairs for side in ([(p.a, p.b)] if shared else [(p.a,), (p.b,)])
    ]
    load = weigh_reward_model(
        ensemble, tokens=max(map(len, sides)), rows_a_pair=1 if shared else 2, stored_tokens=sum(map(len, sides))
    )
    cfg = RewardModelSection(batch_size=4, micro_batch_size=4, epochs=1)
    check_bound(
        load, count_weights(base), 4,
        lambda: train_reward_model(
            base, ensemble, pairs[2:], pairs[:2], cfg,
            seed=0, progress=CollectingProgress(), checkpoint=MemoryCheckpoint(),
        ),
    )  # fmt: skip


def test_fine_tuning_holds_no_more_than_was_weighed_and_learns_the_same(medium: Path) -> None:
    examples = [(Prompt.from_user(chr(97 + i) * 100), Completion.from_text("c" * 60)) for i in range(8)]
    found = []
    for rows in (1, 4):
        base = load_base(str(medium), dtype="float32")
        base.add_policy("policy", lora=LORA, seed=0)
        trees = [encode_tree(base, prompt, [completion]) for prompt, completion in examples]
        tokens = max(map(len, trees))
        load = weigh_sft(base, "policy", tokens=tokens, new_tokens=61, stored_tokens=sum(map(len, trees)))

        def work(base: Base = base, rows: int = rows) -> None:
            train_sft(
                base, "policy", examples, SftSection(epochs=1, batch_size=4), seed=0,
                progress=CollectingProgress(), checkpoint=MemoryCheckpoint(), micro_batch_size=rows,
            )  # fmt: skip

        check_bound(load, count_weights(base), rows, work)
        found.append(base.state("policy"))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sampling_holds_no_more_than_was_weighed(medium: Path, tmp_path: Path, architecture: str) -> None:
    """Llama decodes packed, in a cache made beforehand; GPT-2 with transformers' own, which grows."""
    model = medium if architecture == "llama" else build_tiny_model(tmp_path, architecture)
    base = load_base(str(model), dtype="float32")
    assert base.decodes_packed == (architecture == "llama")
    prompts = [Prompt.from_user(chr(97 + i) * 100) for i in range(8)]
    length = max(len(base.tokens.encode_prompt(prompt)) for prompt in prompts)
    load = weigh_sampling(base, None, prompt_tokens=length, new_tokens=40)
    check_bound(
        load, count_weights(base), 8,
        lambda: Sampler(base, 8).generate(None, prompts, seeds=range(8), max_new_tokens=40, temperature=1.0),
    )  # fmt: skip


def probe(model: Path, weights: Path, **work: object) -> dict[str, Any]:
    told = {"model": str(model), "weights": str(weights), "budget_gb": 0, "rows": 16, "checkpoint": False} | work
    command = [sys.executable, "-m", "tests.training.memory_probe", json.dumps(told)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"weights": load_file(weights)}


def test_a_process_keeps_to_its_budget_and_learns_the_same(medium: Path, tmp_path: Path) -> None:
    """A whole PPO update of 16 sequences of some 270 tokens: half a GB of activations without a budget."""
    whole = probe(medium, tmp_path / "whole")
    ample = probe(medium, tmp_path / "ample", budget_gb=1.1)
    tight = probe(medium, tmp_path / "tight", budget_gb=0.9)
    lean = probe(medium, tmp_path / "lean", budget_gb=0.9, checkpoint=True)
    rows = {name: found["rows"] for name, found in (("ample", ample), ("tight", tight), ("lean", lean))}
    assert rows["tight"] < rows["ample"] < 16, rows
    assert rows["tight"] < rows["lean"], rows
    assert whole["peak"] > 1.05e9
    for found, budget in ((ample, 1.1e9), (tight, 0.9e9), (lean, 0.9e9)):
        assert found["peak"] <= found["expected"] <= budget, {k: v for k, v in found.items() if k != "weights"}
        assert found["peak"] > 0.75 * found["expected"], "the budget is used"
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=2e-5, msg=name)
