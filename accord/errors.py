"""One tree of errors. Every error says what was wrong, where, and the mend; nothing else is raised at users."""

from __future__ import annotations


class AccordError(Exception):
    """What was wrong (`message`), where (`where`: file, line, setting) and what to do (`mend`)."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.message = message
        self.where = where
        self.mend = mend
        super().__init__(message)

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head} (mend: {self.mend})" if self.mend else head


class ConfigError(AccordError):
    """A setting is unknown, of the wrong type, or impossible beside another."""

    exit_code = 2


class DataError(AccordError):
    """A row, file or value that a user gave cannot be used."""

    exit_code = 3


class NotFoundError(DataError):
    """What a caller named (an item, a lease, an annotator, a version) is not there."""


class ConflictError(DataError):
    """What a caller asks does not fit what is stored: an id means something else, or the moment for it has passed."""


class RefusedError(DataError):
    """The one who asks may not: paused, deleted, or it belongs to somebody else."""


class ModelError(AccordError):
    """A model cannot be loaded, or fails what an optimiser relies on."""

    exit_code = 4


class WorkspaceError(AccordError):
    """The project's folder is not in a state to work with (locked, damaged, not a project)."""

    exit_code = 5


class TrainingError(AccordError):
    """A run has gone wrong (a silent-correctness check failed) and was stopped."""

    exit_code = 6
