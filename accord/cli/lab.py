"""The command lab: experiments whose truth is known."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from accord.cli.progress import show_progress
from accord.errors import ConfigError

EXPERIMENTS = ("overoptimization",)


def lab(
    experiment: Annotated[str, typer.Argument(help=f"One of: {', '.join(EXPERIMENTS)}.", metavar="EXPERIMENT")],
    folder: Annotated[Path, typer.Argument(help="Where its runs and its page go.", metavar="[DIR]")] = Path("lab"),
    quick: Annotated[bool, typer.Option("--quick", help="One small world: seconds, for a first impression.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Independent worlds; 0: as the setting has it.")] = 0,
    first: Annotated[int, typer.Option("--first", min=0, help="Number of the first world.")] = 0,
    processes: Annotated[int, typer.Option("--processes", min=0, help="Worlds at a time; 0: one a core.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of bars.")] = False,
) -> None:
    """Optimise rewards learnt from noisy votes until the truth suffers, fit the laws, and see when the alarm rings."""
    if experiment not in EXPERIMENTS:
        near = difflib.get_close_matches(experiment, EXPERIMENTS, n=1)
        mend = f"did you mean {near[0]}?" if near else f"use one of {', '.join(EXPERIMENTS)}"
        raise ConfigError(f"there is no experiment {experiment!r}", where="lab", mend=mend)
    from accord.laboratory import QUICK, LabSettings, render_lab, run_lab, summarise_lab
    from accord.workspace import dump_json, replace_file

    settings = QUICK if quick else LabSettings()
    settings = dataclasses.replace(settings, worlds=seeds or settings.worlds, first=first)
    processes = processes or os.cpu_count() or 1
    console = Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    with show_progress(console, as_json=False, plain=plain) as progress:
        summary = summarise_lab(run_lab(settings, folder, progress, processes=processes))
    replace_file(folder / "lab.json", dump_json(summary))
    replace_file(folder / "lab.html", render_lab(summary))
    for arm, row in summary["alarms"].items():
        kept = (
            ""
            if row["kept_share"] is None
            else f", best gold kept {row['kept_share']:.0%}, least {row['kept_least']:.0%}, "
            f"at least 90 % in {row['kept_enough']} of {row['rose']}"
        )
        console.print(
            f"{arm:20} gamed {row['gamed']} of {row['runs']}, alarm on {row['rang_gamed']} of these and on "
            f"{row['rang_other']} of the others{kept}"
        )
    console.print(f"[green]done.[/] page: [bold]{escape(str(folder / 'lab.html'))}[/]", soft_wrap=True)
