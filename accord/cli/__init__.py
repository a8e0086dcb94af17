"""The command line: commands (`app`), displays of long work (`progress`), the plan (`tables`), new projects."""

from accord.cli.app import app, main

__all__ = ["app", "main"]
