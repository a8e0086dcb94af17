"""What the votes are worth: the owner's page of agreement, people, disagreements and verdicts.

Implements the page, the memory of a table that takes seconds to compute, and the form of a verdict. Leaves out the
statistics (`feedback.worth`) and what a verdict does (`feedback.adjudication`).
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from accord.feedback.adjudication import Verdict, adjudicate
from accord.feedback.disagreements import list_disagreements
from accord.feedback.judgements import Judgement
from accord.feedback.worth import Worth, compute_worth
from accord.web.callers import CurrentSite, Owner
from accord.web.items import LETTERS
from accord.web.pages import render_page
from accord.web.site import Site

RESAMPLES = 200
SHOWN_DISAGREEMENTS = 20

router = APIRouter(include_in_schema=False)


@dataclass
class _Remembered:
    """The last table, and how many votes it was made from: votes are only ever added."""

    votes: int = -1
    site: Site | None = None
    worth: Worth | None = None


_LAST = _Remembered()
_LOCK = Lock()


def recall_worth(site: Site) -> Worth:
    """The table of all votes; computed anew where one was added since."""
    with _LOCK:
        votes = site.store.count()
        if _LAST.worth is None or _LAST.votes != votes or _LAST.site is not site:
            worth = compute_worth(site.database, seed=site.config.project.seed, resamples=RESAMPLES)
            _LAST.votes, _LAST.site, _LAST.worth = votes, site, worth
        return _LAST.worth


@router.get("/worth", response_class=HTMLResponse)
def show_worth(request: Request, site: CurrentSite, caller: Owner) -> HTMLResponse:
    """Agreement, people, what more votes would give, and the items that people disagree on most."""
    return render_page(
        request,
        "worth.html.j2",
        caller,
        worth=recall_worth(site),
        simulated=site.config.feedback.source == "simulated",
        progress=site.queue.progress(),
        disagreements=[
            (item, [say_judgement(judgement) for judgement in item.judgements], str(uuid4()))
            for item in list_disagreements(site.database, limit=SHOWN_DISAGREEMENTS)
        ],
        letters=LETTERS,
    )


def say_judgement(judgement: Judgement) -> tuple[str, str]:
    """(name, what they said) in the item's own order."""
    if judgement.rating is not None:
        return judgement.annotator, f"{judgement.rating:.2f}"
    if judgement.ranks is not None:
        places = sorted(range(len(judgement.ranks)), key=lambda place: judgement.ranks[place])  # type: ignore[index]
        return judgement.annotator, " › ".join(LETTERS[place] for place in places)
    words = {"a": "A is better", "b": "B is better", "tie": "equal", "both_bad": "both bad"}
    return judgement.annotator, words[judgement.choice or "tie"]


@router.post("/worth/verdicts")
def decide(
    site: CurrentSite,
    caller: Owner,
    item: Annotated[str, Form(max_length=100)],
    client_id: Annotated[str, Form(max_length=36)],
    choice: Annotated[Literal["a", "b", "tie", "both_bad"], Form()],
    note: Annotated[str, Form(max_length=2000)] = "",
) -> RedirectResponse:
    """The owner's verdict on an item; the votes stay as they are."""
    adjudicate(site.database, Verdict(client_id, caller.name, item, choice=choice, note=note.strip()))
    return RedirectResponse("/worth#disagreements", 303)
