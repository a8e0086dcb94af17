"""The pages of this room say all that it has, and their examples work."""

import json
from pathlib import Path

from markdown_it import MarkdownIt

from accord.feedback.agreement import Agreement
from accord.feedback.consensus import CONSENSUS
from accord.feedback.exporting import EXPORTERS
from accord.feedback.importing import IMPORTERS, import_file
from accord.feedback.records import VOTE_FIELDS
from accord.feedback.schema import metadata
from accord.feedback.simulate import AnnotatorSettings
from accord.feedback.store import VoteStore

VOTE_TABLES = ("prompts", "completions", "votes", "vote_completions", "imports", "schema_version")
DOCS = Path(__file__).parents[2] / "docs"


def missing(page: str, words: object) -> set[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return {str(word) for word in words if f"`{word}`" not in text}  # type: ignore[attr-defined]


def test_every_name_is_on_its_page() -> None:
    assert missing("formats.md", [*IMPORTERS, *EXPORTERS, *VOTE_FIELDS]) == set()
    assert missing("consensus.md", [*CONSENSUS, *Agreement.__dataclass_fields__]) == set()
    settings = [name for name, value in vars(AnnotatorSettings).items() if isinstance(value, property)]
    assert len(settings) == 5
    assert missing("feedback.md", settings) == set()
    assert missing("queue.md", {*metadata.tables} - {*VOTE_TABLES}) == missing("feedback.md", VOTE_TABLES) == set()


def test_the_example_of_a_vote_can_be_imported(store: VoteStore, tmp_path: Path) -> None:
    tokens = MarkdownIt().parse((DOCS / "formats.md").read_text(encoding="utf-8"))
    (example,) = [token.content for token in tokens if token.info == "json"]
    (tmp_path / "votes.jsonl").write_text(json.dumps(json.loads(example)))
    assert import_file(store, tmp_path / "votes.jsonl").format == "votes"
    (vote,) = store.votes()
    assert (vote.annotator, vote.choice, vote.completions[1].text) == ("zoë", "a", "It reflects the sea.")
