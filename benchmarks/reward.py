"""Reward-model training on Anthropic-format pairs beside TRL's RewardTrainer: accuracy, seconds, peak memory.

    python -m benchmarks.reward --train train.jsonl.gz --test test.jsonl.gz [--split 0] \
        [--learning-rates 3e-4 6e-4] [--peer-python .venv-peer/bin/python --model-folder DIR]
    python -m benchmarks.reward --train train.jsonl.gz --hold-back 0.2 --learning-rates 3e-4 6e-4

At each learning rate ours runs in a process of its own, then the peer in its own, on the same pairs of at most
`--max-tokens` tokens, ours for `--epochs` and the peer for one, LoRA r 16 on all linear layers (of the layers above
`--split`), the same batch. With `--hold-back` no test pair is read: ours alone trains on the rest of the training
pairs and is judged on those held back, which is how to choose a rate. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = Path(__file__).with_name("peers") / "trl_reward.py"


def main() -> None:
    arguments = _parse()
    if arguments.role == "ours":
        print(json.dumps(_measure_ours(arguments)))
        return
    ours = [sys.executable, "-m", "benchmarks.reward", "--role", "ours", *sys.argv[1:]]
    commands = [[*ours, "--learning-rate", str(rate)] for rate in arguments.learning_rates]
    if arguments.peer_python:
        peer = [arguments.peer_python, str(PEER), "--model", arguments.model_folder, "--train", arguments.train]
        peer += ["--test", arguments.test, "--max-tokens", str(arguments.max_tokens)]
        peer += ["--threads", str(arguments.threads)]
        commands += [[*peer, "--learning-rate", str(rate)] for rate in arguments.learning_rates]
    print(f"{'':24}{'rate':>8}{'accuracy':>10}{'+-':>7}{'seconds':>9}{'GB':>6}{'pairs':>7}{'judged':>8}", flush=True)
    rows = []
    for command in commands:
        row = {"learning_rate": float(command[-1]), **_run(command)}
        error = (row["accuracy"] * (1 - row["accuracy"]) / row["test_pairs"]) ** 0.5
        print(
            f"{row['name']:24}{row['learning_rate']:8.0e}{row['accuracy']:10.3f}{error:7.3f}{row['seconds']:9.0f}"
            f"{row['peak_rss_bytes'] / 1e9:6.1f}{row['train_pairs']:7}{row['test_pairs']:8}",
            flush=True,
        )
        rows.append(row)
    print(json.dumps(rows))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", required=True)
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--test")
    judged.add_argument("--hold-back", type=float, help="share of the training prompts to judge on; no peer then")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--model-folder", help="the same model as safetensors, for the peer")
    parser.add_argument("--peer-python", help="a Python that has TRL 1.10")
    parser.add_argument("--split", type=int, default=-1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4])
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--role", choices=["both", "ours"], default="both", help=argparse.SUPPRESS)
    parser.add_argument("--learning-rate", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer_python and not (arguments.test and arguments.model_folder):
        parser.error("the peer needs --test and --model-folder")
    return arguments


def _run(command: list[str]) -> dict:
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def _measure_ours(arguments: argparse.Namespace) -> dict:
    import torch

    from accord.config.schema import RewardModelSection
    from accord.models import LoraSettings, load_base
    from accord.training import fits_in, score_preferences, train_reward_model
    from accord.types import Silence
    from accord.workspace import FolderCheckpoint

    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.model, split=arguments.split)
    train = [p for p in _read_preferences(arguments.train) if fits_in(base, p, arguments.max_tokens)]
    if arguments.test:
        test = [p for p in _read_preferences(arguments.test) if fits_in(base, p, arguments.max_tokens)]
    else:
        train, test = _hold_back(train, arguments.hold_back, arguments.seed)
    settings = RewardModelSection(
        epochs=arguments.epochs, learning_rate=arguments.learning_rate, max_tokens=arguments.max_tokens
    )
    base.add_scorer("reward", lora=LoraSettings(rank=16, alpha=32), seed=arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train_reward_model(
            base, "reward", train, train[:16], settings,
            seed=arguments.seed, progress=Silence(), checkpoint=FolderCheckpoint(Path(folder)),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    scores_a, scores_b = score_preferences(base, "reward", test)
    wanted = torch.tensor([p.probability > 0.5 for p in test])
    return {
        "name": f"accord, split {base.split}",
        "train_pairs": len(train),
        "test_pairs": len(test),
        "seconds": seconds,
        "accuracy": float(((scores_a > scores_b) == wanted).float().mean()),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _hold_back(preferences: list, fraction: float, seed: int) -> tuple[list, list]:
    """The pairs to train on and those held back: all pairs of a prompt on one side."""
    prompts = sorted({p.prompt.id for p in preferences})
    held = set(random.Random(seed).sample(prompts, round(fraction * len(prompts))))
    return [p for p in preferences if p.prompt.id not in held], [p for p in preferences if p.prompt.id in held]


def _read_preferences(path: str) -> list:
    from accord.feedback.consensus import compute_consensus
    from accord.feedback.importing import import_file
    from accord.feedback.store import VoteStore

    with tempfile.TemporaryDirectory() as folder, VoteStore(Path(folder) / "votes.db") as store:
        import_file(store, path, format="hh", skip_bad=True)
        return compute_consensus(store.votes(), "fraction").preferences


if __name__ == "__main__":
    main()
