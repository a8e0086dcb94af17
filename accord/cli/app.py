"""The commands init, run, demo, status, report and doctor; import, export and audit stand in `feedback`.

Each is a few lines that read the settings, call the loop or the vote store, and show what came of it. What is heavy is
imported inside the command that needs it, so that `accord --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import accord
from accord import distributed
from accord.cli.feedback import audit_votes, export_votes, import_votes
from accord.cli.lab import lab
from accord.cli.label import label
from accord.cli.launching import launch
from accord.cli.progress import JsonProgress, show_progress
from accord.cli.project import create_project, find_examples
from accord.cli.tables import build_checks_table, build_plan_table, print_plan, print_summary
from accord.cli.words import say_command, say_seconds
from accord.config import FILE_NAME, Config, load_config
from accord.errors import AccordError

if TYPE_CHECKING:
    from accord.loop import PlannedStage

ASK_ABOVE_SECONDS = 1800.0
"""A run that is expected to take longer asks first, on a terminal."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The project's folder.", metavar="[DIR]", show_default="here")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting for this command; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, one event a line.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of bars.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="End with exit code 7 where people's votes are missing, instead of waiting.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a long run.")]


def main() -> None:
    """The command `accord`: an AccordError is one red message and an exit code of its class, without a traceback."""
    debug = "--debug" in sys.argv or os.environ.get("ACCORD_DEBUG", "") not in ("", "0")
    try:
        app(prog_name="accord")
    except AccordError as error:
        if debug:
            raise
        if distributed.speak_first():
            print_error(error)
        sys.exit(error.exit_code)


def print_error(error: AccordError) -> None:
    """On stderr: where and what in red, then the mend."""
    console = Console(stderr=True, highlight=False)
    where = f"{escape(error.where)}: " if error.where else ""
    console.print(f"[bold red]error:[/] {where}{escape(error.message)}", soft_wrap=True)
    if error.mend:
        console.print(f"[bold]mend:[/]  {escape(error.mend)}", soft_wrap=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"accord {accord.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error (or ACCORD_DEBUG=1).")
    ] = False,
) -> None:
    """Bring a language model into accord with the people who use it."""


@app.command()
def init(
    folder: Folder = Path(),
    example: Annotated[
        str | None, typer.Option("--example", metavar="NAME", help=f"Start from one of: {', '.join(find_examples())}.")
    ] = None,
) -> None:
    """Write a commented accord.toml into a folder."""
    path = create_project(folder, example)
    typer.echo(f"wrote {path}")
    typer.echo(f"next: edit it, then {say_command('run', folder, ())}")


@app.command()
def run(
    folder: Folder = Path(),
    overrides: Overrides = None,
    as_json: AsJson = False,
    plain: Plain = False,
    yes: Yes = False,
    no_wait: NoWait = False,
) -> None:
    """Take the loop from wherever it is to the end of its rounds."""
    _run(folder, overrides or [], as_json=as_json, plain=plain, yes=yes, wait=not no_wait)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo's project lies, or is made.", metavar="[DIR]")] = Path(
        "demo"
    ),
    overrides: Overrides = None,
    as_json: AsJson = False,
    plain: Plain = False,
    yes: Yes = False,
) -> None:
    """The main job: the embedded model, starter prompts, simulated annotators, PPO, report. Minutes on two cores."""
    if not (folder / FILE_NAME).exists():
        path = create_project(folder, "demo")
        if not as_json:
            typer.echo(f"wrote {path}")
    _run(folder, overrides or [], as_json=as_json, plain=plain, yes=yes)


def _run(folder: Path, overrides: Sequence[str], *, as_json: bool, plain: bool, yes: bool, wait: bool = True) -> None:
    """Run the project here, or start the processes that it asks for and wait. Ctrl-C leaves a project that goes on."""
    with _told_to_machines(as_json), _stoppable(folder, overrides, as_json):
        config = load_config(folder, overrides)
        if config.compute.processes > 1 and not distributed.is_launched():
            options = {"--json": as_json, "--plain": plain, "--yes": yes, "--no-wait": not wait}
            arguments = ["run", str(folder), *(f"--set={override}" for override in overrides)]
            arguments += [option for option, given in options.items() if given]
            launch(arguments, processes=config.compute.processes, restarts=config.compute.restarts)
            return
        with distributed.joined(config.compute.timeout_seconds):
            _run_here(folder, config, as_json=as_json, plain=plain, yes=yes, wait=wait)


def _run_here(folder: Path, config: Config, *, as_json: bool, plain: bool, yes: bool, wait: bool) -> None:
    """Plan, show the plan, run, say where the report is; of several processes, the first one speaks."""
    console = Console(highlight=False)
    with _loading(console, quiet=as_json or plain or not distributed.is_first()):
        from accord import loop
        from accord.workspace import Workspace
    workspace = Workspace(folder)
    with distributed.first_alone() as working:
        if working:
            _show_plan(console, loop.plan(workspace, config), as_json=as_json, yes=yes or plain)
    first = distributed.is_first()
    with show_progress(console, as_json=as_json, plain=plain, silent=not first) as progress:
        result = loop.run(workspace, config, progress, wait=wait)
    if first:
        if as_json:
            JsonProgress().emit("finished", **dataclasses.asdict(result))
        else:
            print_summary(console, Path(result.report).with_suffix(".json"))
            console.print(f"[green]done.[/] report: [bold]{escape(str(result.report))}[/]", soft_wrap=True)


def _show_plan(console: Console, stages: Sequence[PlannedStage], *, as_json: bool, yes: bool) -> None:
    """The plan as a table or an event; a long run on a terminal asks first."""
    if as_json:
        JsonProgress().emit("plan", stages=[dataclasses.asdict(stage) for stage in stages])
        return
    import psutil

    print_plan(console, stages, psutil.virtual_memory().available)
    seconds = sum(stage.expected_seconds for stage in stages if not stage.done)
    if seconds > ASK_ABOVE_SECONDS and console.is_terminal and sys.stdin.isatty() and not yes:
        typer.confirm(f"This takes about {say_seconds(seconds)}. Begin?", default=True, abort=True)


@contextmanager
def _loading(console: Console, *, quiet: bool) -> Iterator[None]:
    """A word while torch is imported, which takes seconds."""
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status("loading"):
            yield


@contextmanager
def _told_to_machines(as_json: bool) -> Iterator[None]:
    """With --json, an error is an event too, before it ends the command."""
    try:
        yield
    except AccordError as error:
        if as_json and distributed.speak_first():
            told = {"message": error.message, "where": error.where, "mend": error.mend, "exit_code": error.exit_code}
            JsonProgress().emit("error", error=type(error).__name__, **told)
        raise


@contextmanager
def _stoppable(folder: Path, overrides: Sequence[str], as_json: bool) -> Iterator[None]:
    """Ctrl-C: say how to go on, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        if not distributed.speak_first():
            _exit(130)
        command = say_command("run", folder, overrides)
        if as_json:
            JsonProgress().emit("stopped", command=command)
        typer.echo(f"\nstopped; go on with: {command}", err=True)
        _exit(130)


def _exit(code: int) -> NoReturn:
    raise typer.Exit(code)


@app.command()
def status(folder: Folder = Path(), overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say where the loop is and what comes next."""
    with _told_to_machines(as_json):
        config = load_config(folder, overrides or [])
        stages = _plan(folder, config)
    waiting = [stage for stage in stages if not stage.done]
    following = waiting[0].name if waiting else None
    if as_json:
        rows = [dataclasses.asdict(stage) for stage in stages]
        JsonProgress().emit("status", project=config.project.name, next=following, stages=rows)
        return
    console = Console(highlight=False)
    console.print(f"[bold]{escape(config.project.name)}[/], rounds: {config.project.rounds}")
    console.print(build_plan_table(stages))
    command = say_command("run" if following else "report", folder, overrides or [])
    console.print(f"next: {following}; go on with: {command}" if following else f"all done; the report: {command}")


def _plan(folder: Path, config: Config) -> list[PlannedStage]:
    from accord import loop
    from accord.workspace import Workspace

    return loop.plan(Workspace(folder), config)


@app.command()
def report(folder: Folder = Path(), overrides: Overrides = None) -> None:
    """Rebuild report.html and report.json of every finished round."""
    config = load_config(folder, overrides or [])
    from accord import loop
    from accord.workspace import Workspace

    for path in loop.build_report(Workspace(folder), config):
        typer.echo(str(path))


@app.command()
def doctor(
    model: Annotated[str, typer.Option("--model", metavar="M", help="`smollm2`, a folder, or a Hugging Face name.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Prove on a model what an optimiser relies on, or refuse it with the reason."""
    with _told_to_machines(as_json):
        console = Console(highlight=False)
        with _loading(console, quiet=as_json):
            from accord.models import load_base, require_healthy, run_doctor

            checks = run_doctor(load_base(model, dtype=dtype))
        if as_json:
            for check in checks:
                JsonProgress().emit("check", **dataclasses.asdict(check))
        else:
            console.print(build_checks_table(checks))
        require_healthy(checks)


app.command()(label)
app.command()(lab)
app.command("import")(import_votes)
app.command("export")(export_votes)
app.command("audit")(audit_votes)
