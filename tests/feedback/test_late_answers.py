"""Who comes late, and who comes back: no item beyond its overlap, nothing lost, a pair asked anew of others first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accord.feedback.database import Database
from accord.feedback.people import People
from accord.feedback.store import VoteStore
from tests.feedback.labelling import ALONE, NOON, later, new_id, open_queue, pair, vote


def test_votes_and_live_leases_never_exceed_the_overlap(database: Database) -> None:
    queue = open_queue(database, "ann", "bob", "cyd", "dee")
    queue.add_items([pair(overlap=2)], round=1, seed=0)
    (ann,), (bob,) = queue.lease("ann", 1, now=NOON), queue.lease("bob", 1, now=NOON)
    assert queue.lease("cyd", 1, now=NOON) == []
    vote(queue, "ann", ann)
    assert queue.lease("cyd", 1, now=later(29)) == []
    (cyd,) = queue.lease("cyd", 1, now=later(31))  # bob's time is up
    assert queue.renew("bob", [bob.lease_id], now=later(32)) == []
    assert queue.lease("dee", 1, now=later(32)) == []
    receipt = vote(queue, "bob", bob, now=later(33))  # kept all the same
    assert (receipt.late, receipt.surplus) == (True, True)
    assert not vote(queue, "cyd", cyd, now=later(34)).surplus
    progress = queue.progress(round=1, now=later(35))
    assert (progress.wanted, progress.cast, progress.missing, progress.leased) == (2, 2, 0, 0)
    assert progress.complete
    assert progress.surplus == 1
    assert VoteStore(database).count() == 3, "kept"
    assert {one.annotator for one in queue.votes(1)} == {"ann", "cyd"}, "and no more for the loop than were asked for"
    queue.flag("bob", bob.lease_id, new_id(), 0, "rude", now=later(36))
    assert {(one.annotator, one.kind) for one in queue.votes(1)} >= {("bob", "flag")}


@pytest.mark.parametrize("way", ["expires", "is released", "is skipped", "is paused", "is undone and skipped"])
def test_a_surplus_answer_takes_the_place_that_becomes_free(database: Database, way: str) -> None:
    queue = open_queue(database, "ann", "bob", "cyd")
    queue.add_items([pair()], round=1, seed=0, overlap=ALONE)
    (ann,) = queue.lease("ann", 1, now=NOON)
    (bob,) = queue.lease("bob", 1, now=later(31))
    assert vote(queue, "ann", ann, now=later(32)).surplus
    assert queue.progress(round=1, now=later(33)).missing == 1
    if way == "is released":
        queue.release("bob", [bob.lease_id], now=later(33))
    elif way == "is skipped":
        queue.skip("bob", bob.lease_id, new_id(), "too hard", now=later(33))
    elif way == "is paused":
        People(database).pause("bob", actor="ann")
    elif way == "is undone and skipped":
        receipt = vote(queue, "bob", bob, now=later(33))
        assert {one.annotator for one in queue.votes(1)} == {"bob"}
        queue.undo("bob", receipt.client_id, new_id(), now=later(33))
        assert [item.lease_id for item in queue.held("bob", now=later(34))] == [bob.lease_id], "the place stays his"
        queue.skip("bob", bob.lease_id, new_id(), "too hard", now=later(34))
    assert queue.lease("cyd", 1, now=later(70)) == [], "ann's vote counts now, so nobody else is asked"
    progress = queue.progress(round=1, now=later(70))
    assert (progress.cast, progress.missing, progress.surplus) == (1, 0, 0)
    assert [one.annotator for one in queue.votes(1)] == ["ann"]


def test_a_late_answer_takes_the_place_that_is_still_free(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(0), pair(1)], round=1, seed=0, overlap=ALONE)
    one, other = queue.lease("ann", 2, now=NOON)
    receipt = vote(queue, "ann", one, now=later(40))  # nobody has taken the lapsed lease back yet
    assert (receipt.late, receipt.surplus) == (True, False)
    assert queue.release("ann", [other.lease_id], now=later(40)) == 1
    receipt = vote(queue, "ann", other, now=later(41))
    assert (receipt.late, receipt.surplus) == (True, False)
    assert queue.lease("bob", 2, now=later(42)) == []


def test_a_pair_of_an_earlier_round_is_asked_of_others_first(database: Database) -> None:
    queue = open_queue(database, "ann", "bob")
    queue.add_items([pair(1)], round=1, seed=0, overlap=ALONE)
    vote(queue, "ann", queue.lease("ann", 9)[0])
    swapped = replace(pair(1), completions=pair(1).completions[::-1], arm="conflict")
    known = pair("known", gold={"choice": "a"})
    queue.add_items([swapped, pair(2), pair(3), known], round=2, seed=0, overlap=ALONE)
    mine = queue.lease("ann", 9)
    assert {item.prompt.id for item in mine} == {one.prompt.id for one in (pair(2), pair(3), known)}
    assert queue.lease("ann", 9) == [], "as long as she has others in hand, a colleague may take it"
    for item in mine:
        vote(queue, "ann", item)
    assert [item.prompt.id for item in queue.lease("bob", 1)] == [swapped.prompt.id]
    queue.release("bob", [item.lease_id for item in queue.held("bob")])
    (again,) = queue.lease("ann", 9)
    assert again.prompt.id == swapped.prompt.id, "at last she is asked again: nobody else was there"
    queue.add_items([known], round=3, seed=0)
    vote(queue, "ann", again)
    assert len(queue.lease("ann", 9)) == 1, "a known answer is asked anew in each round"
