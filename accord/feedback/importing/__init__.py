"""Files of other people's votes into the store: one function, and one file per row format.

Implements detection, all-or-nothing import in one transaction, and the account of bad rows. Leaves out files
elsewhere than on this machine. To add a format: a file with a test of a row and a parser of it, and its line in
IMPORTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from accord.errors import ConfigError, DataError
from accord.feedback.importing.hh import claims_hh, parse_hh
from accord.feedback.importing.oasst import claims_oasst, parse_oasst
from accord.feedback.importing.pandalm import claims_pandalm, parse_pandalm
from accord.feedback.importing.rejects import RejectsFile
from accord.feedback.importing.rows import (
    MAX_LINE_BYTES,
    BadRow,
    SourceRow,
    compute_sha256,
    encode_value,
    read_rows,
)
from accord.feedback.importing.trl import claims_trl, parse_trl
from accord.feedback.importing.votes import claims_vote, parse_vote
from accord.feedback.store import VoteStore
from accord.types import Vote

DETECTION_ROWS = 100
BAD_ROWS_SHOWN = 20
BAD_ROWS_KEPT = 100
BATCH_VOTES = 400


class RowFormat(NamedTuple):
    """claims: does a row look like this format? parse: (row, source) -> votes, DataError where it is none after all."""

    claims: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], str], list[Vote]]


# In the order of detection: the first that claims a row has it.
IMPORTERS: dict[str, RowFormat] = {
    "votes": RowFormat(claims_vote, parse_vote),
    "pandalm": RowFormat(claims_pandalm, parse_pandalm),
    "oasst": RowFormat(claims_oasst, parse_oasst),
    "hh": RowFormat(claims_hh, parse_hh),
    "trl": RowFormat(claims_trl, parse_trl),
}


class BadRowsError(DataError):
    """Rows that cannot be imported; nothing was. `bad_rows` holds the first 100, `rejected` says how many there are."""

    def __init__(self, bad_rows: tuple[BadRow, ...], rejected: int) -> None:
        self.bad_rows = bad_rows
        self.rejected = rejected
        shown = [str(bad) for bad in bad_rows[:BAD_ROWS_SHOWN]]
        if rejected > len(shown):
            shown.append(f"and {rejected - len(shown)} more")
        super().__init__(
            f"{rejected} bad rows, so nothing was imported\n  " + "\n  ".join(shown),
            where=f"{bad_rows[0].path}:{bad_rows[0].line}",
            mend="mend the rows, or import with --skip-bad, which keeps them in a file",
        )


@dataclass(frozen=True)
class ImportResult:
    """read: rows, bad ones included. added: new votes. duplicates: votes that were known. rejected: bad rows.

    bad_rows: the first 100 of them. rejects: the file that holds them all, None where there are none.
    """

    read: int
    added: int
    duplicates: int
    rejected: int
    format: str
    bad_rows: tuple[BadRow, ...] = ()
    rejects: Path | None = None


@dataclass
class _Tally:
    """What an import has met so far."""

    read: int = 0
    votes: int = 0
    rejected: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)

    def reject(self, bad: BadRow) -> None:
        self.rejected += 1
        if len(self.bad_rows) < BAD_ROWS_KEPT:
            kept = bad.raw[:1000]
            self.bad_rows.append(bad if len(kept) == len(bad.raw) else BadRow(bad.path, bad.line, bad.reason, kept))


def import_file(
    store: VoteStore,
    path: str | Path,
    *,
    format: str | None = None,
    skip_bad: bool = False,
    rejects: str | Path | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> ImportResult:
    """Adds the votes of a file or folder to the store, in one transaction: all of them, or nothing.

    format: a name in IMPORTERS; None: by the first row that one of them claims. skip_bad: import the good rows, and
    write the bad ones to `rejects` (by default `<name>.rejected.jsonl` beside the store). Votes are named by their
    content, so importing the same rows again, under whatever name, adds nothing, and identical rows are one vote.
    Memory does not grow with the file.

    Raises BadRowsError where there are bad rows and not `skip_bad`; DataError where the file cannot be read, no
    format claims it, or the votes contradict those in the store; ConfigError where `format` is unknown.
    """
    path = Path(path)
    if format is not None and format not in IMPORTERS:
        raise ConfigError(f"unknown format {format!r}", mend=f"use one of {', '.join(IMPORTERS)}")
    name = format or detect_format(path, max_line_bytes=max_line_bytes)
    target = Path(rejects) if rejects is not None else (store.folder or Path()) / f"{path.name}.rejected.jsonl"
    tally = _Tally()
    with RejectsFile(target) as rejected, store.writer() as writer:
        parsed = _parse_rows(path, name, max_line_bytes, tally, rejected if skip_bad else None)
        added = 0
        while batch := list(islice(parsed, BATCH_VOTES)):
            if skip_bad or not tally.rejected:
                added += _add_named(writer.add, batch, path)
        if tally.rejected and not skip_bad:
            raise BadRowsError(tuple(tally.bad_rows), tally.rejected)
        _add_named(lambda _: writer.check(), [], path)
        writer.record_import(
            file=path.name,
            sha256=compute_sha256(path),
            format=name,
            read=tally.read,
            added=added,
            rejected=tally.rejected,
        )
        kept = rejected.keep()
    duplicates = tally.votes - added
    return ImportResult(tally.read, added, duplicates, tally.rejected, name, tuple(tally.bad_rows), kept)


def detect_format(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> str:
    """The first of IMPORTERS that claims one of the first 100 rows. Raises DataError, naming a row, where none does."""
    first: SourceRow | None = None
    for row in islice(read_rows(path, max_line_bytes=max_line_bytes), DETECTION_ROWS):
        for name, row_format in IMPORTERS.items():
            if row.value is not None and row_format.claims(row.value):
                return name
        first = first or row
    if first is None:
        raise DataError("there are no rows", where=str(path), mend="check the file")
    reason = first.reason or f"no format has rows with the fields {', '.join(map(repr, list(first.value or {})[:10]))}"
    raise DataError(reason, where=f"{first.path}:{first.line}", mend=f"name the format: {', '.join(IMPORTERS)}")


def _parse_rows(
    path: Path, name: str, max_line_bytes: int, tally: _Tally, rejected: RejectsFile | None
) -> Iterator[Vote]:
    """The votes of all good rows; bad ones go to the tally and, where it is given, the rejects file."""
    parse = IMPORTERS[name].parse
    for row in read_rows(path, max_line_bytes=max_line_bytes):
        tally.read += 1
        reason = row.reason
        if row.value is not None:
            try:
                votes = parse(row.value, path.name)
            except DataError as error:
                reason = error.message
            else:
                tally.votes += len(votes)
                yield from votes
                continue
        raw = encode_value(row.value) if row.raw is None else row.raw
        bad = BadRow(row.path, row.line, reason or "not a row", raw, row.span)
        tally.reject(bad)
        if rejected is not None:
            rejected.write(bad)


def _add_named(add: Callable[[list[Vote]], Any], batch: list[Vote], path: Path) -> int:
    """`add(batch)`, with the file's name on what it raises."""
    try:
        return add(batch) or 0
    except DataError as error:
        raise DataError(error.message, where=error.where or str(path), mend=error.mend) from error
