"""The built wheel holds all it needs: it is installed elsewhere and works there, away from the checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from built_wheel import build_wheel, install_wheel, run
from tiny import build_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheel(wheel, tmp_path_factory.mktemp("installed"))


def accord(installed: Path, *arguments: str | Path, cwd: Path) -> str:
    """The installed command, which must not see the checkout."""
    return run(sys.executable, installed / "bin/accord", *arguments, cwd=cwd, PYTHONPATH=str(installed))


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = subprocess.run(["git", "ls-files", "accord", "examples"], cwd=ROOT, capture_output=True, text=True).stdout
    wanted = {f"accord/{name}" if name.startswith("examples/") else name for name in kept.splitlines()}
    assert wanted, "the list of files comes from git"
    assert wanted - names == set()
    assert not {name for name in names if name.startswith(("tests/", "docs/", "examples/"))}


def test_the_loop_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "tiny-model")
    accord(installed, "init", "project", "--example", "tiny", cwd=tmp_path)
    events = [json.loads(line) for line in accord(installed, "run", "project", "--json", cwd=tmp_path).splitlines()]
    assert events[-1]["event"] == "finished"
    page = (tmp_path / "project/rounds/001/report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "<style>" in page


def test_the_command_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert accord(installed, "--version", cwd=tmp_path).startswith("accord ")
    where = run(sys.executable, "-c", "import accord; print(accord.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert where.startswith(str(installed))
    for example in ("tiny", "demo", "hh_harmless"):
        accord(installed, "init", example, "--example", example, cwd=tmp_path)
        assert (tmp_path / example / "accord.toml").is_file()
