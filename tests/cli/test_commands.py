"""The commands as a person meets them: help at once, projects made and never overwritten, errors with a mend."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accord.cli import app
from accord.cli.project import create_project, find_examples
from accord.config import load_config
from accord.errors import ConfigError, WorkspaceError


def accord(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a real process."""
    return subprocess.run(
        [sys.executable, "-m", "accord", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "60", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_answers_without_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from accord.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'numpy', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_fits_sixty_columns(tmp_path: Path) -> None:
    done = accord("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert max(len(line) for line in done.stdout.splitlines()) <= 60


@pytest.mark.parametrize("example", [None, *find_examples()])
def test_init_writes_settings_that_load(tmp_path: Path, example: str | None) -> None:
    folder = tmp_path / "a project"
    done = CliRunner().invoke(app, ["init", str(folder), *(["--example", example] if example else [])])
    assert done.exit_code == 0, done.output
    assert f"next: edit it, then accord run '{folder}'" in done.output
    config = load_config(folder)
    assert config.project.name == {None: "a project", "hh_harmless": "hh-harmless"}.get(example, example)


@pytest.mark.parametrize("example", find_examples())
def test_an_example_arrives_whole(tmp_path: Path, example: str) -> None:
    create_project(tmp_path / "p", example)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "accord.toml").write_text((find_examples()[example] / "accord.toml").read_text())
    assert load_config(tmp_path / "p") == load_config(tmp_path / "plain")


def test_the_examples_are_there() -> None:
    assert set(find_examples()) >= {"demo", "hh_harmless", "tiny"}


def test_real_preferences_are_never_mixed_with_simulated_ones(tmp_path: Path) -> None:
    create_project(tmp_path, "hh_harmless")
    config = load_config(tmp_path)
    assert (config.feedback.source, config.prompts.train, config.prompts.evaluation) == ("votes", "votes", "split")
    assert "simulation" not in tomllib.loads((find_examples()["hh_harmless"] / "accord.toml").read_text())


def test_init_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text("# mine")
    with pytest.raises(WorkspaceError, match="a project here already"):
        create_project(tmp_path)
    assert (tmp_path / "accord.toml").read_text() == "# mine"


def test_init_names_the_nearest_example(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean hh_harmless"):
        create_project(tmp_path, "hh_harmles")
    assert not (tmp_path / "accord.toml").exists()


def test_init_into_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        create_project(tmp_path / "file" / "project")


def test_an_error_is_one_message_with_its_mend_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text("[ppo]\nclip_rnge = 0.1\n")
    done = accord("run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: accord.toml:2: unknown setting ppo.clip_rnge",
        "mend:  did you mean clip_range?",
    ]


@pytest.mark.parametrize("arguments, environment", [(("--debug", "run"), {}), (("run",), {"ACCORD_DEBUG": "1"})])
def test_debug_shows_the_traceback(tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    done = accord(*arguments, cwd=tmp_path, **environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "there is no accord.toml" in done.stderr


def test_an_error_is_an_event_for_machines(tmp_path: Path) -> None:
    done = accord("run", "--json", "--set", "ppo.gama=1", cwd=tmp_path)
    (tmp_path / "accord.toml").write_text("")
    assert json.loads(done.stdout)["mend"] == "make a project here with: accord init ."
    done = accord("status", "--json", "--set", "ppo.gama=1", cwd=tmp_path)
    assert done.returncode == 2
    event = json.loads(done.stdout)
    assert (event["event"], event["error"], event["exit_code"]) == ("error", "InvalidSettings", 2)
    assert (event["where"], event["mend"]) == ("--set ppo.gama", "did you mean gamma?")


def test_brackets_in_a_message_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text("[polcy]\n")
    done = accord("run", cwd=tmp_path)
    assert "unknown section [polcy]" in done.stderr


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--sett", "x"], ["doctor"], ["import"]])
def test_a_wrong_command_line_is_refused_with_its_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = accord(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: accord" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    done = accord("--version", cwd=tmp_path)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(rf"accord {re.escape(project['version'])}\n", done.stdout)
