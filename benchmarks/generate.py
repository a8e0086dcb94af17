"""Text generation beside transformers: useful tokens a second on rows of mixed length, and share of the bandwidth.

    python -m benchmarks.generate --model DIR [--rows 32 --shortest 8 --longest 128 --repeats 3]

Work: 32 prompts of 64 random words, sampled side by side at temperature 1; row i stops after a number of tokens of its
own, spread evenly from 8 to 128. The stop is forced by a countdown (benchmarks/prompts.py), for no engine takes a limit
for each row alike, so every engine does all its work and samples the same numbers of tokens.

Contestants, each in a process of its own, on the same prompt ids and the model without adapters:
accord: `accord.rollout.Sampler`, which also returns each token's log-probability;
generate: transformers' `generate`, which goes on until the longest row has ended, without log-probabilities;
continuous: transformers' continuous batching, with each request's own `max_new_tokens`. Where it cannot run on this
machine, the table holds its error.

A short run warms up; then `--repeats` are timed, and the median is shown with the lowest and highest. Useful tokens are
those up to each row's stop. The share of the copy bandwidth is that of the least bytes that decoding can read
(`ModelShape.count_decoding`: all weights once for each of the longest row's steps, and each row's keys and values):
1 would be the limit of any engine that decodes these rows side by side. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from typing import Any

from accord.types import Prompt
from benchmarks.counting import ModelShape
from benchmarks.machine import Machine, measure_roofs, synchronize
from benchmarks.processes import BenchmarkError, build_parser, read_peak_memory, run_command, run_ours
from benchmarks.tables import format_table, gather_rows, summarize, write_json

WARM_UP_TOKENS = 4
BLOCK_TOKENS = 32
"""Of continuous batching's cache."""


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__ or "", roofs=True)
    parser.add_argument("--only", choices=ENGINES, action="append", help="may be given again (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each engine")
    for name, default in (("rows", 32), ("prompt-tokens", 64), ("shortest", 8), ("longest", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    run_command(compare, measure, parser, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run the engines in turn, then print what they did."""
    names = ("model", "dtype", "threads", "repeats", "rows", "prompt_tokens", "shortest", "longest")
    work = {name: getattr(arguments, name) for name in names} | {"seed": 0}
    machine = measure_roofs(threads=work["threads"], quick=arguments.quick)
    rows = []
    for engine in arguments.only or ENGINES:
        row = run_ours("benchmarks.generate", work | {"engine": engine}, threads=work["threads"])
        rows.append(add_rates(row, machine))
    rows = gather_rows(arguments.json, rows)
    print(format_generation(rows))
    result = {"benchmark": "generate", "date": date.today().isoformat(), "machine": machine.to_dict(), "work": work}
    write_json(arguments.json, result | {"rows": rows})


def add_rates(row: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The row with medians and shares; unchanged where the engine did not run."""
    if "error" in row:
        return row
    seconds = summarize(row["seconds"])
    return {
        **row,
        "summary": {
            "seconds": seconds,
            "tokens_per_second": row["tokens"] / seconds["median"],
            "copy_share": row["least_bytes"] / seconds["median"] / (machine.copy_gb_per_second * 1e9),
        },
    }


def format_generation(rows: Sequence[dict[str, Any]]) -> str:
    """One line an engine; an engine that did not run says why."""
    cells: list[list[object]] = []
    for row in rows:
        if "error" in row:
            cells.append([row["name"], None, None, None, None, None, row["error"]])
            continue
        summary, seconds = row["summary"], row["summary"]["seconds"]
        memory = (row["cuda_peak_bytes"] or row["peak_rss_bytes"]) / 1e9
        cells.append([row["name"], seconds["median"], f"{seconds['min']:.3g} to {seconds['max']:.3g}",
                      summary["tokens_per_second"], 100 * summary["copy_share"], memory, ""])  # fmt: skip
    header = ["", "s", "range", "useful tokens/s", "% of copy bandwidth", "peak GB", "error"]
    return format_table(header, cells)


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """The child: one engine's timed runs.

    Raises:
        BenchmarkError: a row did not stop where it should.
    """
    import torch

    from accord.models import load_base
    from benchmarks.prompts import Countdown, build_prompts, find_word_ids, spread_limits

    torch.set_num_threads(work["threads"])
    base = load_base(work["model"], dtype=work["dtype"], split=0)
    limits = spread_limits(work["rows"], work["shortest"], work["longest"], work["seed"])
    words = find_word_ids(base.tokens)
    chosen = [words[i % len(words)] for i in range(work["longest"])] if len(words) >= work["longest"] else []
    if not chosen:
        raise BenchmarkError(f"the tokenizer has {len(words)} words", mend=f"use --longest {len(words)} or less")
    countdown = Countdown(chosen, base.tokens.eos_id, base.vocabulary)
    prompts = build_prompts(
        base.tokens, work["rows"], work["prompt_tokens"], work["seed"], endings=[countdown.words[n] for n in limits]
    )
    start, name = ENGINES[work["engine"]]
    shape = ModelShape.from_config(base.model.config)
    least = shape.count_decoding([work["prompt_tokens"]] * len(limits), limits, base.dtype.itemsize)
    seconds = []
    try:
        with start(base, countdown, prompts, limits) as run:
            run(WARM_UP_TOKENS)
            for _ in range(work["repeats"]):
                started = time.perf_counter()
                lengths = run(None)
                synchronize(base.device.type)
                seconds.append(time.perf_counter() - started)
                if lengths != limits:
                    raise BenchmarkError(f"rows ended after {lengths} tokens, not {limits}", where=name)
    except UnavailableError as error:
        return {"name": name, "error": str(error)}
    done = {"seconds": seconds, "tokens": sum(limits), "steps": max(limits)}
    return {"name": name, **done, "least_bytes": least.moved_bytes, "least_flops": least.flops} | read_peak_memory()


class UnavailableError(Exception):
    """An engine cannot run on this machine; the words are its own."""


Run = Callable[[int | None], list[int]]
"""One generation of all rows, cut after so many tokens where given: the number of tokens of each row, EOS included."""


@contextmanager
def start_accord(base: Any, countdown: Any, prompts: Sequence[Prompt], limits: Sequence[int]) -> Iterator[Run]:
    """Our sampler, all rows side by side. The countdown stands behind its engine, as it stands behind others' heads."""
    from accord.rollout import Sampler
    from accord.rollout.engines import open_engine

    def open_forced(*place: Any) -> CountedEngine:
        return CountedEngine(open_engine(*place), countdown)

    sampler = Sampler(base, len(prompts), open_engine=open_forced)

    def run(cut: int | None) -> list[int]:
        rollout = sampler.generate(
            None, prompts, seeds=range(len(prompts)), max_new_tokens=cut or max(limits), temperature=1.0
        )
        return [int(n) for n in rollout.completion_mask.sum(1)]

    yield run


class CountedEngine:
    """An engine whose logits a countdown overwrites (see `accord.rollout.engines.Engine`)."""

    def __init__(self, inner: Any, countdown: Any) -> None:
        self.inner = inner
        self.countdown = countdown
        self.admits_while_running = inner.admits_while_running

    def admit(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Rows enter; their last tokens say how many more are to come."""
        import torch

        return self.countdown.force(torch.tensor([ids[-1] for ids in prompts]), self.inner.admit(prompts))

    def step(self, tokens: Any) -> Any:
        """One more token for each row."""
        return self.countdown.force(tokens, self.inner.step(tokens))

    def keep(self, rows: Sequence[int]) -> list[int]:
        """All other rows leave."""
        kept: list[int] = self.inner.keep(rows)
        return kept


@contextmanager
def start_generate(base: Any, countdown: Any, prompts: Sequence[Prompt], limits: Sequence[int]) -> Iterator[Run]:
    """transformers' `generate` on a model as it loads it, with its default attention and a dynamic cache."""
    import torch

    model, eos_id, pad_id = load_plain(base), base.tokens.eos_id, base.tokens.pad_id
    countdown.attach(model)
    ids = torch.tensor([base.tokens.encode_prompt(p) for p in prompts], device=model.device)
    mask = torch.ones_like(ids)

    def run(cut: int | None) -> list[int]:
        settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        stops = {"max_new_tokens": cut or max(limits), "eos_token_id": eos_id, "pad_token_id": pad_id}
        with torch.no_grad():
            output = model.generate(ids, attention_mask=mask, **settings, **stops)[:, ids.shape[1] :]
        ended = (output == eos_id).cumsum(1) - (output == eos_id).long()
        return [int(n) for n in (ended == 0).sum(1)]

    yield run


@contextmanager
def start_continuous(base: Any, countdown: Any, prompts: Sequence[Prompt], limits: Sequence[int]) -> Iterator[Run]:
    """transformers' continuous batching; each request has a limit of its own, so it needs no countdown.

    Raises:
        UnavailableError: it does not run here.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = load_plain(base)
    requests = [base.tokens.encode_prompt(p) for p in prompts]
    # A cache for these requests: left to itself, the engine takes nine tenths of a machine's memory. Prompts are not
    # shared between requests, or the repetitions would find those of the warm-up read already.
    blocks = sum(-(-(len(ids) + limit) // BLOCK_TOKENS) for ids, limit in zip(requests, limits, strict=True))
    tokens = sum(map(len, requests))
    cache = ContinuousBatchingConfig(
        block_size=BLOCK_TOKENS, num_blocks=2 * blocks, max_batch_tokens=tokens, allow_block_sharing=False
    )
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=base.tokens.pad_id,
        max_new_tokens=max(limits),
    )  # fmt: skip
    try:
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=cache, timeout=5
        ) as engine:
            yield lambda cut: serve(engine, requests, [min(cut or limit, limit) for limit in limits])
    except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, MemoryError) as error:
        raise UnavailableError(f"{type(error).__name__}: {error}") from error


def serve(engine: Any, requests: Sequence[Sequence[int]], limits: Sequence[int]) -> list[int]:
    """Put all requests to the engine and wait for the last answer; the number of tokens of each.

    Raises:
        UnavailableError: a request failed, or the engine's thread ended.
    """
    names = [engine.add_request(list(ids), max_new_tokens=n) for ids, n in zip(requests, limits, strict=True)]
    done: dict[str, int] = {}
    while len(done) < len(names):
        answer = engine.get_result(timeout=1)
        if answer is None and not engine.is_running():
            raise UnavailableError(f"the engine ended with {len(done)} of {len(names)} requests done")
        if answer is not None and answer.error:
            raise UnavailableError(str(answer.error))
        if answer is not None and answer.is_finished():
            done[answer.request_id] = len(answer.generated_tokens)
    return [done[name] for name in names]


def load_plain(base: Any) -> Any:
    """The same model as transformers loads it, in the place of the base's own, whose weights are freed."""
    from transformers import AutoModelForCausalLM

    from accord.models.loading import find_source

    device, base.model = base.device, None
    model = AutoModelForCausalLM.from_pretrained(find_source(base.name), dtype=base.dtype)
    return model.eval().requires_grad_(False).to(device)


ENGINES: dict[str, tuple[Callable[..., AbstractContextManager[Run]], str]] = {
    "accord": (start_accord, "accord Sampler"),
    "generate": (start_generate, "transformers generate"),
    "continuous": (start_continuous, "transformers continuous batching"),
}


if __name__ == "__main__":
    main()
