"""What votes are worth: planted annotators are told apart, and each number is one that can be worked out by hand."""

import json
import random

import numpy as np
import pandas as pd
import pytest

from accord.errors import ConflictError, DataError, NotFoundError, RefusedError
from accord.feedback.adjudication import Verdict, adjudicate
from accord.feedback.agreement import Agreement, Interval, build_agreement_table, compute_alpha
from accord.feedback.consensus import compute_consensus
from accord.feedback.database import Database, open_database
from accord.feedback.disagreements import list_disagreements
from accord.feedback.items import NewItem, Overlap
from accord.feedback.queue import Queue
from accord.feedback.store import VoteStore
from accord.feedback.worth import build_share, compute_worth, forecast
from accord.types import Completion, Prompt
from tests.feedback.labelling import NOON, later, new_id, open_queue, pair, side_of, vote

PLANTED = {"sharp": 0.95, "good": 0.8, "weak": 0.65, "left": 0.65, "coin": 0.5}


def label(queue: Queue, name: str, stream: random.Random) -> None:
    """Judges 200 items: `left` takes the first whatever it says, the others are right with the chance planted."""
    for item in [item for _ in range(2) for item in queue.lease(name, 100)]:
        choice = side_of(item, "good")
        if stream.random() > PLANTED[name]:
            choice = "b" if choice == "a" else "a"
        vote(queue, name, item, "a" if name == "left" else choice, seconds=60.0 if name == "coin" else 5.0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Database:
    database = open_database(tmp_path_factory.mktemp("planted") / "f.db")
    open_queue(database, *PLANTED)
    queue = Queue(database, stream=random.Random(1))
    items = [pair(i) for i in range(180)] + [pair(f"known {i}", gold={"choice": "a"}) for i in range(20)]
    queue.add_items(items, round=1, seed=0, overlap=Overlap(1.0, 5, 1))
    for name in PLANTED:
        label(queue, name, random.Random(name))
    return database


def test_planted_annotators_are_ranked_rightly(planted: Database) -> None:
    worth = compute_worth(planted, round=1, resamples=200)
    rows = {row.name: row for row in worth.annotators}
    assert {row.votes for row in rows.values()} == {200}
    skill = {name: row.skill for name, row in rows.items() if row.skill is not None}
    ranked = sorted(skill, key=lambda name: -skill[name])
    assert ranked[:3] == ["sharp", "good", "weak"]
    assert max(skill["left"], skill["coin"]) < skill["weak"]
    bias = {name: row.side_bias for name, row in rows.items() if row.side_bias is not None}
    assert max(bias, key=lambda name: bias[name]) == "left"
    assert bias["left"] > 2.0 > 1.0 > max(abs(value) for name, value in bias.items() if name != "left")
    assert rows["left"].first is not None
    assert (rows["left"].first.count, rows["left"].first.total) == (200, 200)
    agreement = {name: row.agreement.estimate for name, row in rows.items() if row.agreement is not None}
    assert max(agreement, key=lambda name: agreement[name]) == "sharp"
    assert set(sorted(agreement, key=lambda name: agreement[name])[:2]) == {"left", "coin"}
    assert all(row.alpha is not None and row.alpha.low <= row.alpha.estimate <= row.alpha.high for row in rows.values())
    gold = {name: row.gold for name, row in rows.items() if row.gold is not None}
    assert {share.total for share in gold.values()} == {20}
    assert gold["sharp"].count > gold["coin"].count
    assert (rows["coin"].seconds, rows["sharp"].seconds) == (60.0, 5.0)
    assert json.loads(json.dumps(worth.to_dict()))["agreement"]["items"] == 200


def test_the_agreement_of_one_with_the_others_is_the_count(planted: Database) -> None:
    """Oracle: counting pairs of votes one by one."""
    votes = list(VoteStore(planted).votes("comparison"))
    said: dict[str, dict[str, str]] = {}
    for one in votes:
        good = "a" if "good" in one.completions[0].text else "b"
        said.setdefault(one.prompt.id, {})[one.annotator] = "good" if one.choice == good else "bad"
    agree = sum(row["weak"] == row[name] for row in said.values() for name in row if name != "weak")
    pairs = sum(len(row) - 1 for row in said.values())
    (weak,) = [row for row in compute_worth(planted, resamples=50).annotators if row.name == "weak"]
    assert weak.agreement is not None
    assert weak.agreement.estimate == pytest.approx(agree / pairs)


@pytest.mark.parametrize("level", ["nominal", "interval"])
def test_resampled_alpha_is_evalicas(level: str) -> None:
    """Oracle: evalica on the table with its columns repeated as they were drawn."""
    import evalica

    from accord.feedback.agreement import _draw_items, _resample_alpha

    generator = np.random.default_rng(3)
    values = generator.integers(0, 4, size=(5, 40)).astype(float)
    values[generator.random(values.shape) < 0.4] = np.nan
    table = pd.DataFrame(values).loc[:, (~np.isnan(values)).sum(axis=0) > 1]
    draws = np.concatenate(list(_draw_items(table.shape[1], 120, 0, "alpha")))
    assert draws.shape == (120, table.shape[1])
    assert set(draws.sum(axis=1)) == {table.shape[1]}
    expected = [
        evalica.alpha(table.iloc[:, np.repeat(np.arange(table.shape[1]), row)], distance=level).alpha for row in draws
    ]
    found = _resample_alpha(table.to_numpy(), level, draws)
    assert found == pytest.approx(expected, abs=1e-9)
    same = _resample_alpha(np.ones((3, 4)), level, np.ones((1, 4), dtype=np.int64))
    assert same == evalica.alpha(pd.DataFrame(np.ones((3, 4))), distance=level).alpha


def test_alpha_of_many_items_takes_a_moment(planted: Database) -> None:
    table = build_agreement_table(VoteStore(planted).votes("comparison"))
    wide = pd.concat([table] * 50, axis=1)
    wide.columns = range(wide.shape[1])
    assert compute_alpha(wide, resamples=300).estimate == pytest.approx(compute_alpha(table).estimate, abs=0.02)


def test_wilsons_interval() -> None:
    """Oracle: Newcombe (1998), table I, row 81 of 263 by method 3: 0.2553 to 0.3662."""
    share = build_share(81, 263)
    assert share is not None
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    assert build_share(0, 0) is None


def test_the_forecast_says_how_many_votes_halve_the_interval() -> None:
    """Oracle: four times the items, drawn from the same annotators, have an interval half as wide."""
    agreement = Agreement(Interval(0.7, 0.65, 0.75), None, "nominal", items=100, annotators=5, votes=250)
    by_width = {round(row.width, 6): (row.more_items, row.more_votes) for row in forecast(agreement)}
    assert by_width == {0.075: (78, 195), 0.05: (300, 750), 0.025: (1500, 3750)}

    def interval(items: int) -> float:
        generator = np.random.default_rng(items)
        table = pd.DataFrame((generator.random((3, items)) < 0.8).astype(float))
        found = compute_alpha(table, resamples=1000)
        return found.high - found.low

    assert interval(1600) / interval(400) == pytest.approx(0.5, rel=0.15)
    assert forecast(Agreement(None, None, "nominal", 0, 0, 0)) == ()


def test_self_consistency_and_checks_of_every_kind(database: Database) -> None:
    queue = open_queue(database)
    texts = tuple(Completion.from_text(text) for text in ("one", "two", "three"))
    ranking = NewItem("ranking", Prompt.from_user("r"), texts, gold={"ranks": [1, 2, 3]})
    rating = NewItem("rating", Prompt.from_user("s"), texts[:1], gold={"rating": 0.5})
    queue.add_items([ranking, rating, *(pair(i) for i in range(4))], round=1, seed=0, repeat_share=1.0)
    ranks = {"one": 1, "two": 2, "three": 3}
    for name, wrong in (("ann", False), ("bob", True)):
        for _ in range(2):
            for item in queue.lease(name, 100):
                if item.kind == "ranking":
                    given = tuple(4 - ranks[c.text] if wrong else ranks[c.text] for c in item.completions)
                    vote(queue, name, item, None, ranks=given)
                elif item.kind == "rating":
                    vote(queue, name, item, None, rating=0.7 if wrong else 0.6)
                else:
                    vote(queue, name, item, "a" if wrong else side_of(item, "good"))
    rows = {row.name: row for row in compute_worth(database, round=1, resamples=10).annotators}
    ann, bob = rows["ann"], rows["bob"]
    assert ann.gold is not None
    assert bob.gold is not None
    assert ann.consistent is not None
    assert (ann.gold.count, ann.gold.total, bob.gold.count, bob.gold.total) == (2, 2, 0, 2)
    assert (ann.consistent.count, ann.consistent.total) == (ann.consistent.total, 4)


def test_nothing_yet(database: Database) -> None:
    worth = compute_worth(database)
    assert (worth.annotators, worth.forecasts, worth.agreement.alpha) == ((), (), None)
    assert list_disagreements(database) == []


def test_disagreements_and_verdicts(database: Database) -> None:
    queue = open_queue(database, "ann", "bob", "cyd")
    queue.add_items([pair("torn"), pair("even"), pair("clear")], round=1, seed=0, overlap=Overlap(1.0, 3, 1))
    for name in ("ann", "bob", "cyd"):
        for item in queue.lease(name, 3, now=NOON):
            right = side_of(item, "good")
            other = "b" if right == "a" else "a"
            said = {"torn": right if name == "ann" else other, "even": {"ann": right, "bob": other, "cyd": "tie"}[name]}
            vote(queue, name, item, said.get(item.prompt.messages[0].content.split()[-1], right))
    even, torn = list_disagreements(database)
    assert [row.prompt for row in (even, torn)] == [pair("even").prompt, pair("torn").prompt]
    assert (even.difference, torn.difference) == (1.0, pytest.approx(2 / 3))
    assert {j.annotator: j.choice for j in torn.judgements} == {"ann": "a", "bob": "b", "cyd": "b"}
    assert [c.text for c in torn.completions] == ["torn good", "torn bad"]
    assert len(list_disagreements(database, limit=1)) == 1

    before = {p.prompt: p for p in compute_consensus(queue.votes(1)).preferences}
    verdict = Verdict(new_id(), "ann", torn.item_id, choice="a", strength=7, note="bob and cyd missed the joke")
    assert not adjudicate(database, verdict, now=later(1)).repeated
    assert adjudicate(database, verdict, now=later(2)).repeated
    assert [row.item_id for row in list_disagreements(database)] == [even.item_id]
    (shown,) = [row for row in list_disagreements(database, decided=True) if row.verdict]
    assert shown.verdict == verdict

    votes = list(queue.votes(1))
    consensus = compute_consensus(votes)
    after = {p.prompt: p for p in consensus.preferences}
    settled = after.pop(torn.prompt)
    towards = settled.probability if settled.a.text == "torn good" else 1.0 - settled.probability
    assert (towards, settled.uncertainty, settled.weight, settled.strength) == (1.0, 0.0, 1.0, 1.0)
    del before[torn.prompt]
    assert after == before  # the fit of the others is what it was
    assert compute_worth(database, round=1, resamples=10).agreement.votes == 9

    bad = Verdict(new_id(), "ann", torn.item_id, choice="both_bad")
    adjudicate(database, bad, now=later(3))
    (settled,) = [p for p in compute_consensus(queue.votes(1)).preferences if p.prompt == torn.prompt]
    assert (settled.probability, settled.weight) == (0.5, 0.0)
    assert VoteStore(database).count() == 9 + 2


def test_only_an_owner_decides_and_only_what_was_asked(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair()], round=1, seed=0)
    (item,) = queue.lease("ann", 1)
    with database.read() as connection:
        item_id = connection.exec_driver_sql("SELECT id FROM items").scalar() or ""
    with pytest.raises(RefusedError, match="not an owner"):
        adjudicate(database, Verdict(new_id(), "bob", item_id, choice="a"))
    with pytest.raises(NotFoundError, match="no item"):
        adjudicate(database, Verdict(new_id(), "ann", "nothing", choice="a"))
    for wrong in (Verdict(new_id(), "ann", item_id), Verdict(new_id(), "ann", item_id, choice="a", strength=8)):
        with pytest.raises(DataError):
            adjudicate(database, wrong)
    taken = vote(queue, "ann", item)
    with pytest.raises(ConflictError, match="something else"):
        adjudicate(database, Verdict(taken.client_id, "ann", item_id, choice="a"))
    receipt = adjudicate(database, Verdict(new_id(), "ann", item_id, choice="a"))
    with pytest.raises(ConflictError, match="cannot be undone"):
        queue.undo("ann", receipt.client_id, new_id())
