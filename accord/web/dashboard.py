"""The owner's view of the loop: rounds with verdicts and live curves, the report, samples to browse and search.

Implements the pages on what `rounds`, `summaries` and `samples` read. It never blocks the loop. Leaves out statistics
of votes (`worth`).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from accord.web.callers import Caller, CurrentSite, Owner
from accord.web.curves import draw_curve, name_curve, scale_curve
from accord.web.pages import render_page, render_template, say_ago, say_number
from accord.web.rounds import Curve, RoundView, list_rounds, read_curves, read_round
from accord.web.samples import AFTER, BEFORE, BEST, CHANGE, NUMBERS, Search, list_sample_sources, search_samples
from accord.web.security import REPORT_POLICY
from accord.web.site import Site
from accord.web.summaries import list_summaries

CURVES_FIRST = 8
SAMPLES_A_PAGE = 10

router = APIRouter(include_in_schema=False)


@router.get("/dashboard", response_class=HTMLResponse)
def show_dashboard(request: Request, site: CurrentSite, caller: Owner, round: int = 0) -> HTMLResponse:
    """All rounds, and one of them whole: what is missing, what is done, curves. Where none is named (0), it is the
    newest, also when another begins while somebody looks."""
    if round and _find_round(site, round) is None:
        raise HTTPException(404, "That round has not begun.")
    return render_page(request, "dashboard.html.j2", caller, shown=round, body=_render_round(site, round, caller))


@router.get("/dashboard/{number}/body", response_class=HTMLResponse)
def show_round_body(site: CurrentSite, caller: Owner, number: int) -> HTMLResponse:
    """The part of the dashboard that changes while it trains, as HTML."""
    return HTMLResponse(_render_round(site, number, caller))


@router.get("/dashboard/{number}/live")
def tell_round(site: CurrentSite, caller: Owner, number: int) -> dict[str, Any]:
    """The numbers and lines of that part, as JSON: `texts` by name, `curves` by stage/metric, and the `shape` of all
    else; where that is another than the page has, the page asks for the part anew."""
    view = _find_round(site, number)
    curves = read_curves(view.folder) if view else []
    return {
        "shape": _name_shape(site, view, curves),
        "texts": _write_texts(site, view, curves),
        "curves": {name_curve(curve): scale_curve(curve).to_dict() for curve in curves},
    }


def _find_round(site: Site, number: int) -> RoundView | None:
    """The round of that number, the newest for 0; None where it has not begun."""
    if not number:
        return next(iter(list_rounds(site.workspace)), None)
    folder = site.workspace.root / "rounds" / f"{number:03d}"
    return read_round(folder) if number > 0 and folder.is_dir() else None


def _render_round(site: Site, number: int, caller: Caller) -> str:
    view = _find_round(site, number)
    curves = read_curves(view.folder) if view else []
    first = [draw_curve(curve) for curve in curves[:CURVES_FIRST]]
    rest = [draw_curve(curve) for curve in curves[CURVES_FIRST:]]
    return render_template(
        "round.html.j2",
        view=view,
        rounds=list_summaries(site.workspace),
        shape=_name_shape(site, view, curves),
        texts=_write_texts(site, view, curves),
        own=site.queue.progress(round=view.number if view else 0),
        csrf=caller.csrf,
        first=first,
        rest=rest,
        source=site.config.feedback.source,
    )


def _write_texts(site: Site, view: RoundView | None, curves: list[Curve]) -> dict[str, str]:
    """What changes from one moment to the next, in words."""
    progress = site.queue.progress()
    active = [person for person in site.people.list() if person.status == "active"]
    newest = max(curves, key=lambda curve: curve.points[-1][0], default=None) if view and view.live else None
    at = f"{newest.stage.replace('_', ' ')}, {newest.step} {newest.points[-1][0]:.0f}" if newest else ""
    return {
        "votes": say_number(site.store.count(current=True)),
        "missing": say_number(progress.missing),
        "leased": say_number(progress.leased),
        "surplus": say_number(progress.surplus),
        "people": str(len(active)),
        "at": at,
        "written": f"last written {_say_since(view)}" if view and view.stages and not view.has_report else "",
    }


def _say_since(view: RoundView) -> str:
    seconds = view.seconds_since_change
    return f"{seconds:.0f} s ago" if seconds < 90 else say_ago(view.changed_at)


def _name_shape(site: Site, view: RoundView | None, curves: list[Curve]) -> str:
    """A hash of everything on the page but numbers that move: which curves, stages, warnings and rounds there are."""
    own = site.queue.progress(round=view.number) if view else None
    parts = [
        [name_curve(curve) for curve in curves],
        [done.key for done in view.stages] if view else [],
        [view.warnings, view.live, view.has_report] if view else [],
        [one.number for one in list_rounds(site.workspace)],
        [own.missing, own.cast, own.unreachable] if own else [],
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@router.post("/dashboard/{number}/close")
def close_round(site: CurrentSite, caller: Owner, number: int) -> RedirectResponse:
    """The votes there are suffice: nothing more of the round is asked, and the loop goes on."""
    site.queue.close_round(number, caller.name)
    return RedirectResponse(f"/dashboard?round={number}", 303)


@router.post("/dashboard/{number}/reopen")
def reopen_round(site: CurrentSite, caller: Owner, number: int) -> RedirectResponse:
    """Takes that back, as long as the loop has not gone on."""
    site.queue.reopen_round(number, caller.name)
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
    request: Request,
    site: CurrentSite,
    caller: Owner,
    source: str = "",
    q: Annotated[str, Query(max_length=200)] = "",
    who: str = "",
    number: str = "",
    low: str = "",
    high: str = "",
    ending: Literal["", "finished", "cut"] = "",
    order: Literal["", "high", "low"] = "",
    page: int = 1,
) -> HTMLResponse:
    """Samples of a round, or of all (`source=all`), ten a page, in which `Search` finds what is looked for."""
    sources = list_sample_sources(site.workspace)
    chosen = source if source in sources or source == "all" else next(iter(sources), "")
    wanted = Search(
        words=q,
        who=who if who in (BEFORE, AFTER, BEST, CHANGE) else "",
        number=number if number in NUMBERS else "",
        low=_read_number(low),
        high=_read_number(high),
        ending=ending,
        order=order,
    )
    found = search_samples(sources if chosen == "all" else {chosen: sources[chosen]} if chosen else {}, wanted)
    pages = max(1, -(-len(found) // SAMPLES_A_PAGE))
    page = min(max(1, page), pages)
    asked = {"source": chosen, "q": q, "who": wanted.who, "number": wanted.number, "low": low, "high": high}
    return render_page(
        request,
        "samples.html.j2",
        caller,
        sources=list(sources),
        chosen=chosen,
        wanted=wanted,
        numbers=NUMBERS,
        names=(BEFORE, AFTER, BEST, CHANGE),
        query=urlencode({**asked, "ending": ending, "order": order}),
        page=page,
        pages=pages,
        found=len(found),
        samples=found[(page - 1) * SAMPLES_A_PAGE : page * SAMPLES_A_PAGE],
    )


def _read_number(text: str) -> float | None:
    """A bound of a form's number field; None where it is empty or no number."""
    try:
        return float(text)
    except ValueError:
        return None
