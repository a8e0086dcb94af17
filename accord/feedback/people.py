"""Who may label: annotators with their roles, invitations, sessions.

Implements the rows and the rules between them. Secrets come in as hashes that the caller made; a password's hash is
kept apart and never in the audit log, so that forgetting it forgets it. Leaves out hashing, cookies and limits on
tries (`web`), and what people say (`queue`). Deleting somebody keeps their votes.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import delete, func, insert, select, update

from accord.errors import ConflictError, DataError, NotFoundError
from accord.feedback.database import Database
from accord.feedback.leasing import release_leases
from accord.feedback.log import Transaction, write_moment
from accord.feedback.queue_schema import annotators, credentials, invitations, sessions
from accord.feedback.records import require_text
from accord.feedback.schema import votes

Role = Literal["owner", "annotator"]
Status = Literal["active", "paused", "deleted"]
ROLES = ("owner", "annotator")
MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True)
class Annotator:
    """A person. `name` is what their votes carry; it is never given to somebody else. created_at: ISO 8601."""

    name: str
    role: Role
    status: Status
    created_at: str


@dataclass(frozen=True)
class Invitation:
    """A link that lets one person in, known by its token's hash. closed_at: when it was used or revoked, or None."""

    token_hash: str
    role: Role
    created_by: str
    created_at: str
    expires_at: str
    used_by: str | None
    closed_at: str | None


class People:
    """The people of a project. Times are aware datetimes, by default the clock."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self,
        name: str,
        role: Role = "annotator",
        *,
        password_hash: str | None = None,
        actor: str,
        now: datetime | None = None,
    ) -> Annotator:
        """Adds a person. Raises DataError for an impossible name or role, ConflictError for a taken or like one."""
        with self.database.write("annotator_added", actor, now) as transaction:
            return _add(transaction, name, role, password_hash)

    def find(self, name: str) -> Annotator | None:
        """The person of that name, deleted or not; None for a stranger."""
        with self.database.read() as connection:
            row = connection.execute(select(annotators).where(annotators.c.name == name)).first()
        return _annotator_from_row(row) if row else None

    def password_hash(self, name: str) -> str | None:
        """The stored hash of the person's password; None where there is none, or no such person."""
        with self.database.read() as connection:
            query = select(credentials.c.password_hash).where(credentials.c.annotator == name)
            return connection.scalar(query)

    def change_password(self, name: str, password_hash: str, *, keep_session: str, now: datetime | None = None) -> int:
        """Replaces one's own password hash and closes every session and token but `keep_session` (a token's hash).
        Returns how many were closed. Raises NotFoundError for a stranger.
        """
        with self.database.write("password_set", name, now) as transaction:
            _require(transaction, name)
            _write_password(transaction, name, password_hash)
            closed = _close_sessions(transaction, name, but=keep_session)
            transaction.record("password_set", name, annotator=name)
            return closed

    def pause(self, name: str, *, actor: str, now: datetime | None = None) -> Annotator:
        """The person gets no more items, and what they hold goes back. What they still send in is kept."""
        with self.database.write("annotator_paused", actor, now) as transaction:
            release_leases(transaction, name, None)
            return _change(transaction, name, status="paused")

    def resume(self, name: str, *, actor: str, now: datetime | None = None) -> Annotator:
        """Takes back `pause`."""
        with self.database.write("annotator_resumed", actor, now) as transaction:
            return _change(transaction, name, status="active")

    def delete(self, name: str, *, actor: str, now: datetime | None = None) -> Annotator:
        """Ends the account: sessions close, the password is forgotten, leases go back. Votes and the name stay.

        Raises ConflictError where nobody else is an active owner.
        """
        with self.database.write("annotator_deleted", actor, now) as transaction:
            _require_other_owner(transaction, name)
            release_leases(transaction, name, None)
            _close_sessions(transaction, name)
            transaction.execute(delete(credentials).where(credentials.c.annotator == name))
            return _change(transaction, name, status="deleted")

    def set_role(self, name: str, role: Role, *, actor: str, now: datetime | None = None) -> Annotator:
        """Makes somebody an owner or an annotator. Raises ConflictError where no active owner would be left."""
        _require_role(role)
        with self.database.write("role_set", actor, now) as transaction:
            if role != "owner":
                _require_other_owner(transaction, name)
            return _change(transaction, name, role=role)

    def invite(
        self, token_hash: str, *, role: Role, expires_at: datetime, actor: str, now: datetime | None = None
    ) -> Invitation:
        """Stores an invitation for one person."""
        _require_role(role)
        with self.database.write("invited", actor, now) as transaction:
            invitation = Invitation(
                token_hash, role, actor, transaction.at, write_moment(expires_at), used_by=None, closed_at=None
            )
            transaction.insert(invitations, [vars(invitation)])
        return invitation

    def invitations(self) -> list[Invitation]:
        """All invitations, newest first, used and expired ones too."""
        with self.database.read() as connection:
            rows = connection.execute(select(invitations).order_by(invitations.c.created_at.desc()))
            return [Invitation(**row._mapping) for row in rows]

    def find_invitation(self, token_hash: str, *, now: datetime | None = None) -> Invitation | None:
        """The invitation, if it can still be used; None where it is unknown, used, revoked or expired."""
        with self.database.read() as connection:
            row = connection.execute(_usable_invitation(token_hash, write_moment(now))).first()
        return Invitation(**row._mapping) if row else None

    def accept(
        self, token_hash: str, name: str, *, password_hash: str | None, now: datetime | None = None
    ) -> Annotator:
        """Uses an invitation up and adds the person with its role.

        Raises NotFoundError where the invitation cannot be used, ConflictError where the name is taken or has votes.
        """
        with self.database.write("invitation_accepted", name, now) as transaction:
            row = transaction.execute(_usable_invitation(token_hash, transaction.at)).first()
            if row is None:
                raise NotFoundError("this invitation is used, revoked or expired", mend="ask the owner for another")
            voted = select(votes.c.id).where(votes.c.annotator == name).limit(1)
            if transaction.execute(voted).first() is not None:
                raise ConflictError(f"the name {name!r} has votes already", mend="choose another name")
            annotator = _add(transaction, name, row.role, password_hash)
            used = {"token_hash": token_hash, "used_by": name, "closed_at": transaction.at}
            transaction.update(invitations, [used])
            return annotator

    def revoke_invitation(self, token_hash: str, *, actor: str, now: datetime | None = None) -> None:
        """Makes an invitation useless. Raises NotFoundError where it is already."""
        with self.database.write("invitation_revoked", actor, now) as transaction:
            if transaction.execute(_usable_invitation(token_hash, transaction.at)).first() is None:
                raise NotFoundError("there is no such open invitation", mend="see the list of invitations")
            transaction.update(invitations, [{"token_hash": token_hash, "closed_at": transaction.at}])

    def open_session(self, token_hash: str, name: str, *, expires_at: datetime, now: datetime | None = None) -> None:
        """Stores a session. Raises NotFoundError for a stranger, ConflictError where they are deleted."""
        with self.database.write("session_opened", name, now) as transaction:
            if _require(transaction, name).status == "deleted":
                raise ConflictError(f"the account {name!r} is deleted", mend="ask the owner for an invitation")
            row = {
                "token_hash": token_hash,
                "annotator": name,
                "created_at": transaction.at,
                "expires_at": write_moment(expires_at),
                "closed_at": None,
            }
            transaction.insert(sessions, [row])

    def find_session(self, token_hash: str, *, now: datetime | None = None) -> Annotator | None:
        """Who is signed in with this token; None where the session is unknown, over or closed, or they are deleted."""
        query = (
            select(annotators)
            .join(sessions, sessions.c.annotator == annotators.c.name)
            .where(sessions.c.token_hash == token_hash, sessions.c.closed_at.is_(None))
            .where(sessions.c.expires_at > write_moment(now), annotators.c.status != "deleted")
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return _annotator_from_row(row) if row else None

    def close_session(self, token_hash: str, *, now: datetime | None = None) -> None:
        """Signs out. Does nothing where the session is unknown or closed."""
        query = select(sessions.c.annotator).where(sessions.c.token_hash == token_hash, sessions.c.closed_at.is_(None))
        with self.database.write("session_closed", "accord", now) as transaction:
            if (name := transaction.execute(query).scalar()) is not None:
                transaction.update(sessions, [{"token_hash": token_hash, "closed_at": transaction.at}])
                transaction.record("session_closed", name)

    def close_sessions(self, name: str, *, actor: str, now: datetime | None = None) -> int:
        """Signs a person out everywhere. Returns how many sessions were open."""
        with self.database.write("sessions_closed", actor, now) as transaction:
            return _close_sessions(transaction, name)

    def list(self) -> list[Annotator]:
        """Everybody, deleted ones too, by name."""
        with self.database.read() as connection:
            return [_annotator_from_row(row) for row in connection.execute(select(annotators).order_by("name"))]


def fold_name(name: str) -> str:
    """The form in which two names that look alike are equal: NFKC, case folded, white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _add(transaction: Transaction, name: str, role: Role, password_hash: str | None) -> Annotator:
    require_text(name, "the name")
    printable = all(unicodedata.category(character)[0] != "C" for character in name)
    if name != name.strip() or not name or len(name) > MAX_NAME_CHARACTERS or not printable:
        raise DataError(
            f"{name[:MAX_NAME_CHARACTERS]!r} is no name", mend=f"use 1 to {MAX_NAME_CHARACTERS} visible characters"
        )
    _require_role(role)
    taken = select(annotators.c.name).where(annotators.c.folded == fold_name(name))
    if (other := transaction.execute(taken).scalar()) is not None:
        raise ConflictError(f"the name {name!r} is taken, or too like {other!r}", mend="choose another name")
    annotator = Annotator(name, role, "active", transaction.at)
    transaction.insert(annotators, [{**vars(annotator), "folded": fold_name(name)}])
    if password_hash is not None:
        _write_password(transaction, name, password_hash)
    return annotator


def _require_role(role: str) -> None:
    if role not in ROLES:
        raise DataError(f"unknown role {role!r}", mend=f"use one of {', '.join(ROLES)}")


def _require(transaction: Transaction, name: str) -> Annotator:
    row = transaction.execute(select(annotators).where(annotators.c.name == name)).first()
    if row is None:
        raise NotFoundError(f"there is no annotator {name!r}", mend="see the list of people")
    return _annotator_from_row(row)


def _change(transaction: Transaction, name: str, **values: Any) -> Annotator:
    """Changes a person's row. Raises NotFoundError for a stranger, ConflictError for who is deleted: that is final."""
    if _require(transaction, name).status == "deleted":
        raise ConflictError(f"the account {name!r} is deleted", mend="invite the person again, under another name")
    transaction.update(annotators, [{"name": name, **values}])
    return _require(transaction, name)


def _require_other_owner(transaction: Transaction, name: str) -> None:
    """Raises ConflictError where `name` is the only active owner."""
    owners = select(func.count()).where(annotators.c.role == "owner", annotators.c.status == "active")
    others = transaction.execute(owners.where(annotators.c.name != name)).scalar()
    if _require(transaction, name).role == "owner" and not others:
        raise ConflictError(f"{name!r} is the only owner", mend="make somebody else an owner first")


def _close_sessions(transaction: Transaction, name: str, but: str = "") -> int:
    query = select(sessions.c.token_hash).where(sessions.c.annotator == name, sessions.c.closed_at.is_(None))
    open_ones = [token for token in transaction.execute(query).scalars() if token != but]
    transaction.update(sessions, [{"token_hash": token, "closed_at": transaction.at} for token in open_ones])
    return len(open_ones)


def _write_password(transaction: Transaction, name: str, password_hash: str) -> None:
    values = {"password_hash": require_text(password_hash, "the password's hash")}
    changed = transaction.execute(update(credentials).where(credentials.c.annotator == name).values(values))
    if changed.rowcount == 0:
        transaction.execute(insert(credentials).values(annotator=name, **values))


def _usable_invitation(token_hash: str, at: str) -> Any:
    return select(invitations).where(
        invitations.c.token_hash == token_hash, invitations.c.closed_at.is_(None), invitations.c.expires_at > at
    )


def _annotator_from_row(row: Any) -> Annotator:
    return Annotator(row.name, row.role, row.status, row.created_at)
