"""What goes out and comes back is equal; what a format cannot carry is counted or refused, never lost silently."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.errors import ConfigError, DataError
from accord.feedback.exporting import export_file
from accord.feedback.importing import import_file
from accord.feedback.records import build_vote, vote_to_dict
from accord.feedback.store import VoteStore
from accord.types import Completion, Message, Prompt, Vote
from tests.feedback.vote_strategies import answers, compare, texts, votes

ROUND_TRIP = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FULL_FORMATS = [("votes", "v.jsonl"), ("votes", "v.jsonl.gz"), ("parquet", "v.parquet")]


def rows(store: VoteStore) -> list[dict[str, object]]:
    """Every field of every vote, origins included."""
    return [vote_to_dict(vote) for vote in store.votes(current=False)]


@ROUND_TRIP
@given(cast=st.lists(votes(), min_size=1, max_size=6), change=st.booleans())
def test_every_field_of_every_vote_comes_back(
    tmp_path_factory: pytest.TempPathFactory, cast: list[Vote], change: bool
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    if change:
        cast = [*cast, compare("again", annotator=cast[0].annotator, supersedes=cast[0].id)]
    with VoteStore(folder / "out.db") as out:
        out.add(cast)
        for number, (format, name) in enumerate(FULL_FORMATS):
            result = export_file(out, folder / name, format)
            assert (result.written, result.left_out) == (len({vote.id for vote in cast}), {})
            with VoteStore(folder / f"{number}.db") as back:
                import_file(back, folder / name)
                assert rows(back) == rows(out)


def test_a_dataset_folder_comes_back_and_others_can_read_it(store: VoteStore, tmp_path: Path) -> None:
    import datasets

    first = compare(choice="both_bad", strength=7)
    store.add([first, compare(choice="tie", supersedes=first.id), compare("other", annotator="bob")])
    for _ in range(2):  # the second replaces the first
        assert export_file(store, tmp_path / "data", "dataset").written == 3
    assert sorted(datasets.load_from_disk(str(tmp_path / "data"))["id"]) == sorted(
        v.id for v in store.votes(current=False)
    )
    with VoteStore(tmp_path / "back.db") as back:
        import_file(back, tmp_path / "data")
        assert rows(back) == rows(store)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(("feedback", "back"))} == {"data"}


# HH: user and assistant turns, the prompt ends with the user, the answer begins with the assistant.
hh_texts = texts.filter(lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text)


@st.composite
def chosen_votes(draw: st.DrawFn, contents: st.SearchStrategy[str]) -> Vote:
    prompt = [Message("user", draw(contents))]
    for _ in range(draw(st.integers(0, 2))):
        prompt += [Message("assistant", draw(contents)), Message("user", draw(contents))]
    last = contents.filter(lambda text: text.strip())
    a, b = draw(st.lists(last, min_size=2, max_size=2, unique=True))
    return build_vote(
        kind="comparison",
        prompt=Prompt(messages=tuple(prompt)),
        completions=(Completion.from_text(a), Completion.from_text(b)),
        annotator="imported",
        choice=draw(st.sampled_from(["a", "b"])),
    )


def sides(store: VoteStore) -> Counter[tuple[Prompt, Completion, Completion]]:
    """(prompt, chosen, rejected) of every comparison."""
    return Counter((v.prompt, *(v.completions if v.choice == "a" else v.completions[::-1])) for v in store.votes())


@ROUND_TRIP
@given(cast=st.lists(chosen_votes(hh_texts), min_size=1, max_size=4), format=st.sampled_from(["hh", "trl"]))
def test_chosen_and_rejected_come_back(tmp_path_factory: pytest.TempPathFactory, cast: list[Vote], format: str) -> None:
    folder = tmp_path_factory.mktemp("trip")
    with VoteStore(folder / "out.db") as out, VoteStore(folder / "back.db") as back:
        out.add(cast)
        assert export_file(out, folder / "x.jsonl", format).written == out.count()
        import_file(back, folder / "x.jsonl", format=format)
        assert set(sides(back)) == set(sides(out))
        # Once imported, the votes themselves are the same, and so are the bytes.
        export_file(back, folder / "y.jsonl", format)
        assert import_file(back, folder / "y.jsonl", format=format).added == 0


@ROUND_TRIP
@given(cast=chosen_votes(texts), text=texts, a=answers, b=answers)
def test_trl_carries_any_text(tmp_path_factory: pytest.TempPathFactory, cast: Vote, text: str, a: str, b: str) -> None:
    folder = tmp_path_factory.mktemp("trip")
    bare = [compare(a=a, b=b)] if a != b else []
    bare = [build_vote(**{**fields_of(vote), "prompt": Prompt(text=text)}) for vote in bare]
    with VoteStore(folder / "out.db") as out, VoteStore(folder / "back.db") as back:
        out.add([cast, *bare])
        export_file(out, folder / "x.jsonl", "trl")
        import_file(back, folder / "x.jsonl", format="trl")
        assert sides(back) == sides(out)


def fields_of(vote: Vote) -> dict[str, object]:
    return {
        "kind": vote.kind,
        "prompt": vote.prompt,
        "completions": vote.completions,
        "annotator": vote.annotator,
        "choice": vote.choice,
    }


SAME_TURNS = (Message("assistant", "Which?"), Message("user", "Any."))
LONG_ANSWERS = tuple(Completion((*SAME_TURNS, Message("assistant", text))) for text in ("this", "that"))


@pytest.mark.parametrize(
    "vote, reason",
    [
        (compare("a\n\nHuman: b"), "own mark of a new turn"),
        (compare(a="x\n\nAssistant: y"), "own mark of a new turn"),
        (
            build_vote(**{**fields_of(compare()), "prompt": Prompt.from_user("x", system="s")}),
            "no word for a system turn",
        ),
        (build_vote(**{**fields_of(compare()), "prompt": Prompt(text="x")}), "bare text"),
        # Both answers begin with the same two turns, which a reader takes for the prompt's.
        (build_vote(**{**fields_of(compare()), "completions": LONG_ANSWERS}), "divided otherwise"),
    ],
)
def test_hh_refuses_what_would_come_back_otherwise(store: VoteStore, tmp_path: Path, vote: Vote, reason: str) -> None:
    store.add([compare("fine"), vote])
    with pytest.raises(DataError, match=reason) as caught:
        export_file(store, tmp_path / "x.jsonl", "hh")
    assert vote.id in str(caught.value)
    assert caught.value.mend is not None
    assert [path.name for path in tmp_path.iterdir() if "jsonl" in path.name] == []


def test_what_hh_and_trl_have_no_words_for_is_counted(store: VoteStore, tmp_path: Path) -> None:
    def rated(kind: str, **judgement: object) -> Vote:
        return build_vote(
            kind=kind,
            prompt=Prompt.from_user("q"),
            completions=(Completion.from_text("x"),),
            annotator="ann",
            **judgement,
        )

    cut = build_vote(
        kind="comparison",
        prompt=Prompt.from_user("q"),
        completions=(Completion.from_text("x", finished=False), Completion.from_text("y")),
        annotator="ann",
        choice="a",
    )
    old = compare("changed")
    new = compare("changed", choice="b", supersedes=old.id)
    ties = [compare("t", choice="tie"), compare("u", choice="tie"), compare("v", choice="both_bad")]
    store.add([cut, old, new, *ties, rated("rating", rating=0.5), rated("flag", flag="rude")])
    for format in ("hh", "trl"):
        result = export_file(store, tmp_path / format, format)
        assert result.written == 1
        assert result.left_out == {"tie": 2, "both_bad": 1, "unfinished": 1, "rating": 1, "flag": 1}
    (row,) = [json.loads(line) for line in (tmp_path / "hh").read_text().splitlines()]
    assert row["chosen"].endswith("no")


def test_the_published_files_come_back(store: VoteStore, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "hh" / "helpful-online.jsonl.gz"
    import_file(store, source, skip_bad=True, rejects=tmp_path / "rejects")
    export_file(store, tmp_path / "again.jsonl.gz", "hh")
    assert import_file(store, tmp_path / "again.jsonl.gz").added == 0


def test_an_export_never_leaves_half_a_file_or_takes_a_folder_away(store: VoteStore, tmp_path: Path) -> None:
    store.add([compare()])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("chapter one")
    for format in ("votes", "dataset"):
        with pytest.raises(DataError):
            export_file(store, tmp_path / "mine", format)
    assert (tmp_path / "mine" / "novel.txt").read_text() == "chapter one"
    with pytest.raises(ConfigError, match="unknown format"):
        export_file(store, tmp_path / "x", "csv")


@pytest.mark.parametrize("format", ["hh", "trl", "votes", "parquet", "dataset"])
def test_an_empty_store_gives_an_empty_file(store: VoteStore, tmp_path: Path, format: str) -> None:
    export_file(store, tmp_path / "x", format)
    assert import_file(store, tmp_path / "x", format="votes").read == 0
