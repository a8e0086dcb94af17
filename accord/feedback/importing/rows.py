"""Rows out of files: JSON lines (plain or gzip), parquet, Hugging Face dataset folders. One row in memory at a time.

Implements reading and the first refusals (broken JSON, wrong UTF-8, a line too long). Leaves out what a row means: that
is its format's business (`hh`, `trl`, ...). Files are told apart by their first bytes, not by their names.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast

from accord.errors import DataError

MAX_LINE_BYTES = 50_000_000
KEPT_BYTES = 1000  # of a line that is too long: its place in the file is kept, not its bytes
PARQUET_BATCH_ROWS = 256
GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
DISK_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRow:
    """A row as read: `value`, or the `reason` why there is none.

    line: from 1; in parquet and datasets, the number of the row.
    raw: the bytes of the line without its end (for a table, None: it has no bytes of its own).
    span: offset and length in the (uncompressed) file, in bytes, where `raw` holds only the beginning.
    """

    path: Path
    line: int
    value: dict[str, Any] | None
    reason: str | None
    raw: bytes | None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be imported: where, why, and its bytes (their first 1,000 where `span` is given)."""

    path: Path
    line: int
    reason: str
    raw: bytes
    span: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def list_data_files(path: Path) -> list[Path]:
    """The files behind `path`: itself, or a folder's in the order of their names. Raises DataError where none."""
    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path), mend="check the path")
    if path.is_file():
        return [path]
    if _is_disk_dataset(path):
        return sorted(path.rglob("*.arrow"))  # none where it has no rows
    files = sorted(file for pattern in ("*.parquet", "*.jsonl", "*.jsonl.gz") for file in path.rglob(pattern))
    if not files:
        raise DataError(
            "the folder holds no data", where=str(path), mend="give a saved dataset, or .parquet or .jsonl files in it"
        )
    return files


def compute_sha256(path: Path) -> str:
    """SHA-256, in hex, of the bytes of the file, or of all files of the folder in order."""
    digest = hashlib.sha256()
    for file in list_data_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[SourceRow]:
    """Every row of a file or folder, good or bad; blank lines are no rows.

    Raises DataError where the file itself cannot be read (missing, damaged compression or parquet).
    """
    files = list_data_files(path)
    if path.is_dir() and _is_disk_dataset(path):
        yield from _read_disk_dataset(path)
        return
    for file in files:
        with file.open("rb") as stream:
            magic = stream.read(4)
        if magic == PARQUET_MAGIC:
            yield from _read_parquet(file)
        else:
            yield from _read_lines(file, max_line_bytes)


def parse_rows(path: Path, parse: Callable[[dict[str, Any]], T], *, what: str, mend: str) -> list[T]:
    """`parse` of every row of a file in which each must be good. what: the word for one; mend: how one is written.

    Raises DataError where the file cannot be read, has no rows, or a row is broken or refused by `parse` (with a
    DataError, ValueError, KeyError or TypeError); it names file and line.
    """
    found = []
    for row in read_rows(path):
        try:
            if row.value is None:
                raise DataError(row.reason or "not a row")
            found.append(parse(row.value))
        except (DataError, ValueError, KeyError, TypeError) as error:
            message = error.message if isinstance(error, DataError) else str(error)
            raise DataError(f"not a {what}: {message}", where=f"{row.path}:{row.line}", mend=mend) from error
    if not found:
        raise DataError(f"no {what}s", where=str(path), mend=f"write one a line: {mend}")
    return found


def open_lines(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed where it is gzip."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path, "rb")) if compressed else path.open("rb")


def encode_value(value: object) -> bytes:
    """A table's row as JSON bytes, for a rejects file; what JSON cannot say is written as its repr."""
    return json.dumps(value, ensure_ascii=True, default=repr).encode()


def _read_lines(path: Path, max_line_bytes: int) -> Iterator[SourceRow]:
    number, offset = 0, 0
    try:
        with open_lines(path) as stream:
            while raw := stream.readline(max_line_bytes + 1):
                number += 1
                start, length, end = offset, len(raw), raw[-1:]
                while end != b"\n" and (more := stream.readline(1 << 20)):
                    length, end = length + len(more), more[-1:]
                offset += length
                length -= end == b"\n"
                if length > max_line_bytes:
                    reason = f"the line has {length} bytes, more than {max_line_bytes}"
                    yield SourceRow(path, number, None, reason, raw[:KEPT_BYTES], (start, length))
                elif raw.strip():
                    yield _parse_line(path, number, raw.rstrip(b"\r\n"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the compressed file is damaged: {error}", where=f"{path}:{number + 1}", mend="fetch or make it again"
        ) from error


def _parse_line(path: Path, number: int, raw: bytes) -> SourceRow:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_float)
    except UnicodeDecodeError as error:
        return SourceRow(path, number, None, f"not UTF-8 at byte {error.start + 1} of the line", raw)
    except json.JSONDecodeError as error:
        return SourceRow(path, number, None, f"broken JSON: {error.msg} at character {error.pos + 1}", raw)
    except RecursionError:
        return SourceRow(path, number, None, "nested too deeply", raw)
    except ValueError as error:  # NaN and its kin, and integers of thousands of digits
        return SourceRow(path, number, None, str(error), raw)
    if not isinstance(value, dict):
        return SourceRow(path, number, None, f"the line holds a {type(value).__name__}, not an object", raw)
    return SourceRow(path, number, value, None, raw)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                yield from _read_table(path, pa.Table.from_batches([batch]), number)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the parquet file cannot be read: {error}", where=f"{path}:{number + 1}") from error


def _read_disk_dataset(path: Path) -> Iterator[SourceRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the dataset cannot be read: {error}", where=str(path), mend="save it again with save_to_disk"
        ) from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    for name, split in splits.items():
        number = 0
        for table in split.with_format("arrow").iter(PARQUET_BATCH_ROWS):
            yield from _read_table(path / name, table, number)
            number += table.num_rows


def _read_table(path: Path, table: Any, before: int) -> Iterator[SourceRow]:
    """The rows of one batch. A text that is not UTF-8 spoils its own row only."""
    try:
        values = table.to_pylist()
    except UnicodeDecodeError:
        for i in range(table.num_rows):
            yield _read_table_row(path, table.slice(i, 1), before + i + 1)
        return
    for i, value in enumerate(values):
        yield SourceRow(path, before + i + 1, value, None, None)


def _read_table_row(path: Path, table: Any, number: int) -> SourceRow:
    import pyarrow as pa

    try:
        return SourceRow(path, number, table.to_pylist()[0], None, None)
    except UnicodeDecodeError as error:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        # Nothing but Arrow's own bytes holds such a row without loss.
        raw = b"arrow-ipc-base64:" + base64.b64encode(sink.getvalue().to_pybytes())
        return SourceRow(path, number, None, f"a text is not UTF-8: {error.reason}", raw)


def _is_disk_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in DISK_DATASET_FILES)
