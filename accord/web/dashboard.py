"""The owner's view of the loop: rounds with live curves, the report, samples to browse and search.

Implements the pages on what `rounds` reads. It never blocks the loop. Leaves out statistics of votes (`worth`).
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from accord.web.callers import Caller, CurrentSite, Owner
from accord.web.curves import draw_curve
from accord.web.pages import render_page, render_template
from accord.web.rounds import list_rounds, list_sample_sources, read_curves, read_round, read_samples, search_samples
from accord.web.security import REPORT_POLICY
from accord.web.site import Site

CURVES_FIRST = 8
SAMPLES_A_PAGE = 10

router = APIRouter(include_in_schema=False)


@router.get("/dashboard", response_class=HTMLResponse)
def show_dashboard(request: Request, site: CurrentSite, caller: Owner, round: int = 0) -> HTMLResponse:
    """One round: what is missing, what is done, curves. The newest one, where none is named."""
    rounds = list_rounds(site.workspace)
    numbers = [view.number for view in rounds]
    if round and round not in numbers:
        raise HTTPException(404, "That round has not begun.")
    shown = round or (numbers[0] if numbers else 0)
    return render_page(
        request, "dashboard.html.j2", caller, numbers=numbers, shown=shown, body=_render_round(site, shown, caller)
    )


@router.get("/dashboard/{number}/body", response_class=HTMLResponse)
def show_round_body(site: CurrentSite, caller: Owner, number: int) -> HTMLResponse:
    """The part of the dashboard that changes while it trains."""
    return HTMLResponse(_render_round(site, number, caller))


def _render_round(site: Site, number: int, caller: Caller) -> str:
    progress, own = site.queue.progress(), site.queue.progress(round=number)
    folder = site.workspace.root / "rounds" / f"{number:03d}"
    view = read_round(folder) if number and folder.is_dir() else None
    curves = read_curves(folder) if view else []
    first = [draw_curve(curve) for curve in curves[:CURVES_FIRST]]
    rest = [draw_curve(curve) for curve in curves[CURVES_FIRST:]]
    return render_template(
        "round.html.j2",
        view=view,
        progress=progress,
        own=own,
        csrf=caller.csrf,
        votes=site.store.count(current=True),
        people=len([person for person in site.people.list() if person.status == "active"]),
        first=first,
        rest=rest,
        caller=caller,
        source=site.config.feedback.source,
    )


@router.post("/dashboard/{number}/close")
def close_round(site: CurrentSite, caller: Owner, number: int) -> RedirectResponse:
    """The votes there are suffice: nothing more of the round is asked, and the loop goes on."""
    site.queue.close_round(number, caller.name)
    return RedirectResponse(f"/dashboard?round={number}", 303)


@router.get("/dashboard/{number}/report", response_class=HTMLResponse)
def show_report(request: Request, site: CurrentSite, caller: Owner, number: int) -> HTMLResponse:
    """The round's report inside the app."""
    folder = site.workspace.root / "rounds" / f"{number:03d}"
    if not (folder / "report.html").is_file():
        raise HTTPException(404, "This round has no report yet.")
    return render_page(request, "report.html.j2", caller, number=number)


@router.get("/dashboard/{number}/report.html", response_class=HTMLResponse)
def send_report(site: CurrentSite, caller: Owner, number: int) -> HTMLResponse:
    """report.html itself, in a sandbox: its scripts run, and can reach nothing of the app."""
    path = site.workspace.root / "rounds" / f"{number:03d}" / "report.html"
    if not path.is_file():
        raise HTTPException(404, "This round has no report yet.")
    headers = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}
    return HTMLResponse(path.read_text(encoding="utf-8"), headers=headers)


@router.get("/samples", response_class=HTMLResponse)
def show_samples(
    request: Request, site: CurrentSite, caller: Owner, source: str = "", q: str = "", page: int = 1
) -> HTMLResponse:
    """Samples of a round, ten a page; `q` searches prompts and answers."""
    sources = list_sample_sources(site.workspace)
    chosen = source if source in sources else next(iter(sources), "")
    found = search_samples(read_samples(sources[chosen]), q) if chosen else []
    pages = max(1, -(-len(found) // SAMPLES_A_PAGE))
    page = min(max(1, page), pages)
    return render_page(
        request,
        "samples.html.j2",
        caller,
        sources=list(sources),
        chosen=chosen,
        q=q,
        page=page,
        pages=pages,
        found=len(found),
        samples=found[(page - 1) * SAMPLES_A_PAGE : page * SAMPLES_A_PAGE],
    )
