"""The votes of a store out to files: hh, trl, votes (JSON lines), parquet and dataset.

Implements writing beside and renaming, and the account of what a format has no words for. Leaves out preferences
(artifacts hold those): what goes out is what people said. To add a format: a writer and its line in EXPORTERS.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from accord.errors import ConfigError, DataError
from accord.feedback.importing.hh import format_transcript, parse_hh
from accord.feedback.importing.trl import parse_trl
from accord.feedback.records import vote_to_dict
from accord.feedback.store import VoteStore
from accord.types import Completion, Vote

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_VOTES = 1000


@dataclass(frozen=True)
class ExportResult:
    """written: rows. left_out: votes the format has no words for, counted by what they are ("tie", "rating", ...)."""

    written: int
    left_out: dict[str, int]
    format: str
    path: Path


def export_file(store: VoteStore, path: str | Path, format: str) -> ExportResult:
    """Writes the store's votes to `path`, which appears whole or not at all; a name ending in .gz is compressed.

    votes, parquet, dataset (a folder for `datasets.load_from_disk`) carry every vote with every field, superseded ones
    too. hh and trl carry current comparisons with a choice; who voted, when and how strongly is lost, and ties, both
    bad, rankings, ratings, flags and answers that were cut off are left out and counted.

    Raises ConfigError where `format` is not in EXPORTERS; DataError, naming the vote, where the format would bring a
    text back as another one (and then writes nothing), or where `path` is a folder in the way.
    """
    if format not in EXPORTERS:
        raise ConfigError(f"unknown format {format!r}", mend=f"use one of {', '.join(EXPORTERS)}")
    path = Path(path)
    if path.is_dir() and format != "dataset":
        raise DataError("there is a folder of that name", where=str(path), mend="give the name of a file")
    if path.is_dir() and any(path.iterdir()) and not (path / "dataset_info.json").is_file():
        raise DataError("the folder holds something else", where=str(path), mend="give a new folder")
    left_out: Counter[str] = Counter()
    written = EXPORTERS[format](store, path, left_out)
    return ExportResult(written, dict(sorted(left_out.items())), format, path)


def _export_hh(store: VoteStore, path: Path, left_out: Counter[str]) -> int:
    return _write_lines(path, (_build_hh_row(vote) for vote in _chosen_only(store, left_out)))


def _export_trl(store: VoteStore, path: Path, left_out: Counter[str]) -> int:
    return _write_lines(path, (_build_trl_row(vote) for vote in _chosen_only(store, left_out)))


def _export_votes(store: VoteStore, path: Path, left_out: Counter[str]) -> int:
    return _write_lines(path, map(vote_to_dict, store.votes(current=False)))


def _export_parquet(store: VoteStore, path: Path, left_out: Counter[str]) -> int:
    with _beside(path) as partial:
        return _write_parquet(store, partial)


def _export_dataset(store: VoteStore, path: Path, left_out: Counter[str]) -> int:
    import datasets

    with _beside(path) as partial:
        partial.mkdir(parents=True)
        table, cache, saved = partial / "votes.parquet", partial / "cache", partial / "saved"
        written = _write_parquet(store, table)
        with _without_progress_bars():
            if written:
                votes = datasets.Dataset.from_parquet(str(table), cache_dir=str(cache))
            else:  # from_parquet knows no empty split
                votes = datasets.Dataset(_build_arrow_schema().empty_table())
            votes.save_to_disk(str(saved), num_shards=None if written else 1)
        table.unlink()
        shutil.rmtree(cache, ignore_errors=True)
        for file in saved.iterdir():
            file.rename(partial / file.name)
        saved.rmdir()
    return written


EXPORTERS: dict[str, Callable[[VoteStore, Path, Counter[str]], int]] = {
    "hh": _export_hh,
    "trl": _export_trl,
    "votes": _export_votes,
    "parquet": _export_parquet,
    "dataset": _export_dataset,
}


def _chosen_only(store: VoteStore, left_out: Counter[str]) -> Iterator[Vote]:
    """The current votes that chosen/rejected can say; the others are counted."""
    for vote in store.votes():
        if vote.kind != "comparison":
            left_out[vote.kind] += 1
        elif vote.choice not in ("a", "b"):
            left_out[str(vote.choice)] += 1
        elif not all(completion.finished for completion in vote.completions):
            left_out["unfinished"] += 1
        else:
            yield vote


def _order(vote: Vote) -> tuple[Completion, Completion]:
    """Chosen, rejected."""
    a, b = vote.completions
    return (a, b) if vote.choice == "a" else (b, a)


def _build_hh_row(vote: Vote) -> dict[str, Any]:
    if vote.prompt.text is not None:
        raise _refusal(vote, "hh", "its prompt is a bare text", "trl")
    chosen, rejected = _order(vote)
    try:
        row = {
            "chosen": format_transcript([*vote.prompt.messages, *chosen.messages]),
            "rejected": format_transcript([*vote.prompt.messages, *rejected.messages]),
        }
        back = parse_hh(row, vote.source)[0]
    except DataError as error:
        raise _refusal(vote, "hh", error.message, "trl") from error
    return _require_same(vote, back, row, "hh")


def _build_trl_row(vote: Vote) -> dict[str, Any]:
    """A standard row for a bare text, a conversational one with an explicit prompt for a chat."""
    chosen, rejected = _order(vote)
    row: dict[str, Any]
    if vote.prompt.text is not None:
        row = {"prompt": vote.prompt.text, "chosen": chosen.text, "rejected": rejected.text}
    else:
        chats = {"prompt": vote.prompt.messages, "chosen": chosen.messages, "rejected": rejected.messages}
        row = {name: [message.to_dict() for message in messages] for name, messages in chats.items()}
    try:
        back = parse_trl(row, vote.source)[0]
    except DataError as error:
        raise _refusal(vote, "trl", error.message, "votes") from error
    return _require_same(vote, back, row, "trl")


def _require_same(vote: Vote, back: Vote, row: dict[str, Any], format: str) -> dict[str, Any]:
    """`row`, if reading it gives the prompt and answers that were written. Raises DataError otherwise."""
    if back.prompt != vote.prompt or _order(back) != _order(vote):
        raise _refusal(vote, format, "its turns would come back divided otherwise", "votes")
    return row


def _refusal(vote: Vote, format: str, reason: str, other: str) -> DataError:
    return DataError(f"{format} cannot carry it: {reason}", where=f"vote {vote.id}", mend=f"export as {other}")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    written = 0
    with _beside(path) as partial, partial.open("wb") as raw, _compress(raw, path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            written += 1
    return written


@contextmanager
def _compress(raw: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """gzip around `raw` where the name asks for it, without a time in it, so that equal votes give equal bytes."""
    if path.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
        yield cast(IO[bytes], stream)


def _write_parquet(store: VoteStore, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = 0
    schema = _build_arrow_schema()
    votes = store.votes(current=False)
    with pq.ParquetWriter(path, schema) as writer:
        while rows := [vote_to_dict(vote) for vote in islice(votes, BATCH_VOTES)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            written += len(rows)
    return written


def _build_arrow_schema() -> pa.Schema:
    """One column for each field of a vote line; what does not apply is null."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),
            ("prompt", pa.struct([("messages", messages), ("text", pa.string())])),
            (
                "completions",
                pa.list_(pa.struct([("messages", messages), ("finished", pa.bool_()), ("origin", pa.string())])),
            ),
            ("annotator", pa.string()),
            ("choice", pa.string()),
            ("strength", pa.int64()),
            ("ranks", pa.list_(pa.int64())),
            ("rating", pa.float64()),
            ("flag", pa.string()),
            ("created_at", pa.string()),
            ("guideline_version", pa.string()),
            ("simulated", pa.bool_()),
            ("source", pa.string()),
            ("supersedes", pa.string()),
        ]
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keeps the datasets library from drawing on the terminal, and leaves its setting as it was."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well, and removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        for file in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
            _flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Onto the disk, before the name is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
