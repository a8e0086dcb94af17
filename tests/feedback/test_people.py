"""People, invitations, sessions and guidelines on both databases."""

import pytest

from accord.errors import ConflictError, DataError, NotFoundError
from accord.feedback.database import Database
from accord.feedback.guidelines import Guidelines
from accord.feedback.people import People
from accord.feedback.store import VoteStore
from tests.feedback.labelling import NOON, later
from tests.feedback.vote_strategies import compare


@pytest.fixture
def people(database: Database) -> People:
    people = People(database)
    people.add("Ann", "owner", actor="test", now=NOON)
    return people


def test_a_name_belongs_to_one_person_for_good(people: People) -> None:
    bob = people.add("Bob", actor="Ann", now=NOON)
    assert people.find("Bob") == bob
    assert people.find("bob") is None
    assert [person.name for person in people.list()] == ["Ann", "Bob"]
    for like in ("Bob", "bob", "ＢＯＢ"):
        with pytest.raises(ConflictError, match="too like"):
            people.add(like, actor="Ann")
    people.delete("Bob", actor="Ann")
    with pytest.raises(ConflictError, match="too like"):
        people.add("BOB", actor="Ann")
    for change in (people.pause, people.resume):
        with pytest.raises(ConflictError, match="deleted"):
            change("Bob", actor="Ann")
    for wrong in ("", " x", "x\n", "x\u200by", "x" * 101, "a\0b", "\ud800"):
        with pytest.raises(DataError):
            people.add(wrong, actor="Ann")
    with pytest.raises(DataError, match="unknown role"):
        people.add("Cyd", "admin", actor="Ann")  # type: ignore[arg-type]


def test_there_is_always_an_owner(people: People) -> None:
    for change in (lambda: people.delete("Ann", actor="Ann"), lambda: people.set_role("Ann", "annotator", actor="Ann")):
        with pytest.raises(ConflictError, match="only owner"):
            change()
    people.add("Bob", actor="Ann")
    assert people.set_role("Bob", "owner", actor="Ann").role == "owner"
    people.pause("Bob", actor="Ann")
    with pytest.raises(ConflictError, match="only owner"):
        people.delete("Ann", actor="Ann")
    people.resume("Bob", actor="Ann")
    assert people.delete("Ann", actor="Bob").status == "deleted"


def test_an_invitation_lets_one_person_in(people: People) -> None:
    invitation = people.invite("hash", role="annotator", expires_at=later(60), actor="Ann", now=NOON)
    assert people.find_invitation("hash", now=later(59)) == invitation
    assert people.find_invitation("hash", now=later(60)) is None
    with pytest.raises(NotFoundError):
        people.accept("hash", "Bob", password_hash="argon", now=later(61))
    assert people.accept("hash", "Bob", password_hash="argon", now=later(2)).role == "annotator"
    assert people.password_hash("Bob") == "argon"
    with pytest.raises(NotFoundError, match="used"):
        people.accept("hash", "Cyd", password_hash="argon", now=later(3))
    assert [(i.used_by, i.closed_at) for i in people.invitations()] == [("Bob", "2026-01-31T12:02:00.000000Z")]
    people.invite("other", role="owner", expires_at=later(60), actor="Ann", now=NOON)
    people.revoke_invitation("other", actor="Ann", now=NOON)
    with pytest.raises(NotFoundError):
        people.accept("other", "Cyd", password_hash=None, now=NOON)
    with pytest.raises(NotFoundError):
        people.revoke_invitation("other", actor="Ann", now=NOON)


def test_nobody_takes_over_the_votes_of_a_name(people: People, database: Database) -> None:
    VoteStore(database).add([compare(annotator="imported")])
    people.invite("hash", role="annotator", expires_at=later(60), actor="Ann", now=NOON)
    with pytest.raises(ConflictError, match="has votes"):
        people.accept("hash", "imported", password_hash=None, now=NOON)
    assert people.find_invitation("hash", now=NOON) is not None


def test_sessions_end(people: People) -> None:
    people.add("Bob", actor="Ann")
    for token in ("one", "two", "three"):
        people.open_session(token, "Bob", expires_at=later(60), now=NOON)
    bob = people.find("Bob")
    assert people.find_session("one", now=later(59)) == bob
    assert people.find_session("one", now=later(60)) is None
    people.close_session("one", now=NOON)
    people.close_session("one", now=NOON)
    people.close_session("unknown", now=NOON)
    assert people.find_session("one", now=NOON) is None
    assert people.close_sessions("Bob", actor="Ann", now=NOON) == 2
    people.open_session("four", "Bob", expires_at=later(60), now=NOON)
    people.pause("Bob", actor="Ann")
    assert people.find_session("four", now=NOON) is not None  # to send in what they made
    people.delete("Bob", actor="Ann")
    assert people.find_session("four", now=NOON) is None
    with pytest.raises(ConflictError, match="deleted"):
        people.open_session("five", "Bob", expires_at=later(60))
    with pytest.raises(NotFoundError):
        people.open_session("five", "nobody", expires_at=later(60))


def test_a_forgotten_password_is_gone(people: People, database: Database) -> None:
    people.change_password("Ann", "first-hash", keep_session="")
    people.change_password("Ann", "second-hash", keep_session="")
    people.add("Bob", password_hash="bobs-hash", actor="Ann")
    assert people.password_hash("Ann") == "second-hash"
    people.delete("Bob", actor="Ann")
    assert people.password_hash("Bob") is None
    with database.read() as connection:
        log = "".join(connection.exec_driver_sql("SELECT body FROM events").scalars())
        kinds = list(connection.exec_driver_sql("SELECT kind FROM events").scalars())
    assert "-hash" not in log
    assert kinds.count("password_set") == 2


def test_guidelines_have_versions(database: Database) -> None:
    guidelines = Guidelines(database)
    assert guidelines.latest() is None
    first = guidelines.publish("be fair", author="Ann", now=NOON)
    assert guidelines.publish("be fair", author="Bob") == first
    second = guidelines.publish("be fair and quick", author="Ann", now=later(1))
    assert [row.version for row in guidelines.list()] == ["1", "2"]
    assert (guidelines.latest(), guidelines.find("1")) == (second, first)
    assert [guidelines.find(wrong) for wrong in ("3", "x", "", "²", "9" * 30)] == [None] * 5
    with pytest.raises(DataError):
        guidelines.publish(" ", author="Ann")
