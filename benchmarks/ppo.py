"""PPO beside TRL's PPOTrainer on fixed work: seconds by phase, tokens a second, memory, share of the machine's roofs.

    python -m benchmarks.ppo --model DIR --peer trl --peer-python .venv-peer/bin/python [--split 0 --split -1]

Work of an iteration: 32 prompts of 64 random words, 48 new tokens each (nothing stops before), one pass of a reward
model, and 4 epochs of one optimiser step in 4 micro-batches; LoRA r 16 on all linear layers (ours: of the layers above
the split), learning rate 1e-5, temperature 1, bfloat16. Both read the same prompt ids and score with the same linear
head on the frozen model. The contestants differ where their users would: TRL trains all weights of its critic, for
`peft_config` reaches the policy alone, and its reward model has no adapter; ours has one in policy and reward model,
and the critic is a head on the reward model's states, as by default (`--critic adapter`: one of its own, all of which
learns). `--split 0` adapts every layer in each
role; with `--policy-everywhere` the policy adapts every layer, as TRL's does, while critic and reward model keep above
the split (`model.adapter = "lora_all"`).

Each contestant runs in a process of its own, one after the other, with the same threads. Its first iteration is the
warm-up, in which the work is counted (benchmarks/counting.py says how); the `--iterations` after it are timed. Shown:
the median, with the lowest and highest. Memory is the child's peak resident set, loading included, or of its CUDA
memory. Phases: sample; experience (log-probabilities of policy and reference, values, and the trunk where there is
one); score (reward model; by default a head on the critic's states); optimise (everything after it). Shares are of this
machine's roofs, measured first: the matrix-product peak in this dtype, and the copy bandwidth. Sampling's are those of
the least work that it takes, the other phases' those of the products that really ran, the wasted ones too. Prints a
table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine, measure_roofs
from benchmarks.processes import build_parser, check_peer_python, read_peak_memory, run_child, run_command, run_ours
from benchmarks.tables import check_earlier_rows, format_table, gather_rows, summarize, write_json

PEERS = {"trl": "benchmarks.peers.trl_ppo"}
PHASES = ("sample", "experience", "score", "optimise")


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "", roofs=True)
    parser.add_argument("--peer", choices=PEERS, help="run this peer after ours")
    parser.add_argument("--peer-python", default=".venv-peer/bin/python", help="a Python that has TRL 1.10 and PEFT")
    parser.add_argument("--only", choices=["ours", "peer"], help="run a part; --json joins the parts to one table")
    parser.add_argument("--split", type=int, action="append", help="of ours, may be given again (default: 0 and -1)")
    parser.add_argument("--policy-everywhere", action="store_true", help="our policy adapts every layer")
    parser.add_argument("--critic", choices=["adapter", "head"], default="head", help="what learns of our critic")
    parser.add_argument(
        "--old-logprobs", choices=["trainer", "sampler"], default="sampler", help="whose are the old ones of ours"
    )
    parser.add_argument("--iterations", type=int, default=3, help="timed, after one that warms up")
    for name, default in (("prompts", 32), ("prompt-tokens", 64), ("new-tokens", 48), ("epochs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--micro-batches", type=int, default=4)
    run_command(compare, measure_ours, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run the contestants in turn, then print what they did."""
    check_earlier_rows(arguments.json, "ppo")
    work = build_work(arguments)
    machine = measure_roofs(threads=work["threads"], quick=arguments.quick)
    python = check_peer_python(arguments.peer_python) if arguments.peer and arguments.only != "ours" else None
    splits = [] if arguments.only == "peer" else arguments.split or [0, -1]
    rows = [run_ours("benchmarks.ppo", work | {"split": split}, threads=work["threads"]) for split in splits]
    if python:
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(folder) / "prompts.json"
            run_ours("benchmarks.ppo", work | {"write_prompts": str(shared)}, threads=work["threads"])
            peer = work | json.loads(shared.read_text(encoding="utf-8"))
            rows.append(run_child(python, PEERS[arguments.peer], peer, threads=work["threads"]))
    rows = gather_rows(arguments.json, [add_shares(row, machine, work["dtype"]) for row in rows])
    ratios = compute_ratios(rows)
    print(format_ppo(rows))
    for ratio in ratios:
        print(f"{ratio['peer']} over {ratio['ours']}: seconds {ratio['seconds']:.2f}, memory {ratio['memory']:.2f}")
    result = {"benchmark": "ppo", "date": date.today().isoformat(), "machine": machine.to_dict(), "work": work}
    write_json(arguments.json, result | {"ratios": ratios, "rows": rows})


def build_work(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both contestants are told, as JSON."""
    names = ("model", "dtype", "threads", "iterations", "prompts", "prompt_tokens", "new_tokens", "epochs",
             "micro_batches", "policy_everywhere", "critic", "old_logprobs")  # fmt: skip
    fixed = {
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "vf_coef": 0.1,
        "kl_coef": 0.05,
        "minibatches": 1,
        "seed": 0,
        "warm_up": 1,
    }
    return {name: getattr(arguments, name) for name in names} | fixed


def measure_ours(work: dict[str, Any]) -> dict[str, Any]:
    """The child: our run, or with `write_prompts` the file of ids that the peer reads."""
    from benchmarks.training import run_fixed_work

    if "write_prompts" in work:
        write_prompts(work)
        return {}
    result = run_fixed_work(work, work["split"])
    return result | read_peak_memory()


def write_prompts(work: Mapping[str, Any]) -> None:
    """For the peer: prompt ids, PAD, the score head's weights, and the model's folder."""
    from accord.models import load_base
    from accord.models.loading import find_source
    from benchmarks.prompts import build_prompts
    from benchmarks.training import count_sampling, draw_head

    base = load_base(work["model"], dtype=work["dtype"], split=0)
    prompts = build_prompts(base.tokens, work["prompts"] * (work["iterations"] + 1), work["prompt_tokens"], 0)
    shared = {
        "model": find_source(work["model"]),
        "prompt_ids": [base.tokens.encode_prompt(p) for p in prompts],
        "pad_id": base.tokens.pad_id,
        "head": draw_head(base.hidden_size).tolist(),
        "sampling_work": count_sampling(base.model.config, work).to_dict(),
    }
    Path(work["write_prompts"]).write_text(json.dumps(shared), encoding="utf-8")


def add_shares(row: Mapping[str, Any], machine: Machine, dtype: str) -> dict[str, Any]:
    """The row with medians, and for each phase `matmul_share` and `copy_share` of the machine's roofs."""
    phases = {}
    for phase in PHASES:
        seconds = summarize([measured[phase] for measured in row["phases"]])
        done = row["work"].get(phase, {"flops": 0.0, "moved_bytes": 0.0})
        rate = 1 / seconds["median"] if seconds["median"] else 0.0
        phases[phase] = {
            "seconds": seconds,
            **done,
            "matmul_share": done["flops"] * rate / (machine.matmul_gflops[dtype] * 1e9),
            "copy_share": done["moved_bytes"] * rate / (machine.copy_gb_per_second * 1e9),
        }
    seconds = summarize(row["seconds"])
    return {
        **row,
        "summary": {"seconds": seconds, "tokens_per_second": summarize(row["tokens"])["median"] / seconds["median"]},
        "by_phase": phases,
    }


def compute_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each peer and each row of ours: the peer's median seconds and peak memory over ours."""
    return [
        {
            "peer": peer["name"],
            "ours": ours["name"],
            "seconds": peer["summary"]["seconds"]["median"] / ours["summary"]["seconds"]["median"],
            "memory": read_gigabytes(peer) / read_gigabytes(ours),
        }
        for peer in rows
        for ours in rows
        if (peer["contestant"], ours["contestant"]) == ("peer", "ours")
    ]


def read_gigabytes(row: Mapping[str, Any]) -> float:
    """Peak memory: of the device where there is one, else the resident set."""
    return (row["cuda_peak_bytes"] or row["peak_rss_bytes"]) / 1e9


def format_ppo(rows: list[dict[str, Any]]) -> str:
    """Two tables: whole iterations, then phases."""
    whole = [
        [r["name"], r["summary"]["seconds"]["median"], r["summary"]["seconds"]["min"], r["summary"]["seconds"]["max"],
         r["summary"]["tokens_per_second"], read_gigabytes(r)]
        for r in rows
    ]  # fmt: skip
    phases = [
        [r["name"], phase, p["seconds"]["median"], p["flops"] / 1e9, 100 * p["matmul_share"],
         p["moved_bytes"] / 1e9, 100 * p["copy_share"]]
        for r in rows for phase, p in r["by_phase"].items()
    ]  # fmt: skip
    first = format_table(["", "s an iteration", "min", "max", "new tokens/s", "peak GB"], whole)
    header = ["", "phase", "s", "10^9 operations", "% of matmul peak", "GB moved", "% of copy bandwidth"]
    return f"{first}\n\n{format_table(header, phases)}"


if __name__ == "__main__":
    main()
