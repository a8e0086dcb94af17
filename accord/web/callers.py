"""Who sends a request, and whether they may: session cookie, bearer token, or nobody where no account is asked for.

Implements the three ways in and the dependencies that routers stand behind. Leaves out signing in (`entry`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from accord.feedback.people import Annotator
from accord.web.security import SAFE_METHODS, compute_csrf_token, is_csrf_token
from accord.web.site import OPEN_NAME, Site, hash_secret

SESSION_COOKIE = "accord_session"
OPEN_COOKIE = "accord_open"


@dataclass(frozen=True)
class Caller:
    """Who sends the request, and how: `secret` is what their cookie holds ("" with a bearer token, and without one)."""

    name: str
    role: str
    way: Literal["cookie", "bearer"]
    secret: str = ""
    paused: bool = False

    @property
    def csrf(self) -> str:
        """What the page sends back with each change."""
        return compute_csrf_token(self.secret) if self.secret else ""

    @property
    def is_owner(self) -> bool:
        """Whether the owner's pages are theirs."""
        return self.role == "owner"


async def get_site(request: Request) -> Site:
    """The site that the app was made for.

    Dependencies that ask no database stay on the event loop: a hop to another thread costs a vote more than they do.
    """
    site: Site = request.app.state.site
    return site


def find_caller(request: Request) -> Caller | None:
    """Who sends `request`, or None. A bearer token wins over a cookie; who was deleted is nobody."""
    site: Site = request.app.state.site
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if token:
        person = site.people.find_session(hash_secret("api", token.strip())) if scheme.lower() == "bearer" else None
        return _build_caller(person, "bearer", "")
    if not site.accounts:
        return Caller(OPEN_NAME, "owner", "cookie", request.cookies.get(OPEN_COOKIE, ""))
    secret = request.cookies.get(SESSION_COOKIE, "")
    person = site.people.find_session(hash_secret("web", secret)) if secret else None
    return _build_caller(person, "cookie", secret)


def _build_caller(person: Annotator | None, way: Literal["cookie", "bearer"], secret: str) -> Caller | None:
    if person is None or person.status == "deleted":
        return None
    return Caller(person.name, person.role, way, secret, paused=person.status == "paused")


async def require_sender(request: Request) -> Caller:
    """Someone known, and no forged change. A paused person passes: answers that they still hold are taken.

    Raises:
        HTTPException: 401, nobody known; 403, a change without the page's token.
    """
    caller = await run_in_threadpool(find_caller, request)
    if caller is None:
        raise HTTPException(401, "Sign in, or send an API token.")
    if caller.way == "cookie" and request.method not in SAFE_METHODS:
        await require_csrf(request, caller.secret)
    return caller


async def require_person(caller: Annotated[Caller, Depends(require_sender)]) -> Caller:
    """The dependency of everything that is not public.

    Raises:
        HTTPException: 403, they are paused.
    """
    if caller.paused:
        raise HTTPException(
            403, "You are paused at the moment. What you have judged is kept; the owner can let you go on."
        )
    return caller


async def require_csrf(request: Request, secret: str) -> None:
    """Raises HTTPException (403) where the request does not carry the token that belongs to `secret`."""
    token = request.headers.get("x-csrf-token", "")
    if not token and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        value = (await request.form()).get("csrf", "")
        token = value if isinstance(value, str) else ""
    if not secret or not is_csrf_token(secret, token):
        raise HTTPException(403, "This form is not from one of our pages, or older than your session. Reload the page.")


async def require_owner(caller: Annotated[Caller, Depends(require_person)]) -> Caller:
    """The dependency of the owner's pages.

    Raises:
        HTTPException: 403, someone known, but no owner.
    """
    if not caller.is_owner:
        raise HTTPException(403, "This is for the owner of the project.")
    return caller


def make_secret() -> str:
    """32 random bytes, as a cookie, link or header can hold them."""
    return secrets.token_urlsafe(32)


Sender = Annotated[Caller, Depends(require_sender)]
Person = Annotated[Caller, Depends(require_person)]
Owner = Annotated[Caller, Depends(require_owner)]
CurrentSite = Annotated[Site, Depends(get_site)]
