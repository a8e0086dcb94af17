"""The commands import, export and audit: people's votes in and out of the project, and whether its log is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.config import load_config

if TYPE_CHECKING:
    from accord.feedback.agreement import Interval
    from accord.feedback.importing import ImportResult
    from accord.feedback.store import VoteStore

Project = Annotated[Path, typer.Argument(help="The project's folder.", metavar="DIR")]


def import_votes(
    folder: Project,
    files: Annotated[list[Path], typer.Argument(help="Files or data set folders.", metavar="FILE...")],
    format: Annotated[
        str | None, typer.Option(metavar="F", help="Where the rows do not tell it; docs/formats.md lists them.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the good rows; keep the bad ones in a file.")
    ] = False,
) -> None:
    """Read people's votes and preferences into the project."""
    store = _open_store(folder)
    from accord.feedback.importing import import_file

    with store:
        for file in files:
            typer.echo(f"{file}: {_say_import(import_file(store, file, format=format, skip_bad=skip_bad))}")
        for line in _say_agreement(store):
            typer.echo(line)


def export_votes(
    folder: Project,
    file: Annotated[Path, typer.Argument(help="Where to; a name that ends in .gz is compressed.", metavar="FILE")],
    format: Annotated[str, typer.Option(metavar="F", help="docs/formats.md lists them.")] = "votes",
) -> None:
    """Write the project's votes to a file."""
    store = _open_store(folder)
    from accord.feedback.exporting import export_file

    with store:
        result = export_file(store, file, format)
    typer.echo(f"{file}: {result.written} rows")
    for kind, count in result.left_out.items():
        typer.echo(f"left out, for the format has no words for it: {kind}, {count}")


def audit_votes(folder: Project) -> None:
    """Replay the log of the project's database and compare every table with what it gives."""
    store = _open_store(folder)
    from accord.feedback.replay import audit

    with store:
        count = audit(store.database)
    typer.echo(f"{count} events, none missing or changed; replayed they give the rows of every table")


def _open_store(folder: Path) -> VoteStore:
    """The votes of a project; a folder without settings is none."""
    database = load_config(folder).project.database
    from accord.feedback.store import VoteStore
    from accord.workspace import Workspace

    return VoteStore(Workspace(folder).locate_votes(database))


def _say_import(result: ImportResult) -> str:
    """`1729 rows (hh), 1729 new votes, 0 known already`, and what became of bad rows."""
    line = f"{result.read} rows ({result.format}), {result.added} new votes, {result.duplicates} known already"
    return line + (f", {result.rejected} bad rows kept in {result.rejects}" if result.rejected else "")


def _say_agreement(store: VoteStore) -> list[str]:
    """A line for comparisons and one for ratings, where two annotators judged the same thing."""
    from accord.feedback.agreement import compute_agreement

    lines = []
    for kind, things in (("comparison", "pairs"), ("rating", "answers")):
        found = compute_agreement(store.votes(), kind=kind)  # type: ignore[arg-type]  # a literal of two
        if found.pairwise and found.alpha:
            lines.append(
                f"agreement on {found.items} {things} by {found.annotators} annotators: "
                f"pairwise {_say_interval(found.pairwise)}, Krippendorff's alpha {_say_interval(found.alpha)}"
            )
    return lines


def _say_interval(interval: Interval) -> str:
    """`0.743 [0.61, 0.85]`, 95 %."""
    return f"{interval.estimate:.3f} [{interval.low:.2f}, {interval.high:.2f}]"
