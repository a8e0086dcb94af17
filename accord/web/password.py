"""Changing one's own password: the present one is asked for, guesses are limited, and all other sessions end.

Implements the page and its form. Leaves out signing in (`entry`), whose limit on guesses it shares.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from accord.web.callers import Caller, CurrentSite, Person
from accord.web.entry import LONGEST_PASSWORD, SHORTEST_PASSWORD, refuse_haste
from accord.web.pages import render_page
from accord.web.site import Site, hash_secret

router = APIRouter(include_in_schema=False)


@router.get("/password", response_class=HTMLResponse)
def show_form(request: Request, site: CurrentSite, caller: Person, changed: bool = False) -> Response:
    """The form; where no account is asked for there is no password to change."""
    if not site.accounts:
        return RedirectResponse("/", 303)
    return render_page(request, "password.html.j2", caller, problem="", changed=changed)


@router.post("/password", response_class=HTMLResponse)
def change_password(
    request: Request,
    site: CurrentSite,
    caller: Person,
    present: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
    password: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
    again: Annotated[str, Form(max_length=LONGEST_PASSWORD)],
) -> Response:
    """Replace the password and end every other session and token of this person.

    Raises:
        HTTPException: 403, a program's token cannot take an account over.
    """
    if not site.accounts or caller.way != "cookie":
        raise HTTPException(403, "A password is changed by its owner, signed in.")
    address = request.client.host if request.client else "unknown"
    if haste := refuse_haste(site, caller.name, address):
        status, problem, headers = 429, haste.words, {"retry-after": str(haste.seconds)}
    else:
        status, problem, headers = 422, _find_problem(site, caller, address, present, password, again), {}
    if problem:
        shown = render_page(request, "password.html.j2", caller, status=status, problem=problem, changed=False)
        shown.headers.update(headers)
        return shown
    site.name_limiter.forget(caller.name.lower())
    kept = hash_secret("web", caller.secret)
    site.people.change_password(caller.name, site.passwords.hash(password), keep_session=kept)
    return RedirectResponse("/password?changed=true", 303)


def _find_problem(site: Site, caller: Caller, address: str, present: str, password: str, again: str) -> str:
    """Why the password stays as it is; empty where it may change. A wrong guess of the present one is counted."""
    if not site.passwords.verify(present, site.people.password_hash(caller.name) or site.no_hash):
        site.name_limiter.record_failure(caller.name.lower())
        site.address_limiter.record_failure(address)
        return "That is not your present password."
    if len(password) < SHORTEST_PASSWORD:
        return f"A password has at least {SHORTEST_PASSWORD} characters."
    return "" if password == again else "The two new passwords are not the same."
