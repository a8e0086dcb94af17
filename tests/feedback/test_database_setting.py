"""`project.database` says where a project's votes are, for the commands, the loop and the app alike."""

from pathlib import Path

from typer.testing import CliRunner

from accord.cli import app
from accord.config import load_config
from accord.feedback.database import open_database
from accord.feedback.store import VoteStore
from accord.web.site import open_site
from accord.workspace import Workspace
from tests.feedback.vote_strategies import compare


def test_the_votes_of_a_project_are_where_its_settings_say(database_url: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    runner = CliRunner()
    assert runner.invoke(app, ["init", str(project)]).exit_code == 0
    settings = project / "accord.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("database =")]
    place = lines.index("[project]") + 1
    settings.write_text("\n".join([*lines[:place], f'database = "{database_url}"', *lines[place:]]) + "\n")
    with VoteStore(database_url) as store:
        store.add([compare()])
    exported = tmp_path / "votes.jsonl"
    result = runner.invoke(app, ["export", str(project), str(exported), "--format", "votes"])
    assert result.exit_code == 0, result.output
    assert len(exported.read_text().splitlines()) == 1
    with open_site(Workspace(project), load_config(project)).database as database, open_database(database_url) as same:
        assert VoteStore(database).count() == VoteStore(same).count() == 1
    assert not (project / "feedback.db").exists()
