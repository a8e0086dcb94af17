"""Each contestant in a process of its own: starting it, its one JSON line, its peak memory, and errors in words.

Implements the parent's side (`run_child`, `run_ours`) and the child's (`print_result`, `read_peak_memory`). Leaves out
what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.errors import AccordError, ConfigError

ROOT = Path(__file__).parent.parent
MARK = "RESULT "
"""What stands before a child's JSON line, so that a library's own prints are not taken for it."""


class BenchmarkError(AccordError):
    """A contestant could not be run, or did other work than was asked of it."""


def check_peer_python(path: str) -> str:
    """The peer's interpreter, found on disk or on the PATH.

    Raises:
        ConfigError: there is none.
    """
    found = shutil.which(path)
    if found is None:
        raise ConfigError(
            f"there is no Python at {path!r}, so the peer cannot run",
            where="--peer-python",
            mend="make a virtual environment with torch==2.13.0 trl==1.10.0 peft and name its python, or --only ours",
        )
    return found


def run_child(python: str, module: str, work: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Run `python -m module --work FILE` from the repository's root and return the JSON object that it printed.

    `work` goes through the file, as JSON. Both contestants get the same threads by the same variables; what the child
    writes to standard error is shown.

    Raises:
        BenchmarkError: the child failed, or printed no result.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "work.json"
        told.write_text(json.dumps(dict(work)), encoding="utf-8")
        command = [python, "-m", module, "--work", str(told)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise BenchmarkError(
            f"it ended with code {done.returncode} and no result",
            where=f"{python} -m {module}",
            mend="read what it wrote above; for the peer, check that its environment has TRL 1.10 and PEFT",
        )
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return result


def run_ours(module: str, work: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """`run_child` with the interpreter that runs this."""
    return run_child(sys.executable, module, work, threads=threads)


def read_work(arguments: Sequence[str]) -> dict[str, Any]:
    """What the parent asked for: the file behind `--work`."""
    work: dict[str, Any] = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    return work


def print_result(result: Mapping[str, Any]) -> None:
    """The child's answer, on a line of its own."""
    print(MARK + json.dumps(dict(result)), flush=True)


def read_peak_memory() -> dict[str, int | None]:
    """Of this process: `peak_rss_bytes`, the largest resident set so far, and `cuda_peak_bytes`, None without CUDA."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024), "cuda_peak_bytes": cuda}


def run_command(parent: Callable[[argparse.Namespace], None], child: Callable[[dict[str, Any]], dict[str, Any]],
                parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:  # fmt: skip
    """The `main` of a benchmark: the parent's part, or with `--work` the child's; errors in words, with their code."""
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["--work"]:
            print_result(child(read_work(given)))
        else:
            parent(parser.parse_args(given))
    except AccordError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def build_parser(docstring: str, *, dtype: bool = True, roofs: bool = False) -> argparse.ArgumentParser:
    """A parser whose `--help` explains the work: the module's own words, with the options that benchmarks share.

    dtype: whether the work is done in one that may be chosen. roofs: whether the machine's are measured.
    """
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a folder of safetensors, or a name that Accord knows")
    if dtype:
        parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each contestant")
    parser.add_argument("--json", type=Path, help="write the result here; rows of earlier runs in it are kept")
    if roofs:
        parser.add_argument("--quick", action="store_true", help="measure the machine's roofs in a second, roughly")
    return parser
