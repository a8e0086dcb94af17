"""A PostgreSQL server of one's own, for measurements and tests: started in a temporary folder, gone afterwards.

Implements finding the programs, starting, new databases, stopping. It listens on a socket in its folder alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import create_engine, text

from accord.errors import ConfigError, WorkspaceError


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL that listens on a socket in `folder` only."""

    folder: Path

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"accord_{uuid.uuid4().hex}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database of that name."""
        return f"postgresql+psycopg://accord@/{name}?host={self.folder}"


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, newest first, or None."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]), reverse=True)
    if found := shutil.which("pg_ctl"):
        folders.append(Path(found).parent)
    return next((f for f in folders if all((f / n).exists() for n in ("initdb", "pg_ctl", "postgres"))), None)


@contextmanager
def start_postgres(*, durable: bool) -> Iterator[PostgresServer]:
    """A server while the block runs. It refuses to run as root, so root lends it to the user nobody.

    durable: whether a commit waits for the disk; without, tests are quicker and a power cut could lose votes.

    Raises:
        ConfigError: PostgreSQL, or Python's driver of it, is not installed.
        WorkspaceError: it does not start; with its own words.
    """
    programs = find_postgres()
    if programs is None:
        raise ConfigError("PostgreSQL is not installed: no initdb, pg_ctl and postgres", mend="install postgresql")
    if find_spec("psycopg") is None:
        raise ConfigError("Python's PostgreSQL driver is not installed: psycopg", mend="pip install 'accord[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="accord-pg-"))  # short: a socket's path has at most 107 characters
    user = "nobody" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        log = folder / "log"
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            said = done.stderr.decode() + (log.read_text() if log.exists() else "")
            raise WorkspaceError(f"{program} failed: {said}", where=str(folder), mend="see PostgreSQL's own words")

    call("initdb", "-U", "accord", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=300"
    call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options + ("" if durable else " -c fsync=off"))
    try:
        yield PostgresServer(folder)
    finally:
        call("pg_ctl", "stop", "-w", "-m", "immediate")
        shutil.rmtree(folder)
