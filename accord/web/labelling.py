"""The labelling page and what its module asks for: items under a lease, answers, leases given back.

Implements the three calls of label.js on top of the queue. An answer is acknowledged after it is committed, and by its
own id, so that one sent twice counts once. Leaves out what an answer does to the votes (`feedback.queue`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accord.errors import DataError
from accord.feedback.answering import Answer
from accord.feedback.items import NewItem
from accord.feedback.queue import Queue
from accord.types import Message, Prompt
from accord.web.callers import CurrentSite, Person, Sender
from accord.web.items import LETTERS, view_item
from accord.web.pages import render_page
from accord.web.site import GLANCE_SECONDS, Site

SKIP_REASONS = (
    ("1", "I do not know enough to judge this"),
    ("2", "I would rather not read this"),
    ("3", "The question makes no sense"),
    ("4", "It is in a language I do not read"),
)
FLAG_REASONS = (
    ("1", "harmful or dangerous"),
    ("2", "hateful or insulting"),
    ("3", "sexual"),
    ("4", "private data of a person"),
    ("5", "broken or unreadable"),
)
MOST_LEASES, MOST_ANSWERS = 100, 200

router = APIRouter()


class LabelAnswer(BaseModel):
    """One answer of the labelling page. `id` is drawn in the browser; the rest depends on `kind` (docs/http-api.md)."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    id: str = Field(pattern=r"^[0-9a-f-]{36}$")
    kind: Literal["comparison", "ranking", "rating", "skip", "flag", "undo"]
    lease: str = Field(max_length=100)
    choice: Literal["a", "b", "tie", "both_bad"] | None = None
    strength: int | None = Field(None, ge=1, le=7)
    ranks: list[int] | None = Field(None, max_length=len(LETTERS))
    rating: float | None = Field(None, ge=0, le=1)
    position: int = Field(0, ge=0, lt=len(LETTERS))
    reason: str = Field("", max_length=500)
    edit: str | None = Field(None, max_length=50_000)
    edit_position: int | None = Field(None, ge=0, lt=len(LETTERS))
    action: str = Field("", max_length=100)
    seconds: float | None = Field(None, ge=0)
    guidelines: str | None = Field(None, max_length=100)


class Result(BaseModel):
    """What became of one answer: `stored` false means never to send it again, `reason` why."""

    id: str
    stored: bool
    reason: str = ""


class Results(BaseModel):
    """One result for each answer, in their order."""

    results: list[Result]


class LeaseRequest(BaseModel):
    """How many items to give, and which leases this page still holds."""

    count: int = Field(ge=0, le=MOST_LEASES)
    have: list[str] = Field(default=[], max_length=MOST_LEASES)
    holder: str | None = Field(None, max_length=36, description="A UUID of the page, by which it can say goodbye.")


class Turn(BaseModel):
    """One turn of a chat."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=8000)


class ChatRequest(BaseModel):
    """The conversation so far; its last turn is the annotator's."""

    messages: list[Turn] = Field(min_length=1, max_length=40)


class ReleaseRequest(BaseModel):
    """Leases that nobody will answer here."""

    leases: list[str] = Field(max_length=MOST_LEASES)
    holder: str | None = Field(None, max_length=36, description="The page that closes; others keep their own.")


@router.get("/label", response_class=HTMLResponse, include_in_schema=False)
def show_labelling(request: Request, site: CurrentSite, caller: Person) -> HTMLResponse:
    """The page where people judge."""
    guidelines = site.guidelines.latest()
    return render_page(
        request,
        "label.html.j2",
        caller,
        settings={
            "person": caller.name,
            "prefetch": site.config.label.prefetch,
            "guidelines": guidelines.version if guidelines else "",
        },
        guidelines=guidelines,
        skip_reasons=SKIP_REASONS,
        flag_reasons=FLAG_REASONS,
        letters=LETTERS,
    )


@router.post("/api/label/lease")
async def lease_items(wanted: LeaseRequest, site: CurrentSite, caller: Person) -> dict[str, Any]:
    """More items for this person, and how far the work is. Leases that the page still holds are renewed.

    Items that are theirs but not in `have` come first: after a reload they are shown again. `lost` are those of `have`
    that ran out and went to somebody else. One such call at a time: it is prefetched and can wait, an answer cannot.
    """
    async with site.leasing:
        return await run_in_threadpool(_lease, wanted, site, caller.name)


def _lease(wanted: LeaseRequest, site: Site, name: str) -> dict[str, Any]:
    """The work of `lease_items`."""
    seconds = float(site.config.label.lease_seconds)
    queue = site.queue
    again = [item for item in queue.held(name) if item.lease_id not in wanted.have][: wanted.count]
    holding = [*wanted.have, *(item.lease_id for item in again)]
    live = set(queue.renew(name, holding, lease_seconds=seconds, holder=wanted.holder)) if holding else set()
    again = [item for item in again if item.lease_id in live]
    missing = wanted.count - len(again)
    fresh = queue.lease(name, missing, lease_seconds=seconds, holder=wanted.holder) if missing else []
    guidelines = site.guidelines.latest()
    return {
        "items": [view_item(item) for item in (*again, *fresh)],
        "lost": [lease for lease in wanted.have if lease not in live],
        "progress": say_progress(site, name, fresh=not (wanted.have or again or fresh)),
        "guidelines": guidelines.version if guidelines else "",
    }


def say_progress(site: Site, name: str, *, fresh: bool) -> dict[str, int]:
    """`mine`: judged by this person; `left`: votes still wanted from anyone; `busy`: leases in anyone's hands.

    fresh: counted now, for a page that has nothing to show and says whether all is done.
    """
    left, busy = site.glance(0.0 if fresh else GLANCE_SECONDS)
    return {"mine": site.queue.done_by(name), "left": left, "busy": busy}


@router.post("/api/label/chat")
def open_chat(wanted: ChatRequest, site: CurrentSite, caller: Person) -> dict[str, Any]:
    """Two answers of the newest policy to the annotator's own prompt, as an item under a lease."""
    if site.chat is None:
        raise HTTPException(404, "This project has no live chat; the owner can set label.chat.")
    prompt = Prompt(messages=tuple(Message(turn.role, turn.content) for turn in wanted.messages))
    answers = site.chat.answer(prompt)
    item = NewItem("comparison", prompt, answers, overlap=1, source="chat")
    leased = site.queue.open_chat(caller.name, item, lease_seconds=float(site.config.label.lease_seconds))
    return view_item(leased)


@router.post("/api/label/answers", response_model=Results)
def take_answers(
    answers: Annotated[list[dict[str, Any]], Body(embed=True, max_length=MOST_ANSWERS)],
    site: CurrentSite,
    caller: Sender,
) -> Results:
    """Store answers, each in a transaction of its own, and say of each what became of it.

    An answer that can never be stored is refused by itself and does not hold up the others.
    """
    return Results(results=[_take(site.queue, caller.name, row) for row in answers])


def _take(queue: Queue, name: str, row: dict[str, Any]) -> Result:
    """What became of one answer."""
    try:
        answer = LabelAnswer.model_validate(row)
        _store(queue, name, answer)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        told_id = str(row.get("id"))[:100].encode(errors="replace").decode()  # no reply can hold half a surrogate pair
        return Result(id=told_id, stored=False, reason=f"{problem['loc'][0]}: {problem['msg']}")
    except DataError as error:
        return Result(id=answer.id, stored=False, reason=error.message)
    return Result(id=answer.id, stored=True)


def _store(queue: Queue, name: str, answer: LabelAnswer) -> None:
    """Hand `answer` to the queue by its kind."""
    match answer.kind:
        case "skip":
            queue.skip(name, answer.lease, answer.id, answer.reason or "other")
        case "flag":
            queue.flag(name, answer.lease, answer.id, answer.position, answer.reason or "other")
        case "undo":
            queue.undo(name, answer.action, answer.id)
        case _:
            queue.submit(
                Answer(
                    client_id=answer.id,
                    annotator=name,
                    lease_id=answer.lease,
                    choice=answer.choice,
                    strength=answer.strength,
                    ranks=tuple(answer.ranks) if answer.ranks is not None else None,
                    rating=answer.rating,
                    edit=answer.edit,
                    edit_place=find_edited_place(answer),
                    seconds=answer.seconds,
                    guideline_version=answer.guidelines,
                )
            )


def find_edited_place(answer: LabelAnswer) -> int | None:
    """Which answer an edit is measured against: the one it began from, else the one that was judged best."""
    if answer.edit is None or answer.edit_position is not None:
        return answer.edit_position
    if answer.ranks:
        return answer.ranks.index(min(answer.ranks))
    return 1 if answer.choice == "b" else 0


@router.post("/api/label/release")
def release_leases(wanted: ReleaseRequest, site: CurrentSite, caller: Person) -> dict[str, int]:
    """Give unanswered leases back at once, for a colleague who waits."""
    return {"released": site.queue.release(caller.name, wanted.leases, holder=wanted.holder)}
