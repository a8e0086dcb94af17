"""A store on disk, an empty database of each kind (PostgreSQL on a server of our own), and the shared data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.feedback.database import Database, open_database
from accord.feedback.store import VoteStore
from benchmarks.postgres import PostgresServer, find_postgres, start_postgres


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    with VoteStore(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for this session."""
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed: no initdb, pg_ctl and postgres")
    with start_postgres(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database()


@pytest.fixture
def another_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """A second empty database of the same kind."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'another.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
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
