"""The queue on SQLite and on a real PostgreSQL: who gets what, what is kept, what is refused."""

import json
import random
from dataclasses import replace

import pytest

from accord.errors import ConflictError, DataError, NotFoundError, RefusedError
from accord.feedback.answering import Answer
from accord.feedback.database import Database
from accord.feedback.demonstrations import read_demonstrations
from accord.feedback.items import NewItem, Overlap, compute_item_id
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.store import VoteStore
from accord.types import Completion, Prompt
from tests.feedback.labelling import ALONE, NOON, later, new_id, open_queue, pair, side_of, vote


def test_a_person_gets_each_item_once_until_none_is_left(database: Database) -> None:
    queue = open_queue(database)
    assert queue.add_items([pair(i) for i in range(7)], round=1, seed=0, overlap=ALONE) == 7
    assert queue.add_items([pair(i) for i in range(8)], round=1, seed=0, overlap=ALONE) == 1
    first, rest = queue.lease("ann", 3, now=NOON), queue.lease("ann", 100, now=NOON)
    assert len(first) == 3
    assert len(rest) == 5
    assert {item.prompt for item in first + rest} == {pair(i).prompt for i in range(8)}
    assert queue.lease("ann", 1, now=NOON) == queue.lease("bob", 1, now=NOON) == []
    assert queue.held("ann", now=NOON) == sorted(first + rest, key=lambda item: queue.held("ann", now=NOON).index(item))


def test_nothing_shown_tells_where_a_completion_came_from(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(gold={"choice": "a"}, arm="uncertain")], round=1, seed=0)
    (item,) = queue.lease("ann", 1)
    shown = json.dumps(item.to_dict())
    assert not [
        word for word in ("model", "origin", "gold", "uncertain", "arm", "repeat") if word in shown.replace("good", "")
    ]
    assert [completion.origin for completion in item.completions] == ["", ""]


def test_the_order_is_a_fair_coin_and_stays_with_its_lease(database: Database) -> None:
    people = open_queue(database)
    queue = Queue(database, stream=random.Random(5))
    queue.add_items([pair(i) for i in range(100)], round=1, seed=0, overlap=ALONE)
    items = queue.lease("ann", 100, now=NOON)
    first = sum(side_of(item, "good") == "a" for item in items)
    assert 30 < first < 70  # 100 tosses: outside with a chance of 3e-5
    assert {i.lease_id: i.completions for i in queue.held("ann", now=NOON)} == {
        i.lease_id: i.completions for i in items
    }
    again = {item.lease_id: item.completions for item in people.lease("ann", 100, now=later(31))}
    assert again == {item.lease_id: item.completions for item in items}


def test_a_vote_is_stored_as_shown_with_all_that_belongs_to_it(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(arm="uncertain", propensity=0.25)], round=3, seed=0, overlap=ALONE)
    (item,) = queue.lease("ann", 1, now=NOON)
    receipt = vote(queue, "ann", item, "b", strength=6, seconds=4.5, guideline_version="2", now=later(1))
    (stored,) = VoteStore(database).votes()
    assert (stored.choice, stored.strength, stored.guideline_version) == ("b", 6, "2")
    assert (stored.id, stored.annotator, stored.source) == (receipt.vote_id, "ann", "web")
    assert stored.created_at == "2026-01-31T12:01:00.000000Z"
    assert [c.text for c in stored.completions] == [c.text for c in item.completions]
    assert {c.text: c.origin for c in stored.completions} == {"0 good": "model good", "0 bad": "model bad"}
    with database.read() as connection:
        (row,) = connection.exec_driver_sql("SELECT arm, propensity, seconds FROM answers").all()
    assert tuple(row) == ("uncertain", 0.25, 4.5)
    assert list(queue.votes(3)) == [stored]
    assert list(queue.votes(1)) == []


def test_sending_twice_stores_once(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(0), pair(1)], round=1, seed=0, overlap=ALONE)
    one, other = queue.lease("ann", 2)
    answer = Answer(new_id(), "ann", one.lease_id, choice="a", ranks=None, seconds=1.0)
    first, second = queue.submit(answer), queue.submit(answer)
    assert (first.repeated, second.repeated) == (False, True)
    assert replace(second, repeated=False) == first
    for changed in (
        replace(answer, choice="b"),
        replace(answer, lease_id=other.lease_id),
        replace(answer, seconds=2.0),
    ):
        with pytest.raises(ConflictError, match="something else"):
            queue.submit(changed)
    with pytest.raises(ConflictError, match="something else"):
        queue.skip("ann", other.lease_id, answer.client_id, "why")
    skip = new_id()
    assert [queue.skip("ann", other.lease_id, skip, "why").repeated for _ in range(2)] == [False, True]
    assert VoteStore(database).count() == 1


@pytest.mark.parametrize("client_id", ["", "7", "not-a-uuid", "{12345678-1234-5678-1234-567812345678}", 7])
def test_an_id_is_a_uuid(database: Database, client_id: str) -> None:
    queue = open_queue(database)
    queue.add_items([pair()], round=1, seed=0)
    (item,) = queue.lease("ann", 1)
    with pytest.raises(DataError, match="not a UUID"):
        queue.submit(Answer(client_id, "ann", item.lease_id, choice="a"))


def test_renewing_and_releasing(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(i) for i in range(3)], round=1, seed=0, overlap=ALONE)
    items = queue.lease("ann", 3, now=NOON)
    ids = [item.lease_id for item in items]
    assert queue.renew("ann", ids[:2], now=later(20)) == ids[:2]
    assert [item.lease_id for item in queue.lease("ann", 3, now=later(40))] == ids[2:]
    assert queue.renew("bob", ids, now=later(41)) == []
    assert queue.release("bob", ids) == 0
    assert queue.release("ann", ids[:1], now=later(41)) == 1
    assert [item.prompt for item in queue.lease("bob", 3, now=later(42))] == [items[0].prompt]


def test_a_page_gives_back_only_what_it_still_holds(database: Database) -> None:
    """A reload: the old page's goodbye, and a request of its own, come after the new page's lease."""
    queue = open_queue(database)
    queue.add_items([pair(i) for i in range(3)], round=1, seed=0, overlap=ALONE)
    ids = [item.lease_id for item in queue.lease("ann", 2, now=NOON, holder="old page")]
    assert queue.renew("ann", ids[:1], now=later(1), holder="new page") == ids[:1]
    assert queue.release("ann", ids, now=later(2), holder="old page") == 1
    assert queue.renew("ann", ids, now=later(3), holder="old page") == []
    assert queue.lease("ann", 3, now=later(3), holder="old page") == []
    assert [item.lease_id for item in queue.held("ann", now=later(4))] == ids[:1]
    assert len(queue.lease("bob", 3, now=later(4), holder="his page")) == 2
    assert queue.release("ann", ids, now=later(5)) == 1  # without a name, whatever is ann's


def test_a_change_of_mind_and_undo_are_a_chain(database: Database) -> None:
    queue, store = open_queue(database), VoteStore(database)
    queue.add_items([pair()], round=1, seed=0, overlap=ALONE)
    (item,) = queue.lease("ann", 1, now=NOON)
    first = vote(queue, "ann", item, "a", now=later(1))
    second = vote(queue, "ann", item, "b", now=later(2))
    with pytest.raises(ConflictError, match="changed already"):
        queue.undo("ann", first.client_id, new_id())
    undo = new_id()
    undone = queue.undo("ann", second.client_id, undo, now=later(3))
    assert undone.item is not None
    assert undone.item.completions == item.completions
    assert list(store.votes()) == list(queue.votes(1)) == []
    assert store.count(current=True) == queue.done_by("ann") == queue.progress(round=1).cast == 0
    again = queue.undo("ann", second.client_id, undo, now=later(4))
    assert again.receipt.repeated
    assert again.item == undone.item
    with pytest.raises(ConflictError, match="undone"):
        queue.undo("ann", second.client_id, new_id())
    assert queue.lease("bob", 1, now=later(5)) == []  # it is ann's again
    third = vote(queue, "ann", item, "tie", now=later(6))
    assert [v.id for v in store.votes()] == [third.vote_id]
    assert [v.kind for v in store.votes(current=False)] == ["comparison", "comparison", "withdrawal", "comparison"]
    assert queue.progress(round=1).cast == 1


def test_skipping_leaves_the_item_to_others(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair()], round=1, seed=0, overlap=ALONE)
    (item,) = queue.lease("ann", 1)
    receipt = queue.skip("ann", item.lease_id, new_id(), "not my language")
    assert queue.lease("ann", 1) == []
    (bobs,) = queue.lease("bob", 1)
    assert queue.undo("ann", receipt.client_id, new_id()).item is not None  # to see it again; the place is bob's
    assert queue.release("bob", [bobs.lease_id]) == 1
    assert queue.renew("ann", [item.lease_id]) == [item.lease_id]
    assert queue.lease("bob", 1) == []
    queue.skip("ann", item.lease_id, new_id(), "still not")
    (bobs,) = queue.lease("bob", 1)
    queue.skip("bob", bobs.lease_id, new_id(), "nor mine")
    progress = queue.progress(round=1)
    assert (progress.missing, progress.unreachable, progress.skipped, progress.complete) == (1, 1, 2, True)
    vote(queue, "bob", bobs)
    assert queue.progress(round=1).missing == 0
    with pytest.raises(ConflictError, match="answered already"):
        queue.skip("bob", bobs.lease_id, new_id(), "after all")


def test_a_flag_is_a_vote_beside_the_answer(database: Database) -> None:
    queue, store = open_queue(database), VoteStore(database)
    queue.add_items([pair()], round=1, seed=0, overlap=ALONE)
    (item,) = queue.lease("ann", 1)
    flag = queue.flag("ann", item.lease_id, new_id(), 1, "dangerous advice")
    (stored,) = store.votes("flag")
    assert (stored.flag, stored.completions[0].text) == ("dangerous advice", item.completions[1].text)
    assert queue.held("ann") == [item]
    vote(queue, "ann", item)
    assert queue.undo("ann", flag.client_id, new_id()).item is None
    assert list(store.votes("flag")) == []
    assert queue.progress(round=1).cast == 1
    with pytest.raises(ConflictError):
        queue.undo("ann", flag.client_id, new_id())
    for place in (2, -1, True):
        with pytest.raises(DataError, match="no completion at place"):
            queue.flag("ann", item.lease_id, new_id(), place, "bad")


def test_an_edit_is_a_demonstration_as_long_as_its_vote_stands(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair()], round=1, seed=0, overlap=ALONE)
    (item,) = queue.lease("ann", 1)
    receipt = vote(queue, "ann", item, edit="what it should have said", edit_place=1)
    (shown,) = read_demonstrations(database)
    assert (shown.prompt, shown.completion.text) == (item.prompt, "what it should have said")
    assert (shown.annotator, shown.completion.origin) == ("ann", "person:ann")
    assert shown.edited_from == item.completions[1].id
    queue.undo("ann", receipt.client_id, new_id())
    assert list(read_demonstrations(database)) == []
    for wrong in ({"edit": "x"}, {"edit_place": 0}, {"edit": " ", "edit_place": 0}, {"edit": "x", "edit_place": 2}):
        with pytest.raises(DataError):
            vote(queue, "ann", item, **wrong)


def test_rankings_and_ratings(database: Database) -> None:
    queue, store = open_queue(database), VoteStore(database)
    texts = [Completion.from_text(text) for text in ("one", "two", "three")]
    prompt = Prompt.from_user("count")
    ranking, rating = NewItem("ranking", prompt, tuple(texts)), NewItem("rating", prompt, (texts[0],))
    queue.add_items([ranking, rating], round=1, seed=0, overlap=ALONE)
    items = {item.kind: item for item in queue.lease("ann", 2)}
    for item, wrong in (
        (items["ranking"], {"choice": "a"}),
        (items["ranking"], {"choice": None, "ranks": (1, 2)}),
        (items["ranking"], {"choice": None, "ranks": (1, 2, 3), "strength": 3}),
        (items["rating"], {"choice": None, "rating": 1.5}),
        (items["rating"], {"choice": None}),
        (items["rating"], {"choice": "a", "rating": 0.5}),
        (items["rating"], {"choice": None, "rating": 0.5, "seconds": -1.0}),
        (items["rating"], {"choice": None, "rating": 0.5, "seconds": float("nan")}),
    ):
        with pytest.raises(DataError):
            vote(queue, "ann", item, **wrong)
    vote(queue, "ann", items["ranking"], None, ranks=(2, 1, 2))
    vote(queue, "ann", items["rating"], None, rating=0.25)
    stored = {v.kind: v for v in store.votes()}
    assert stored["ranking"].ranks == (2, 1, 2)
    assert stored["ranking"].completions[1].text == items["ranking"].completions[1].text
    assert stored["rating"].rating == 0.25


def test_a_tenth_is_asked_three_times_by_a_draw_from_the_seed(database: Database) -> None:
    def draw(seed: int, round: int) -> dict[str, int]:
        queue.add_items([pair(i) for i in range(100)], round=round, seed=seed)
        with database.read() as connection:
            query = f"SELECT prompt_id, overlap FROM items WHERE round = {round}"
            return dict(connection.exec_driver_sql(query).tuples().all())

    queue = open_queue(database)
    first, again, other = draw(7, 1), draw(7, 1), draw(8, 2)
    assert sorted(first.values()) == [1] * 90 + [3] * 10
    assert first == again != other
    queue.add_items([pair(i) for i in range(10)], round=3, seed=0, overlap=Overlap(0.5, 4, 2))
    assert queue.progress(round=3).wanted == 5 * 4 + 5 * 2
    for wrong in ((1.1, 3, 1), (0.1, 1, 2), (0.1, 3, 0)):
        with pytest.raises(DataError, match="impossible"):
            Overlap(*wrong)


def test_everybody_meets_the_known_answers_and_nothing_waits_for_them(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair("known", gold={"choice": "a"}), pair()], round=1, seed=0, overlap=ALONE)
    assert len(queue.lease("ann", 5)) == 2
    (item,) = queue.lease("bob", 5)
    vote(queue, "bob", item)
    progress = queue.progress(round=1)
    assert (progress.items, progress.wanted, progress.checks) == (1, 1, 1)


def test_a_repeat_is_for_those_who_have_answered(database: Database) -> None:
    queue = open_queue(database)
    assert queue.add_items([pair(i) for i in range(10)], round=1, seed=0, overlap=ALONE, repeat_share=0.2) == 10
    items = queue.lease("ann", 100, now=NOON)
    assert len(items) == 10
    for item in items:
        vote(queue, "ann", item)
    assert queue.progress(round=1).complete
    assert queue.lease("bob", 100) == []
    repeats = queue.lease("ann", 100)
    assert len({item.prompt for item in repeats}) == len(repeats) == 2
    vote(queue, "ann", repeats[0])
    assert len(list(queue.votes(1))) == 10
    with pytest.raises(NotFoundError, match="to repeat"):
        queue.add_items([pair(repeat_of="0" * 16)], round=1, seed=0)


def test_rounds_are_apart_and_close(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(1)], round=1, seed=0, overlap=ALONE)
    queue.add_items([pair(1), pair(2)], round=2, seed=0, overlap=ALONE)
    assert compute_item_id(pair(1), 1) != compute_item_id(pair(1), 2)
    (item,) = queue.lease("ann", 9, round=1)
    assert queue.close_round(1, "ann") == 1
    assert queue.progress(round=1).missing == 0
    queue.release("ann", [item.lease_id])
    assert queue.lease("bob", 9, round=1) == []
    assert vote(queue, "ann", item).surplus  # kept: it was made
    assert queue.close_round(2, "ann") == 2
    assert queue.lease("bob", 9) == []
    assert queue.reopen_round(2, "ann") == 2
    assert len(queue.lease("bob", 9)) == 2


def test_an_annotators_own_prompt_is_theirs_at_once(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(1)], round=0, seed=0)
    item = queue.open_chat("ann", pair("my own"), now=NOON)
    assert queue.open_chat("ann", pair("my own"), now=NOON) == item
    assert item.prompt == pair("my own").prompt
    assert [held.lease_id for held in queue.held("ann", now=NOON)] == [item.lease_id]
    vote(queue, "ann", item)
    with pytest.raises(ConflictError, match="judged already"):
        queue.open_chat("ann", pair("my own"))


def test_what_is_not_ones_own_is_refused(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(i) for i in range(2)], round=1, seed=0, overlap=ALONE)
    one, _ = queue.lease("ann", 2)
    receipt = vote(queue, "ann", one)
    with pytest.raises(RefusedError, match="somebody else"):
        vote(queue, "bob", one)
    with pytest.raises(RefusedError, match="somebody else"):
        queue.undo("bob", receipt.client_id, new_id())
    with pytest.raises(NotFoundError, match="no lease"):
        vote(queue, "ann", replace(one, lease_id="nothing"))
    with pytest.raises(NotFoundError, match="no action"):
        queue.undo("ann", new_id(), new_id())
    with pytest.raises(NotFoundError, match="no annotator"):
        queue.lease("stranger", 1)


def test_a_paused_person_gets_nothing_but_what_they_made_is_kept(database: Database) -> None:
    queue, people = open_queue(database), People(database)
    queue.add_items([pair(i) for i in range(2)], round=1, seed=0, overlap=ALONE)
    (item,) = queue.lease("bob", 1)
    people.pause("bob", actor="ann")
    assert len(queue.lease("ann", 9)) == 2  # what bob held is free
    with pytest.raises(RefusedError, match="paused"):
        queue.lease("bob", 1)
    assert vote(queue, "bob", item).surplus
    people.resume("bob", actor="ann")
    assert queue.lease("bob", 1) == []
    people.delete("bob", actor="ann")
    with pytest.raises(RefusedError, match="deleted"):
        queue.skip("bob", item.lease_id, new_id(), "x")
    assert VoteStore(database).annotators() == {"bob": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"completions": (Completion.from_text("x"),)},
        {"completions": (Completion.from_text("x"), Completion.from_text("x"))},
        {"completions": (Completion.from_text("x"), Completion.from_text(" "))},
        {"overlap": 0},
        {"propensity": 0.0},
        {"gold": {"choice": "c"}},
        {"gold": {"ranks": [1, 2]}},
    ],
)
def test_an_impossible_item_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DataError):
        replace(pair(), **fields)  # type: ignore[arg-type]
