"""Wall-clock to a given reward at no more KL, beside TRL's PPOTrainer, over several seeds.

    python -m benchmarks.time_to_reward --model DIR --peer trl --peer-python PY --seeds 0 1 2 3 4 \
        --iterations 10 --json FILE --plot FILE.html

Task: the starter prompts under the model's own template; the reward, computed by both from the answer's text alone
(benchmarks/text_rewards.py), is by default how far it addresses the reader: half a point for each "you" or "your", at
most one. An iteration: 32 prompts, at most 48 new tokens up to EOS, 4 epochs of 4 optimiser steps on 8 sequences each,
LoRA r 16 on all linear layers (ours: of those above the split, by default two thirds), the same learning rate (linear
decay over the iterations), KL coefficient 0.05, clipping 0.2, gamma 1, lambda 0.95, temperature 1. Each run is a
process of its own; seeds differ in the order of the prompts and in the samples.

Curves: score and KL (nats a sequence, mean of log pi - log pi_ref over samples from pi) of each rollout, smoothed over
`--window` rollouts, against seconds since training began, loading left out. The target is `--target`, or by default the
score that the median run of the peer (without one, of ours) ends with. A run arrives at the end of the first iteration
whose smoothed score is the target or more. Ours counts as arrived only where its smoothed KL is at most the peer's
(the median over its seeds, each when it arrived). A run that never arrives has no time, and is listed. Shown: seconds
of each run; the peer's over ours as a geometric mean over the seeds where both arrived, with a 95 % interval
(Student's t on the logarithms). Parts may be run apart: with `--json FILE`, runs already in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.machine import choose_device, describe_device
from benchmarks.plots import write_curves
from benchmarks.processes import build_parser, check_peer_python, read_peak_memory, run_child, run_command, run_ours
from benchmarks.tables import check_earlier_rows, format_table, gather_rows, write_json
from benchmarks.text_rewards import TEXT_REWARDS

PEERS = {"trl": "benchmarks.peers.trl_ppo"}


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "")
    parser.add_argument("--peer", choices=PEERS, help="run this peer too")
    parser.add_argument("--peer-python", default=".venv-peer/bin/python", help="a Python that has TRL 1.10 and PEFT")
    parser.add_argument("--only", choices=["ours", "peer"], help="run a part; --json joins the parts")
    parser.add_argument("--split", type=int, default=-1, help="of ours")
    parser.add_argument("--policy-everywhere", action="store_true", help="our policy adapts every layer")
    parser.add_argument("--critic", choices=["adapter", "head"], default="head", help="what learns of our critic")
    parser.add_argument(
        "--old-logprobs", choices=["trainer", "sampler"], default="sampler", help="whose are the old ones of ours"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--reward", choices=TEXT_REWARDS, default="second_person")
    parser.add_argument("--target", type=float, help="the reward to reach")
    parser.add_argument("--window", type=int, default=3, help="rollouts that a smoothed score is the mean of")
    parser.add_argument("--plot", type=Path, help="draw reward against seconds into this HTML file")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of policy and critic")
    parser.add_argument("--peer-learning-rate", type=float, help="where another suits the peer better (default: same)")
    for name, default in (("iterations", 10), ("prompts", 32), ("new-tokens", 48), ("epochs", 4), ("minibatches", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure_ours, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run every seed of every contestant in turn, then print who arrived when."""
    check_earlier_rows(arguments.json, "time_to_reward")
    names = ("model", "dtype", "threads", "iterations", "prompts", "new_tokens", "epochs", "minibatches",
             "learning_rate", "split", "policy_everywhere", "critic", "old_logprobs")  # fmt: skip
    fixed = {
        "temperature": 1.0,
        "vf_coef": 0.1,
        "kl_coef": 0.05,
        "micro_batches": 1,
        "warm_up": 0,
        "text_reward": arguments.reward,
    }
    work = {name: getattr(arguments, name) for name in names} | fixed
    python = check_peer_python(arguments.peer_python) if arguments.peer and arguments.only != "ours" else None
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        told = work | {"seed": seed}
        if arguments.only != "peer":
            ours = run_ours("benchmarks.time_to_reward", told, threads=work["threads"])
            rows.append(ours | {"seed": seed, "run": f"{ours['name']}, seed {seed}"})
        if python:
            rate = arguments.peer_learning_rate or work["learning_rate"]
            peer = run_peer(python, PEERS[arguments.peer], told | {"learning_rate": rate})
            rows.append(peer | {"seed": seed, "run": f"{peer['name']}, seed {seed}"})
    rows = gather_rows(arguments.json, rows, key="run")
    verdict = judge(rows, arguments.target, arguments.window)
    print(format_verdict(verdict))
    machine = {"name": describe_device(choose_device()), "threads": work["threads"]}
    result = {"benchmark": "time_to_reward", "date": date.today().isoformat(), "machine": machine, "work": work}
    if arguments.plot:
        curves = [(r["name"], r["ended_seconds"], smooth(r["scores"], arguments.window)) for r in rows]
        write_curves(arguments.plot, curves, "seconds of training", "reward", level=verdict["target"])
    write_json(arguments.json, result | {"verdict": verdict, "rows": rows})


def run_peer(python: str, module: str, work: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the peer on the prompt ids that ours would read."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "prompts.json"
        told = {**work, "write_prompts": str(shared)}
        run_ours("benchmarks.time_to_reward", told, threads=work["threads"])
        told = {**work, **json.loads(shared.read_text(encoding="utf-8"))}
        result = run_child(python, module, told, threads=work["threads"])
    return result | {"learning_rate": work["learning_rate"]}


def measure_ours(work: dict[str, Any]) -> dict[str, Any]:
    """The child: one run of ours, or with `write_prompts` the file that the peer reads."""
    from accord.models.loading import find_source
    from accord.rewards import as_source
    from accord.starter import load_starter_prompts
    from benchmarks.training import build_base, evaluate_policy, name_ours, run_ppo

    base = build_base(work, work["split"], scorers=())
    prompts = load_starter_prompts("train")
    if "write_prompts" in work:
        ids = [base.tokens.encode_prompt(p) for p in prompts]
        tokens = {"prompt_ids": ids, "pad_id": base.tokens.pad_id, "stop_id": base.tokens.eos_id}
        shared = tokens | {"model": find_source(work["model"])}
        Path(work["write_prompts"]).write_text(json.dumps(shared), encoding="utf-8")
        return {}
    score = TEXT_REWARDS[work["text_reward"]]
    reward = as_source(lambda prompt, completion: score(completion.text))
    rows = run_ppo(base, prompts, reward, work, warm_up=0).rows
    afterwards = evaluate_policy(base, prompts, reward, work) if work.get("evaluation_answers") else {}
    return {
        "name": name_ours(base, work),
        "contestant": "ours",
        "learning_rate": work["learning_rate"],
        "ended_seconds": [row["ended_seconds"] for row in rows],
        "scores": [row["score"] for row in rows],
        "kl_nats": [row["kl_nats"] for row in rows],
        **afterwards,
        **read_peak_memory(),
    }


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the up to `window` - 1 before it."""
    return [statistics.fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def find_arrival(
    row: Mapping[str, Any], target: float, window: int, max_kl_nats: float = math.inf
) -> dict[str, float] | None:
    """`seconds`, `kl_nats` and `score` of the first iteration at the target within the KL; None where there is none."""
    curves = zip(row["ended_seconds"], smooth(row["scores"], window), smooth(row["kl_nats"], window), strict=True)
    for place, (seconds, score, kl) in enumerate(curves):
        if score >= target and kl <= max_kl_nats and place + 1 >= window:
            return {"seconds": seconds, "kl_nats": kl, "score": score}
    return None


def judge(rows: Sequence[Mapping[str, Any]], target: float | None, window: int) -> dict[str, Any]:
    """Who arrived when, and the peer's seconds over ours, seed by seed and over the seeds."""
    ours = {row["seed"]: row for row in rows if row["contestant"] == "ours"}
    peers = {row["seed"]: row for row in rows if row["contestant"] == "peer"}
    if target is None:
        target = statistics.median(smooth(row["scores"], window)[-1] for row in (peers or ours).values())
    arrivals = {seed: find_arrival(row, target, window) for seed, row in peers.items()}
    reached = [arrival["kl_nats"] for arrival in arrivals.values() if arrival]
    max_kl_nats = statistics.median(reached) if reached else math.inf
    runs, ratios = [], []
    for seed in sorted(ours.keys() | peers.keys()):
        theirs = arrivals.get(seed)
        mine = find_arrival(ours[seed], target, window, max_kl_nats) if seed in ours else None
        runs.append({"seed": seed, "ours": mine, "peer": theirs})
        if mine and theirs:
            ratios.append(theirs["seconds"] / mine["seconds"])
    limit = max_kl_nats if reached else None
    return {"target": target, "window": window, "max_kl_nats": limit, "runs": runs, "ratio": estimate_ratio(ratios)}


def estimate_ratio(ratios: Sequence[float]) -> dict[str, Any]:
    """Geometric mean of `ratios` with its 95 % interval, exp(mean +- t s / sqrt(n)) of the logarithms.

    `low` and `high` are None for fewer than two, everything for none.
    """
    if not ratios:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    logs = [math.log(ratio) for ratio in ratios]
    mean, count = statistics.fmean(logs), len(logs)
    if count < 2:
        return {"mean": math.exp(mean), "low": None, "high": None, "seeds": count}
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(logs) / math.sqrt(count)
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "seeds": count}


def format_verdict(verdict: Mapping[str, Any]) -> str:
    """A line a seed, and the ratio in words."""

    def cells(arrival: Mapping[str, float] | None) -> list[object]:
        return [arrival["seconds"], arrival["score"], arrival["kl_nats"]] if arrival else ["not reached", None, None]

    rows = [[str(run["seed"]), *cells(run["ours"]), *cells(run["peer"])] for run in verdict["runs"]]
    header = ["seed", "ours: s", "reward", "KL nats", "peer: s", "reward", "KL nats"]
    ratio = verdict["ratio"]
    words = f"Target {verdict['target']:.4g}"
    words += f", KL at most {verdict['max_kl_nats']:.3g} nats. " if verdict["max_kl_nats"] is not None else ". "
    if ratio["mean"] is None:
        return f"{format_table(header, rows)}\n\n{words}No seed where both arrived."
    words += f"Peer's seconds over ours: {ratio['mean']:.3g} over {ratio['seeds']} seeds"
    words += f" (95 %: {ratio['low']:.3g} to {ratio['high']:.3g})." if ratio["low"] else "."
    return f"{format_table(header, rows)}\n\n{words}"


if __name__ == "__main__":
    main()
