"""Coming in and going out: sign-in with a limit on guesses, invitation links, sign-out.

Implements the forms and the session cookie. Leaves out who is invited (`people`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from accord.errors import AccordError
from accord.web.callers import OPEN_COOKIE, SESSION_COOKIE, CurrentSite, Person, find_caller, make_secret, require_csrf
from accord.web.pages import OPEN_COOKIE_SECONDS, render_page
from accord.web.security import compute_csrf_token
from accord.web.site import Site, hash_secret

SESSION_DAYS = 30
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 500
NAME = re.compile(r"[^\W_][\w .@+-]{0,59}")

router = APIRouter(include_in_schema=False)


@router.get("/")
def lead_on(request: Request, site: CurrentSite) -> RedirectResponse:
    """To the first page of whoever comes."""
    caller = find_caller(request)
    return RedirectResponse("/sign-in" if caller is None else "/dashboard" if caller.is_owner else "/label", 303)


@router.get("/sign-in", response_class=HTMLResponse)
def show_sign_in(request: Request, site: CurrentSite, to: str = "/") -> Response:
    """The form; who needs none goes on."""
    if not site.accounts:
        return RedirectResponse("/", 303)
    return _form(request, "sign_in.html.j2", to=_own_path(to))


@router.post("/sign-in", response_class=HTMLResponse)
async def sign_in(
    request: Request,
    site: CurrentSite,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
    to: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    """Begin a session. Five wrong passwords in five minutes for one name, or twenty from one address, and it waits."""
    await require_csrf(request, request.cookies.get(OPEN_COOKIE, ""))
    from fastapi.concurrency import run_in_threadpool

    return await run_in_threadpool(_sign_in, request, site, name.strip(), password, _own_path(to))


class Haste(NamedTuple):
    """How long to wait before another guess, and how a person is told."""

    seconds: int
    words: str


def refuse_haste(site: Site, name: str, address: str) -> Haste | None:
    """Too many wrong passwords of late for this name or from this address; None where another may be tried."""
    wait = max(site.name_limiter.seconds_to_wait(name.lower()), site.address_limiter.seconds_to_wait(address))
    if wait <= 0:
        return None
    rest = f"Try again in {wait / 60:.0f} min." if wait > 90 else "Wait a minute."
    return Haste(int(wait) + 1, f"Too many attempts. {rest}")


def _sign_in(request: Request, site: Site, name: str, password: str, to: str) -> Response:
    address = request.client.host if request.client else "unknown"
    if haste := refuse_haste(site, name, address):
        response = _form(request, "sign_in.html.j2", status=429, problem=haste.words, to=to, name=name)
        response.headers["retry-after"] = str(haste.seconds)
        return response
    person = site.people.find(name)
    known = site.people.password_hash(name) if person else None
    right = site.passwords.verify(password, known or site.no_hash)
    if not (right and known and person and person.status == "active"):
        site.name_limiter.record_failure(name.lower())
        site.address_limiter.record_failure(address)
        return _form(
            request, "sign_in.html.j2", status=403, problem="The name or the password is wrong.", to=to, name=name
        )
    site.name_limiter.forget(name.lower())
    return _begin_session(site, person.name, to)


@router.get("/invitations/{token}", response_class=HTMLResponse)
def show_invitation(request: Request, site: CurrentSite, token: str) -> Response:
    """The form in which an invited person chooses a name and a password."""
    invitation = site.people.find_invitation(hash_secret("invitation", token))
    if invitation is None:
        return _form(request, "invitation.html.j2", status=404, invitation=None)
    return _form(request, "invitation.html.j2", invitation=invitation)


@router.post("/invitations/{token}", response_class=HTMLResponse)
async def accept_invitation(
    request: Request,
    site: CurrentSite,
    token: str,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
) -> Response:
    """Make the account and begin its first session. An invitation works once."""
    await require_csrf(request, request.cookies.get(OPEN_COOKIE, ""))
    from fastapi.concurrency import run_in_threadpool

    return await run_in_threadpool(_accept, request, site, token, name.strip(), password)


def _accept(request: Request, site: Site, token: str, name: str, password: str) -> Response:
    hashed = hash_secret("invitation", token)
    invitation = site.people.find_invitation(hashed)
    if invitation is None:
        return _form(request, "invitation.html.j2", status=404, invitation=None)
    problem = ""
    if not NAME.fullmatch(name):
        problem = "A name has up to 60 letters, digits, spaces and . @ + - and begins with a letter or digit."
    elif len(password) < SHORTEST_PASSWORD:
        problem = f"A password has at least {SHORTEST_PASSWORD} characters."
    if not problem:
        try:
            site.people.accept(hashed, name, password_hash=site.passwords.hash(password))
        except AccordError as error:
            problem = f"{error.message[:1].upper()}{error.message[1:]}."
    if problem:
        return _form(request, "invitation.html.j2", status=422, invitation=invitation, problem=problem, name=name)
    return _begin_session(site, name, "/")


@router.post("/sign-out")
def sign_out(request: Request, site: CurrentSite, caller: Person) -> RedirectResponse:
    """End this session."""
    if caller.secret and site.accounts:
        site.people.close_session(hash_secret("web", caller.secret))
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE)
    return response


def _begin_session(site: Site, name: str, to: str) -> RedirectResponse:
    secret = make_secret()
    site.people.open_session(
        hash_secret("web", secret), name, expires_at=datetime.now(UTC) + timedelta(days=SESSION_DAYS)
    )
    response = RedirectResponse(to, 303)
    response.set_cookie(
        SESSION_COOKIE, secret, max_age=SESSION_DAYS * 86400, httponly=True, samesite="lax", secure=site.secure
    )
    return response


def _form(request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """A form for someone who has no session yet: the token against forgery hangs on a cookie of its own."""
    site: Site = request.app.state.site
    secret = request.cookies.get(OPEN_COOKIE) or make_secret()
    shown = {"problem": "", "name": "", **values, "form_csrf": compute_csrf_token(secret)}
    response = render_page(request, template, None, status=status, **shown)
    response.set_cookie(
        OPEN_COOKIE, secret, max_age=OPEN_COOKIE_SECONDS, httponly=True, samesite="strict", secure=site.secure
    )
    return response


def _own_path(to: str) -> str:
    """`to` where it is a path of this server; an address elsewhere becomes the first page."""
    parts = urlsplit(to)
    return to if to.startswith("/") and not to.startswith("//") and "\\" not in to and not parts.netloc else "/"
