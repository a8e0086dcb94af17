"""Import and export at the command line: counts, bad rows by line, agreement, and out and in again without a change."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accord.cli import app
from accord.cli.project import create_project
from accord.errors import AccordError, ConfigError, DataError
from accord.feedback.records import vote_to_dict
from accord.types import Completion, Prompt, Vote


@pytest.fixture
def project(tmp_path: Path) -> Path:
    create_project(tmp_path / "p")
    return tmp_path / "p"


def accord(*arguments: object) -> list[str]:
    """Lines of the command's output; its error is raised."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, AccordError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(number: int, rejected: str = "no") -> dict[str, str]:
    return {"prompt": f"Question {number}?", "chosen": "Yes, gladly.", "rejected": rejected}


def vote(number: int, annotator: str, choice: str) -> dict:
    answers = (Completion.from_text("Yes."), Completion.from_text("No."))
    prompt = Prompt.from_user(f"Question {number}?")
    return vote_to_dict(Vote(f"{number}-{annotator}", "comparison", prompt, answers, annotator, choice=choice))


def test_a_file_comes_in_once(project: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", pair(1), pair(2))
    assert accord("import", project, file) == [f"{file}: 2 rows (trl), 2 new votes, 0 known already"]
    assert accord("import", project, file) == [f"{file}: 2 rows (trl), 0 new votes, 2 known already"]


def test_several_files_come_in_one_after_the_other(project: Path, tmp_path: Path) -> None:
    one, two = (write_rows(tmp_path / f"{n}.jsonl", pair(n)) for n in (1, 2))
    assert len(accord("import", project, one, two)) == 2
    assert accord("export", project, tmp_path / "out.jsonl") == [f"{tmp_path / 'out.jsonl'}: 2 rows"]


def test_a_bad_row_stops_the_import_unless_it_may_be_skipped(project: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", pair(1), pair(2, rejected=""))
    with pytest.raises(DataError, match="pairs.jsonl:2"):
        accord("import", project, file)
    rejects = project / "pairs.jsonl.rejected.jsonl"
    (line,) = accord("import", project, file, "--skip-bad")
    assert line == f"{file}: 2 rows (trl), 1 new votes, 0 known already, 1 bad rows kept in {rejects}"
    assert json.loads(rejects.read_text().splitlines()[0])


def test_what_goes_out_and_comes_back_is_equal(project: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "votes.jsonl", vote(1, "ada", "tie"), vote(1, "ben", "a"), vote(2, "ada", "both_bad"))
    accord("import", project, file)
    accord("export", project, tmp_path / "out.jsonl", "--format", "votes")
    create_project(tmp_path / "other")
    accord("import", tmp_path / "other", tmp_path / "out.jsonl")
    accord("export", tmp_path / "other", tmp_path / "back.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "back.jsonl").read_bytes()


def test_what_a_format_cannot_say_is_counted(project: Path, tmp_path: Path) -> None:
    accord("import", project, write_rows(tmp_path / "votes.jsonl", vote(1, "ada", "tie"), vote(2, "ada", "a")))
    lines = accord("export", project, tmp_path / "out.jsonl", "--format", "trl")
    assert lines == [
        f"{tmp_path / 'out.jsonl'}: 1 rows",
        "left out, for the format has no words for it: tie, 1",
    ]


def test_agreement_is_told_where_two_people_judged_the_same(project: Path, tmp_path: Path) -> None:
    """By hand, for a a / b b / a b: pairwise 2/3; disagreement observed 2/6, expected 2 * 3 * 3 / (6 * 5) = 0.6."""
    votes = [vote(n, who, choice) for n, pairs in enumerate(("aa", "bb", "ab")) for who, choice in zip("xy", pairs)]
    line = accord("import", project, write_rows(tmp_path / "votes.jsonl", *votes))[-1]
    assert line.startswith("agreement on 3 pairs by 2 annotators: pairwise 0.667 [")
    alpha = 1 - (1 / 3) / 0.6
    assert f"Krippendorff's alpha {alpha:.3f} [" in line


@pytest.mark.parametrize("command", [["import", "x.jsonl"], ["export", "x.jsonl"]])
def test_votes_belong_to_a_project(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(ConfigError, match="there is no accord.toml"):
        accord(command[0], tmp_path, tmp_path / command[1])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use one of"):
        accord("import", project, write_rows(tmp_path / "a.jsonl", pair(1)), "--format", "hhh")
    with pytest.raises(ConfigError, match="use one of"):
        accord("export", project, tmp_path / "b.jsonl", "--format", "hhh")
