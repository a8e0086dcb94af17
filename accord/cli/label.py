"""The command label: serves the labelling app and the dashboard beside a running or waiting loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accord.config import load_config


def label(
    folder: Annotated[
        Path, typer.Argument(help="The project's folder.", metavar="[DIR]", show_default="here")
    ] = Path(),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The same as --set label.host=...; any but loopback asks for accounts.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The same as --set label.port=...")] = None,
) -> None:
    """Serve the page where people judge answers, and the dashboard."""
    given = [f"label.{name}={value}" for name, value in (("host", host), ("port", port)) if value is not None]
    config = load_config(folder, [*(overrides or []), *given])
    from accord.web.server import serve
    from accord.workspace import Workspace

    serve(Workspace(folder), config, typer.echo)
