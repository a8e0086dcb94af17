"""A store on disk, and the shared data where it is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.feedback.store import VoteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    with VoteStore(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ACCORD_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the shared data is not here; set ACCORD_SHARED_DATA to its folder")
    return folder
