"""How an update's seconds and memory grow with prompts, new tokens, model size and reward models; lines or not.

    python -m benchmarks.scaling --model DIR [--axis prompts --axis new_tokens] --json FILE --plot FILE.html

Each point is one PPO update of ours in a process of its own (the work of benchmarks.ppo, smaller: 16 prompts of 64
tokens, 32 new tokens, 1 epoch, the default split), after one that warms up. One thing grows at a time:
prompts: 16 to 128 an update, in micro-batches of 8 and decoded 16 side by side, as at every other point;
new_tokens: 16 to 128;
model_size: random models with the shape of `--model` and a fifth to all of its layers, against matrix entries;
reward_models: 1 to 8, each an adapter and a head, the reward being their mean.
A least-squares line is fitted to each axis; `linear` where R^2 is at least 0.98. Memory is the child's peak resident
set (of its CUDA memory where there is one); its growth is the fitted line's, from the first point to the last.
Prints a table and one line of JSON, and draws the curves with `--plot`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import choose_device, describe_device
from benchmarks.plots import write_panels
from benchmarks.processes import build_parser, read_peak_memory, run_command, run_ours
from benchmarks.tables import fit_line, format_table, gather_rows, summarize, write_json

AXES: dict[str, tuple[float, ...]] = {
    "prompts": (16, 32, 64, 128),
    "new_tokens": (16, 32, 64, 128),
    "model_size": (0.2, 0.4, 0.6, 0.8, 1.0),
    "reward_models": (1, 2, 4, 8),
}
MICRO_BATCH_ROWS = 8
LINEAR_R_SQUARED = 0.98


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "")
    parser.add_argument("--axis", choices=AXES, action="append", help="may be given again (default: all)")
    parser.add_argument("--points", type=float, nargs="+", help="values of the one --axis, in place of its own")
    parser.add_argument("--iterations", type=int, default=1, help="timed updates of each point")
    parser.add_argument("--split", type=int, default=-1)
    parser.add_argument("--plot", type=Path, help="draw the curves into this HTML file")
    for name, default in (("prompts", 16), ("prompt-tokens", 64), ("new-tokens", 32), ("epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run every point in turn, then print the curves and their lines."""
    names = ("model", "dtype", "threads", "iterations", "split", "prompts", "prompt_tokens", "new_tokens", "epochs")
    fixed = {
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "vf_coef": 0.1,
        "kl_coef": 0.05,
        "minibatches": 1,
        "seed": 0,
        "decoding_rows": 16,
    }
    work = {name: getattr(arguments, name) for name in names} | fixed
    rows = []
    for axis in arguments.axis or AXES:
        for value in arguments.points or AXES[axis]:
            point = run_ours("benchmarks.scaling", work | build_point(axis, value), threads=work["threads"])
            x = point["matrix_weights"] if axis == "model_size" else value
            rows.append({**point, "axis": axis, "x": x, "point": f"{axis} {value:g}"})
    rows = gather_rows(arguments.json, rows, key="point")
    lines = fit_axes(rows)
    print(format_scaling(rows, lines))
    machine = {"name": describe_device(choose_device()), "threads": work["threads"]}
    result = {"benchmark": "scaling", "date": date.today().isoformat(), "machine": machine, "work": work}
    if arguments.plot:
        draw(arguments.plot, rows)
    write_json(arguments.json, result | {"lines": lines, "rows": rows})


def build_point(axis: str, value: float) -> dict[str, Any]:
    """What a point changes in the work."""
    return {"layers_share" if axis == "model_size" else axis: value if axis == "model_size" else int(value)}


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """The child: one point."""
    from benchmarks.training import run_fixed_work

    told = work | {"micro_batches": max(1, work["prompts"] // MICRO_BATCH_ROWS)}
    scorers = [f"reward_{i}" for i in range(work.get("reward_models", 1))]
    with tempfile.TemporaryDirectory() as folder:
        if "layers_share" in work:
            told["model"] = save_shallow_model(work["model"], Path(folder), work["layers_share"])
        result = run_fixed_work(told, work["split"], scorers=scorers)
    return result | read_peak_memory()


def save_shallow_model(name: str, folder: Path, share: float) -> str:
    """A random model of the same shape with `share` of the layers, at least two, and the same tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from accord.models.loading import find_source

    config = AutoConfig.from_pretrained(find_source(name))
    config.num_hidden_layers = max(2, round(share * config.num_hidden_layers))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_source(name)).save_pretrained(folder)
    return str(folder)


def read_point(row: Mapping[str, Any]) -> tuple[float, float]:
    """(median seconds, peak GB) of a point."""
    return summarize(row["seconds"])["median"], (row["cuda_peak_bytes"] or row["peak_rss_bytes"]) / 1e9


def fit_axes(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each axis: `seconds` and `gigabytes` as `fit_line` gives them, `linear`, and `memory_growth`, a share."""
    lines = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [(row["x"], *read_point(row)) for row in rows if row["axis"] == axis]
        x, seconds, gigabytes = (list(column) for column in zip(*points, strict=True))
        cost, memory = fit_line(x, seconds), fit_line(x, gigabytes)
        start = memory["intercept"] + memory["slope"] * min(x)
        lines[axis] = {
            "seconds": cost,
            "gigabytes": memory,
            "linear": cost["r_squared"] >= LINEAR_R_SQUARED,
            "memory_growth": memory["slope"] * (max(x) - min(x)) / start,
        }
    return lines


def format_scaling(rows: Sequence[Mapping[str, Any]], lines: Mapping[str, Mapping[str, Any]]) -> str:
    """The points, then a line in words for each axis."""
    cells = [[row["axis"], row["x"], *read_point(row)] for row in rows]
    words = [
        f"{axis}: seconds {'linear' if line['linear'] else 'not linear'} (R^2 {line['seconds']['r_squared']:.4f}, "
        f"{line['seconds']['intercept']:.3g} + {line['seconds']['slope']:.3g} x); "
        f"memory grows by {100 * line['memory_growth']:.0f} % from the first point to the last"
        for axis, line in lines.items()
    ]
    return format_table(["axis", "x", "s an update", "peak GB"], cells) + "\n\n" + "\n".join(words)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each axis, with seconds and gigabytes."""
    panels = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = sorted((row["x"], *read_point(row)) for row in rows if row["axis"] == axis)
        x, seconds, gigabytes = (list(column) for column in zip(*points, strict=True))
        panels.append((axis, [("seconds an update", x, seconds), ("peak GB", x, gigabytes)]))
    write_panels(path, panels, "seconds, GB")


if __name__ == "__main__":
    main()
