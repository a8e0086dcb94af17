"""What every route shares: the project, its database with queue, people and guidelines, and how the app was opened.

Implements the opening of these parts for one project, and the hashes under which secrets are stored. Leaves out the
routes and the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from pwdlib import PasswordHash

from accord.config import Config
from accord.feedback.database import Database, open_database
from accord.feedback.guidelines import Guidelines
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.store import VoteStore
from accord.web.security import LOOPBACK_NAMES, SignInLimiter
from accord.workspace import Workspace

if TYPE_CHECKING:
    from accord.loop.chatting import Chat

OPEN_NAME = "owner"
"""Who judges where no account is asked for."""

GLANCE_SECONDS = 1.0

SERVER = "accord label"
"""The actor of what the server does by itself, in the audit log."""


@dataclass
class _Seen:
    """What a glance at the queue saw, and when."""

    at: float = -math.inf
    left: int = 0
    busy: int = 0


@dataclass(frozen=True)
class Site:
    """One project, opened for the web. `accounts`: whether people sign in; without, whoever comes is the owner."""

    workspace: Workspace
    config: Config
    database: Database
    accounts: bool
    name_limiter: SignInLimiter = field(default_factory=SignInLimiter)
    address_limiter: SignInLimiter = field(default_factory=lambda: SignInLimiter(attempts=20))
    _seen: _Seen = field(default_factory=_Seen)

    @cached_property
    def queue(self) -> Queue:
        """Items to judge, leases, answers."""
        return Queue(self.database)

    @cached_property
    def people(self) -> People:
        """Annotators, invitations, sessions."""
        return People(self.database)

    @cached_property
    def guidelines(self) -> Guidelines:
        """What annotators are told, by version."""
        return Guidelines(self.database)

    @cached_property
    def store(self) -> VoteStore:
        """Every vote."""
        return VoteStore(self.database)

    @cached_property
    def passwords(self) -> PasswordHash:
        """Argon2 with pwdlib's settings."""
        return PasswordHash.recommended()

    @cached_property
    def no_hash(self) -> str:
        """What a password is compared with where nobody has the name, so that both take the same time."""
        return self.passwords.hash("nobody's password")

    @cached_property
    def chat(self) -> Chat | None:
        """Who answers the annotators' own prompts; None where the settings do not ask for it."""
        if not self.config.label.chat:
            return None
        from accord.loop.chatting import Chat  # loads torch

        return Chat(self.workspace, self.config)

    @cached_property
    def leasing(self) -> asyncio.Semaphore:
        """Held by the one call that hands out items: fifty who begin at once must not stand before fifty who answer."""
        return asyncio.Semaphore(1)

    def glance(self, age_seconds: float) -> tuple[int, int]:
        """(votes still wanted, items in anyone's hands), at most `age_seconds` old: the count reads every item."""
        if time.monotonic() - self._seen.at >= age_seconds:
            progress = self.queue.progress()
            self._seen.at, self._seen.left, self._seen.busy = time.monotonic(), progress.missing, progress.leased
        return self._seen.left, self._seen.busy

    @property
    def link(self) -> str:
        """Where people find the app."""
        label = self.config.label
        return label.url.rstrip("/") or build_link(label.host, label.port)

    @property
    def secure(self) -> bool:
        """Whether cookies are for https alone."""
        return self.link.startswith("https:")


def open_site(workspace: Workspace, config: Config) -> Site:
    """Open the project's database, and make the owner of a project that asks for no account."""
    accounts = config.label.accounts == "always" or config.label.host not in LOOPBACK_NAMES
    site = Site(workspace, config, open_database(workspace.locate_votes(config.project.database)), accounts)
    if not accounts and site.people.find(OPEN_NAME) is None:
        site.people.add(OPEN_NAME, role="owner", actor=SERVER)
    return site


def build_link(host: str, port: int) -> str:
    """`http://localhost:8400`; a server on every address is shown by this machine's own name for itself."""
    name = "localhost" if host in {*LOOPBACK_NAMES, "0.0.0.0", "::"} else host
    return f"http://{name}:{port}"


def hash_secret(purpose: str, secret: str) -> str:
    """SHA-256 under which a random secret is stored; a secret of one purpose (web, api, invitation) is no other's."""
    return hashlib.sha256(f"accord {purpose}\0{secret}".encode()).hexdigest()
