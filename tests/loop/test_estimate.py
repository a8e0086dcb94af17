"""The plan's seconds, held against stages that were timed; the calibration, on a model that has other shapes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import build_tiny_model

from accord.cli.project import create_project
from accord.config import Config, load_config
from accord.loop.calibration import Speed, measure_speed
from accord.loop.estimate import Machine, estimate_stage, measure_machine
from accord.workspace import Workspace

DEMO_SECONDS = {
    "doctor": 5,
    "samples": 49,
    "reward_model": 54,
    "heldout_reward_model": 26,
    "policy": 230,
    "evaluation": 141,
}
"""The stages of `accord demo` on two idle cores (docs/performance.md, 'The main job')."""
TWO_CORES = Speed(
    read_layer=2.3e-5,
    trained_layer=4.9e-5,
    decoded_layer=4.5e-5,
    read_head=1.6e-4,
    trained_head=3.4e-4,
    decoded_head=2.3e-4,
)
"""What `measure_speed` gave for SmolLM2 on one core of that machine, divided by 1.8: two cores share their memory."""
DEMO = Machine(
    speed=TWO_CORES,
    parameters=134_515_008,
    layers=30,
    split=20,
    policy_split=20,
    vocabulary=49_152,
    train_prompts=256,
    evaluation_prompts=96,
    pairs=256,
    prompt_tokens=41.8,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("demo")
    create_project(folder, "demo")
    return load_config(folder, [])


def estimate(kind: str, config: Config, machine: Machine = DEMO) -> float:
    return estimate_stage(SimpleNamespace(kind=kind), config, machine).seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", DEMO_SECONDS)
def test_each_stage_of_the_demo_takes_about_as_long_as_the_plan_says(demo: Config, kind: str) -> None:
    assert 1 / 1.5 < estimate(kind, demo) / DEMO_SECONDS[kind] < 1.5


def test_the_whole_demo_takes_as_long_as_the_plan_says(demo: Config) -> None:
    expected = sum(estimate(kind, demo) for kind in DEMO_SECONDS)
    assert expected == pytest.approx(sum(DEMO_SECONDS.values()), rel=0.2)


@pytest.mark.parametrize("setting, factor", [("ppo.updates=28", 2.0), ("ppo.epochs=4", 1.45)])
def test_more_work_takes_longer(tmp_path: Path, demo: Config, setting: str, factor: float) -> None:
    create_project(tmp_path, "demo")
    more = load_config(tmp_path, [setting])
    assert estimate("policy", more) / estimate("policy", demo) == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_one_layer_of_any_model_is_timed_without_its_weights(tmp_path: Path, architecture: str) -> None:
    folder = build_tiny_model(tmp_path, architecture)
    (folder / "model.safetensors").unlink()
    threads = torch.get_num_threads()
    speed = measure_speed(str(folder), dtype="float32", device="cpu", threads=1)
    assert all(0 < seconds < 1 for seconds in vars(speed).values())
    assert speed.trained_layer > speed.read_layer
    assert torch.get_num_threads() == threads


def test_prompts_are_counted_and_measured(tmp_path: Path) -> None:
    create_project(tmp_path, "tiny")
    build_tiny_model(tmp_path / "tiny-model")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "abcd"}\n')
    settings = ["prompts.train=mine.jsonl", "prompts.evaluation=mine.jsonl", "prompts.evaluation_limit=1"]
    machine = measure_machine(Workspace(tmp_path), load_config(tmp_path, settings), votes=0)
    assert (machine.train_prompts, machine.evaluation_prompts, machine.pairs) == (2, 1, 2)
    template = ["<start>", *"user\n", "<end>", "\n", "<start>", *"assistant\n"]  # a token a byte
    assert machine.prompt_tokens == len(template) + (len("ab") + len("abcd")) / 2
