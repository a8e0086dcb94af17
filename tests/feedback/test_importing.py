"""Files in: each format to the vote it means, each bad row named, all or nothing, twice adds nothing."""

import base64
import gzip
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accord.errors import AccordError, ConfigError, DataError
from accord.feedback.importing import BadRowsError, detect_format, import_file
from accord.feedback.records import vote_to_dict
from accord.feedback.store import VoteStore
from accord.types import Message, Vote
from tests.feedback.vote_strategies import compare

U, A = "\n\nHuman:", "\n\nAssistant:"
HH = {"chosen": f"{U} Hi{A} Hello.{U} How?{A} Well.", "rejected": f"{U} Hi{A} Hello.{U} How?{A} Badly."}
USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Red."))
)


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def only(store: VoteStore) -> Vote:
    (vote,) = store.votes()
    return vote


def turns(messages: tuple[Message, ...]) -> list[str]:
    return [f"{m.role}: {m.content}" for m in messages]


def preferred(vote: Vote) -> tuple[list[str], list[str]]:
    """Turns of the chosen and of the rejected completion."""
    a, b = vote.completions if vote.choice == "a" else reversed(vote.completions)
    return turns(a.messages), turns(b.messages)


def test_hh_shares_a_prompt_and_keeps_every_turn(store: VoteStore, tmp_path: Path) -> None:
    result = import_file(store, write(tmp_path / "hh.jsonl", HH))
    assert (result.format, result.read, result.added) == ("hh", 1, 1)
    vote = only(store)
    assert turns(vote.prompt.messages) == ["user: Hi", "assistant: Hello.", "user: How?"]
    assert preferred(vote) == (["assistant: Well."], ["assistant: Badly."])
    assert (vote.annotator, vote.source, vote.created_at) == ("imported", "hh.jsonl", "")


def test_hh_chats_that_part_earlier_stay_whole(store: VoteStore, tmp_path: Path) -> None:
    row = {"chosen": f"{U} Hi{A} Hello.{U} One?{A} 1", "rejected": f"{U} Hi{A} Hello.{U} Two?{A} 2{U} Hm{A} 3"}
    import_file(store, write(tmp_path / "hh.jsonl", row))
    vote = only(store)
    assert turns(vote.prompt.messages) == ["user: Hi"]
    assert preferred(vote) == (
        ["assistant: Hello.", "user: One?", "assistant: 1"],
        ["assistant: Hello.", "user: Two?", "assistant: 2", "user: Hm", "assistant: 3"],
    )


def test_hh_one_chat_that_goes_on_where_the_other_ends(store: VoteStore, tmp_path: Path) -> None:
    row = {"chosen": f"{U} Hi{A} Hello.", "rejected": f"{U} Hi{A} Hello.{U} And?{A} So."}
    import_file(store, write(tmp_path / "hh.jsonl", row))
    assert preferred(only(store)) == (["assistant: Hello."], ["assistant: Hello.", "user: And?", "assistant: So."])


TRL_ROWS = {
    "standard, explicit": ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", " blue."),
    "standard, implicit": ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", " blue."),
    "standard, cut between words": ({"chosen": "It is great", "rejected": "It is green"}, "It is", " great"),
    "conversational, explicit": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, ["user: Sky?"], "Blue."),
    "conversational, implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, ["user: Sky?"], "Blue."),
    "text prompt, whole chats": (
        {"prompt": "Sky?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        ["user: Sky?"],
        "Blue.",
    ),
    "prompt repeated": ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ["user: Sky?"], "Blue."),
}


@pytest.mark.parametrize("name", TRL_ROWS)
def test_trl_rows(store: VoteStore, tmp_path: Path, name: str) -> None:
    row, prompt, chosen = TRL_ROWS[name]
    assert import_file(store, write(tmp_path / "t.jsonl", row)).format == "trl"
    vote = only(store)
    assert (vote.prompt.text if vote.prompt.text is not None else turns(vote.prompt.messages)) == prompt
    assert preferred(vote)[0] == [f"assistant: {chosen}"]


def test_pandalm_rows_are_three_people(store: VoteStore, tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 + 1", "response1": "2", "response2": "3", "cmp_key": "m_n"}
    import_file(store, write(tmp_path / "p.jsonl", {**row, "annotator1": 1, "annotator2": 0, "annotator3": 2}))
    votes = {vote.annotator: vote for vote in store.votes()}
    assert {name: vote.choice for name, vote in votes.items()} == {
        "pandalm-1": "a",
        "pandalm-2": "tie",
        "pandalm-3": "b",
    }
    vote = votes["pandalm-1"]
    assert turns(vote.prompt.messages) == ["user: Add.\n\n1 + 1"]
    assert [(c.text, c.origin) for c in vote.completions] == [("2", "m"), ("3", "n")]


def test_oasst_trees_are_rankings_of_whole_conversations(store: VoteStore, tmp_path: Path) -> None:
    def node(role: str, text: str, rank: int | None = None, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}

    deeper = node("prompter", "More?", 0, node("assistant", "x", 1), node("assistant", "y", 0))
    tree = node(
        "prompter",
        "Hi",
        None,
        node("assistant", "best", 0, deeper, node("prompter", "Other?", 1)),
        node("assistant", "gone", 1, deleted=True),
        node("assistant", "worst", 2),
        node("assistant", "unranked"),
    )
    assert import_file(store, write(tmp_path / "o.jsonl", {"message_tree_id": "t", "prompt": tree})).format == "oasst"
    votes = {
        tuple(turns(v.prompt.messages)): {c.text: r for c, r in zip(v.completions, v.ranks or ())}
        for v in store.votes()
    }
    assert votes == {
        ("user: Hi",): {"best": 1, "worst": 3},
        ("user: Hi", "assistant: best", "user: More?"): {"x": 2, "y": 1},
    }


def test_a_vote_without_an_id_is_named_by_its_content(store: VoteStore, tmp_path: Path) -> None:
    row = {"kind": "rating", "prompt": [USER], "completions": ["Blue."], "annotator": "ann", "rating": 0.5}
    later = {**row, "created_at": "2026-01-31T13:00:00+01:00"}
    import_file(store, write(tmp_path / "a.jsonl", row, later, row))
    assert import_file(store, write(tmp_path / "b.jsonl", row, later)).added == 0
    assert [vote.created_at for vote in store.votes()] == ["", "2026-01-31T12:00:00Z"]


VOTE = {"kind": "comparison", "prompt": [USER], "completions": ["Blue.", "Red."], "annotator": "ann", "choice": "a"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "broken": (b'{"chosen": ', "broken JSON"),
    "latin": ('{"chosen": "é"}'.encode("latin-1"), "not UTF-8"),
    "no object": (b"[1]", "not an object"),
    "NaN": (b'{"rating": NaN}', "NaN is not a number"),
    "infinity": (b'{"rating": 1e999}', "too large a number"),
    "digits": (b'{"rating": ' + b"9" * 5000 + b"}", "digits"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "missing": ({"chosen": HH["chosen"]}, "'rejected' is missing"),
    "identical": ({"chosen": HH["chosen"], "rejected": HH["chosen"]}, "identical"),
    "empty": ({"chosen": f"{U} Hi{A} ", "rejected": f"{U} Hi{A} Hm"}, "empty"),
    "type": ({"chosen": 3, "rejected": "x"}, "not a text"),
    "no assistant": ({"chosen": f"{U} Hi{A} a{U} b", "rejected": f"{U} Hi{A} c"}, "does not end with the assistant"),
    "no shared turn": ({"chosen": f"{U} Hi{A} a", "rejected": f"{U} Ho{A} b"}, "share no beginning"),
    "surrogate": (b'{"chosen": "\\ud800", "rejected": "x", "prompt": "p"}', "surrogate"),
    "unknown field": ({**VOTE, "strenght": 3}, "unknown field 'strenght'"),
    "no judgement": ({**VOTE, "choice": None}, "lacks its judgement"),
    "strength": ({**VOTE, "strength": 8}, "outside 1 to 7"),
    "boolean strength": ({**VOTE, "strength": True}, "not a whole number"),
    "rating": ({**VOTE, "kind": "rating", "completions": ["x"], "rating": 1.5}, "outside [0, 1]"),
    "local time": ({**VOTE, "created_at": "2026-01-31T12:00:00"}, "offset"),
    "same answers": ({**VOTE, "completions": ["x", "x"]}, "identical"),
    "role": ({**VOTE, "prompt": [{"role": "wizard", "content": "x"}]}, "unknown role"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_nothing_is_imported(store: VoteStore, tmp_path: Path, name: str) -> None:
    row, reason = BAD_ROWS[name]
    good = VOTE if isinstance(row, dict) and "kind" in row else HH
    path = write(tmp_path / "mixed.jsonl", good, row)
    with pytest.raises(BadRowsError) as caught:
        import_file(store, path)
    assert f"{path}:2" in str(caught.value)
    assert reason in caught.value.bad_rows[0].reason
    assert store.count() == 0
    assert store.imports() == []
    result = import_file(store, path, skip_bad=True)
    assert (result.read, result.added, result.rejected) == (2, 1, 1)
    assert result.rejects == tmp_path / "mixed.jsonl.rejected.jsonl"
    kept = json.loads(result.rejects.read_text())
    raw = base64.b64decode(kept["raw_base64"]) if "raw_base64" in kept else kept["raw"].encode()
    assert raw == path.read_bytes().split(b"\n")[1]
    assert (kept["line"], kept["reason"]) == (2, result.bad_rows[0].reason)


@pytest.mark.parametrize("compress", [False, True])
def test_a_line_too_long_is_refused_and_kept_without_filling_memory(
    store: VoteStore, tmp_path: Path, compress: bool
) -> None:
    long = b'{"chosen": "' + b"x\xc3\xa9" * 20_000_000 + b'"}'
    path = tmp_path / ("long.jsonl.gz" if compress else "long.jsonl")
    with gzip.open(path, "wb", compresslevel=1) if compress else path.open("wb") as stream:
        stream.write(
            json.dumps(HH).encode() + b"\n" + long + b"\n" + json.dumps(HH).encode().replace(b"Hi", b"Ho") + b"\n"
        )
    result = import_file(store, path, skip_bad=True)
    assert (result.read, result.added, result.rejected) == (3, 2, 1)
    assert "60000014 bytes, more than 50000000" in result.bad_rows[0].reason
    assert len(result.bad_rows[0].raw) == 1000
    assert result.rejects is not None
    assert base64.b64decode(json.loads(result.rejects.read_text())["raw_base64"]) == long


def test_a_limit_of_its_own(store: VoteStore, tmp_path: Path) -> None:
    path = write(tmp_path / "hh.jsonl", HH)
    length = len(path.read_bytes()) - 1
    import_file(store, path, max_line_bytes=length)
    with pytest.raises(BadRowsError, match=f"more than {length - 1}"):
        import_file(store, path, format="hh", max_line_bytes=length - 1)


def test_importing_twice_adds_nothing(store: VoteStore, tmp_path: Path) -> None:
    path = write(tmp_path / "hh.jsonl", HH, HH)
    first, second = import_file(store, path), import_file(store, path)
    assert (first.added, first.duplicates) == (1, 1)
    assert (second.added, second.duplicates) == (0, 2)
    path.rename(tmp_path / "renamed.jsonl")
    assert import_file(store, tmp_path / "renamed.jsonl").added == 0
    assert [record.file for record in store.imports()] == ["hh.jsonl", "hh.jsonl", "renamed.jsonl"]


def test_blank_lines_a_bom_and_windows_ends_are_no_rows(store: VoteStore, tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(HH).encode() + b"\r\n\r\n   \n")
    assert import_file(store, path).read == 1


def test_a_clash_with_the_store_is_told_with_the_file(store: VoteStore, tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", {**VOTE, "id": "x"}, {**VOTE, "id": "y", "supersedes": "gone"})
    with pytest.raises(DataError, match=r"v\.jsonl: vote y supersedes gone"):
        import_file(store, path)
    assert store.count() == 0


def test_damaged_and_missing_files(store: VoteStore, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"".join(json.dumps(HH).encode() + b"\n" for _ in range(100)))[:-20])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    (tmp_path / "empty").mkdir()
    empty = write(tmp_path / "empty.jsonl")
    unknown = write(tmp_path / "unknown.jsonl", {"text": "x"})
    for path, reason in (
        (cut, "damaged"),
        (broken, "cannot be read"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "empty", "holds no data"),
        (empty, "no rows"),
        (unknown, r"unknown\.jsonl:1: no format has rows with the fields 'text'"),
    ):
        with pytest.raises(DataError, match=reason):
            import_file(store, path)
    with pytest.raises(ConfigError, match="unknown format"):
        import_file(store, unknown, format="csv")
    assert store.count() == 0


def test_parquet_rows_and_a_text_that_is_not_utf8(store: VoteStore, tmp_path: Path) -> None:
    spoilt = pa.array([HH["chosen"].encode(), b"\xff" + HH["chosen"].encode()], pa.binary()).view(pa.string())
    table = pa.table({"chosen": spoilt, "rejected": [HH["rejected"]] * 2, "score": [float("nan"), None]})
    path = tmp_path / "hh.parquet"
    pq.write_table(table, path)
    with pytest.raises(BadRowsError, match=r"hh\.parquet:2: a text is not UTF-8"):
        import_file(store, path)
    result = import_file(store, path, skip_bad=True)
    assert (result.added, result.rejected) == (1, 1)
    assert result.rejects is not None
    raw = json.loads(result.rejects.read_text())["raw"].removeprefix("arrow-ipc-base64:")
    kept = pa.ipc.open_stream(base64.b64decode(raw)).read_all()
    assert kept["chosen"].cast(pa.binary()).to_pylist() == [b"\xff" + HH["chosen"].encode()]


def test_parquet_refuses_nan(store: VoteStore, tmp_path: Path) -> None:
    rows = [{"kind": "rating", "prompt": "p", "completions": ["c"], "annotator": "ann", "rating": float("nan")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    with pytest.raises(BadRowsError, match="not a finite number"):
        import_file(store, tmp_path / "v.parquet")


def test_dataset_folders(store: VoteStore, tmp_path: Path) -> None:
    import datasets

    rows = [{"prompt": f"p{i}", "chosen": "x", "rejected": "y"} for i in range(6)]
    parts = {name: datasets.Dataset.from_list(rows[k : k + 2]) for k, name in ((0, "train"), (2, "test"))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[4:]), tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    assert import_file(store, tmp_path / "dict").added == 4
    assert import_file(store, tmp_path / "hub").added == 2
    assert {vote.prompt.text for vote in store.votes()} == {f"p{i}" for i in range(6)}


def test_no_file_makes_memory_grow(tmp_path: Path) -> None:
    """The same rows, six times as many: the peak may differ by far less than what they weigh (about 22 MB)."""
    script = (
        "import sys, resource\n"
        "from accord.feedback.importing import import_file\n"
        "from accord.feedback.store import VoteStore\n"
        "import_file(VoteStore(sys.argv[1] + '.db'), sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for rows in (400, 2400):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as stream:
            for i in range(rows):
                stream.write(json.dumps({"prompt": f"{i}" * 3000, "chosen": f"x{i}", "rejected": f"y{i}"}) + "\n")
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script, path], env=environment, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) * 1024)
    grown = (tmp_path / "2400.jsonl").stat().st_size - (tmp_path / "400.jsonl").stat().st_size
    assert peaks[1] - peaks[0] < 0.5 * grown


KILLED = """
import sys
from accord.feedback.importing import import_file
from accord.feedback.store import VoteStore
import_file(VoteStore(sys.argv[1]), sys.argv[2])
"""


def test_a_killed_import_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as stream:
        for i in range(20_000):
            stream.write(json.dumps({"prompt": f"p{i}", "chosen": "x", "rejected": "y"}) + "\n")
    database = tmp_path / "feedback.db"
    VoteStore(database).close()
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, database, path], env=environment)
    log = tmp_path / "feedback.db-wal"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 500_000):
        time.sleep(0.01)  # until a good part of the transaction has reached the disk
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with VoteStore(database) as store:
        assert (store.count(), store.imports()) == (0, [])
        small = write(tmp_path / "small.jsonl", {"prompt": "p", "chosen": "x", "rejected": "y"})
        assert import_file(store, small).added == 1


def test_hh_sides_are_a_fair_coin_and_imports_match_the_files(store: VoteStore, shared_data: Path) -> None:
    counts = Counter[str | None]()
    for name, rows, bad in (("harmless-base", 1729, 3), ("helpful-online", 847, 3)):
        path = shared_data / "hh" / f"{name}.jsonl.gz"
        result = import_file(store, path, skip_bad=True, rejects=store.folder and store.folder / "r")
        assert (result.read, result.rejected, result.added) == (rows, bad, rows - bad)
    counts.update(vote.choice for vote in store.votes())
    total = counts["a"] + counts["b"]
    assert abs(counts["a"] - total / 2) < 3 * (total / 4) ** 0.5


def test_oasst_has_every_ranked_reply(store: VoteStore, shared_data: Path) -> None:
    import_file(store, shared_data / "oasst" / "en_100_tree.jsonl.gz")
    votes = list(store.votes("ranking"))
    assert len(votes) == 212
    assert sum(len(vote.completions) for vote in votes) == 641  # as the data's own account says
    # The same trees without their wrapper are the same votes.
    assert import_file(store, shared_data / "oasst" / "en_100_message.jsonl.gz").added == 0


def test_detection_reads_on_past_a_bad_first_row(tmp_path: Path) -> None:
    assert detect_format(write(tmp_path / "x.jsonl", b"{", vote_to_dict(compare()))) == "votes"


def test_errors_are_accords_own() -> None:
    assert issubclass(BadRowsError, AccordError)
