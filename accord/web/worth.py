"""What the votes are worth: the owner's page of agreement, people, rounds, disagreements and verdicts.

Implements the page, of all votes or of one round's, the memory of tables that take seconds to compute, and the form of
a verdict. Leaves out the statistics (`feedback.worth`) and what a verdict does (`feedback.adjudication`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from accord.feedback.adjudication import Verdict, adjudicate
from accord.feedback.disagreements import list_disagreements
from accord.feedback.judgements import Judgement
from accord.feedback.worth import Worth, compute_worth
from accord.web.callers import CurrentSite, Owner
from accord.web.items import LETTERS
from accord.web.pages import render_page
from accord.web.site import Site
from accord.web.summaries import list_summaries

RESAMPLES = 200
SHOWN_DISAGREEMENTS = 20

router = APIRouter(include_in_schema=False)


@dataclass
class _Remembered:
    """The last tables by round (0: all votes), and how many votes they were made from: votes are only ever added."""

    votes: int = -1
    site: Site | None = None
    worths: dict[int, Worth] = field(default_factory=dict)


_LAST = _Remembered()
_LOCK = Lock()


def recall_worth(site: Site, number: int = 0) -> Worth:
    """The table of a round's votes, or of all (0); computed anew where a vote was added since."""
    with _LOCK:
        votes = site.store.count()
        if _LAST.votes != votes or _LAST.site is not site:
            _LAST.votes, _LAST.site, _LAST.worths = votes, site, {}
        if number not in _LAST.worths:
            _LAST.worths[number] = _compute(site, number)
        return _LAST.worths[number]


def _compute(site: Site, number: int) -> Worth:
    seed, source = site.config.project.seed, None
    if number and not site.queue.progress(round=number).items:  # simulated annotators pass by the queue
        (summary,) = [one for one in list_summaries(site.workspace) if one.view.number == number]
        source = f"votes/{summary.votes_key}"
    return compute_worth(site.database, round=number or None, source=source, seed=seed, resamples=RESAMPLES)


@router.get("/worth", response_class=HTMLResponse)
def show_worth(request: Request, site: CurrentSite, caller: Owner, round: int = 0) -> HTMLResponse:
    """Agreement, people, what more votes would give, the rounds, and the items that people disagree on most."""
    summaries = list_summaries(site.workspace)
    if round and round not in {one.view.number for one in summaries}:
        raise HTTPException(404, "That round has not begun.")
    return render_page(
        request,
        "worth.html.j2",
        caller,
        worth=recall_worth(site, round),
        rounds=[(one, site.queue.progress(round=one.view.number)) for one in summaries],
        shown=round,
        simulated=site.config.feedback.source == "simulated",
        progress=site.queue.progress(round=round or None),
        disagreements=[
            (item, [say_judgement(judgement) for judgement in item.judgements], str(uuid4()))
            for item in list_disagreements(site.database, round=round or None, limit=SHOWN_DISAGREEMENTS)
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
