"""The owner's page of people: invite, pause, resume, change a role, delete, make tokens; and the guidelines.

Implements the forms. Deleting someone keeps their votes. Leaves out what these changes mean in the database
(`feedback.people`), and sign-in (`entry`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from accord.feedback.log import write_moment
from accord.web.callers import Caller, CurrentSite, Owner, Person, make_secret
from accord.web.pages import render_page
from accord.web.rendering import render_markdown
from accord.web.site import Site, hash_secret

INVITATION_DAYS = 14
TOKEN_DAYS = 365
Role = Literal["annotator", "owner"]

router = APIRouter(include_in_schema=False)


@router.get("/people", response_class=HTMLResponse)
def show_people(request: Request, site: CurrentSite, caller: Owner) -> HTMLResponse:
    """Everyone, and the invitations that are open."""
    return _page(request, site, caller)


def _page(request: Request, site: Site, caller: Caller, *, link: str = "", token: str = "") -> HTMLResponse:
    counts = site.store.annotators()
    people = [(person, counts.get(person.name, 0)) for person in site.people.list()]
    now = write_moment()
    invitations = [one for one in site.people.invitations() if not one.closed_at and one.expires_at > now]
    return render_page(
        request, "people.html.j2", caller, people=people, invitations=invitations, link=link, token=token
    )


@router.post("/people/invitations", response_class=HTMLResponse)
def invite(request: Request, site: CurrentSite, caller: Owner, role: Annotated[Role, Form()]) -> HTMLResponse:
    """Make a link that lets one person in, once. It is shown now and never again: only its hash is kept."""
    link = f"{site.link}/invitations/{make_invitation(site, role, caller.name)}"
    return _page(request, site, caller, link=link)


def make_invitation(site: Site, role: Role, actor: str) -> str:
    """The secret part of a new invitation link."""
    secret = make_secret()
    expires_at = datetime.now(UTC) + timedelta(days=INVITATION_DAYS)
    site.people.invite(hash_secret("invitation", secret), role=role, expires_at=expires_at, actor=actor)
    return secret


@router.post("/people/invitations/revoke")
def revoke_invitation(site: CurrentSite, caller: Owner, invitation: Annotated[str, Form()]) -> RedirectResponse:
    """Make an open invitation worthless."""
    site.people.revoke_invitation(invitation, actor=caller.name)
    return RedirectResponse("/people", 303)


@router.post("/people/tokens", response_class=HTMLResponse)
def make_token(
    request: Request, site: CurrentSite, caller: Owner, name: Annotated[str, Form(max_length=60)]
) -> HTMLResponse:
    """A token under which a program sends votes as `name`. It is shown now and never again."""
    person = site.people.find(name.strip()) or site.people.add(name.strip(), actor=caller.name)
    secret = make_secret()
    expires_at = datetime.now(UTC) + timedelta(days=TOKEN_DAYS)
    site.people.open_session(hash_secret("api", secret), person.name, expires_at=expires_at)
    return _page(request, site, caller, token=secret)


@router.post("/people/change")
def change_person(
    site: CurrentSite,
    caller: Owner,
    name: Annotated[str, Form()],
    action: Annotated[Literal["pause", "resume", "delete", "owner", "annotator", "sign-out"], Form()],
) -> RedirectResponse:
    """Pause, resume, delete, change the role of, or sign out everywhere (tokens too) one person."""
    if name == caller.name and action != "sign-out":
        raise HTTPException(409, "You cannot take your own key away; another owner can.")
    match action:
        case "pause":
            site.people.pause(name, actor=caller.name)
        case "resume":
            site.people.resume(name, actor=caller.name)
        case "delete":
            site.people.delete(name, actor=caller.name)
        case "sign-out":
            site.people.close_sessions(name, actor=caller.name)
        case _:
            site.people.set_role(name, action, actor=caller.name)
    return RedirectResponse("/people", 303)


@router.get("/guidelines", response_class=HTMLResponse)
def show_guidelines(request: Request, site: CurrentSite, caller: Person, version: str = "") -> HTMLResponse:
    """What annotators are told; the owner writes the next version here."""
    shown = site.guidelines.find(version) if version else site.guidelines.latest()
    if version and shown is None:
        raise HTTPException(404, "There is no such version.")
    versions = list(reversed(site.guidelines.list()))
    return render_page(request, "guidelines.html.j2", caller, shown=shown, versions=versions)


@router.get("/guidelines/text", response_class=HTMLResponse)
def show_guidelines_text(site: CurrentSite, caller: Person) -> HTMLResponse:
    """The latest guidelines as a part of a page, for a labelling page that is open while they change."""
    latest = site.guidelines.latest()
    return HTMLResponse(render_markdown(latest.text) if latest else "")


@router.post("/guidelines")
def publish_guidelines(
    site: CurrentSite, caller: Owner, text: Annotated[str, Form(max_length=100_000)]
) -> RedirectResponse:
    """A new version; everyone who labels is shown it first."""
    site.guidelines.publish(text, author=caller.name)
    return RedirectResponse("/guidelines", 303)
