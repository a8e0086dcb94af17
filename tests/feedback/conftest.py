"""A store on disk, an empty database of each kind (PostgreSQL on a server of our own), and the shared data."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from accord.feedback.database import Database, open_database
from accord.feedback.store import VoteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    with VoteStore(tmp_path / "feedback.db") as opened:
        yield opened


@dataclass(frozen=True)
class Server:
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
        return f"postgresql+psycopg://accord@/{name}?host={self.folder}"


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, newest first, or None."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]), reverse=True)
    if found := shutil.which("pg_ctl"):
        folders.append(Path(found).parent)
    return next((f for f in folders if all((f / n).exists() for n in ("initdb", "pg_ctl", "postgres"))), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for this session. It refuses to run as root, so root lends it to the user nobody."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb, pg_ctl and postgres")
    folder = Path(tempfile.mkdtemp(prefix="accord-pg-"))  # not tmp_path: a socket's path has at most 107 characters
    user = "nobody" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        log = folder / "log"
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr.decode() + (log.read_text() if log.exists() else "")

    call("initdb", "-U", "accord", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c max_connections=300"
    call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
    try:
        yield Server(folder)
    finally:
        call("pg_ctl", "stop", "-w", "-m", "immediate")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.create_database()


@pytest.fixture
def another_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """A second empty database of the same kind."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'another.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.create_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as opened:
        yield opened


@pytest.fixture
def any_store(database: Database) -> VoteStore:
    """A store of each kind in turn."""
    return VoteStore(database)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ACCORD_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the shared data is not here; set ACCORD_SHARED_DATA to its folder")
    return folder
