"""The HTTP API: votes from elsewhere, such as a product's thumbs, items to judge, votes out; and its own page.

Implements the calls that a program makes with a token; docs/http-api.md shows them. A vote is what it is in a votes
file (docs/formats.md) and goes through the same reader and the same store. Leaves out the labelling page's calls
(`labelling`), which take a token as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from accord.errors import DataError
from accord.feedback.items import NewItem, Overlap
from accord.feedback.records import parse_completion, parse_prompt, require_different, vote_from_dict, vote_to_dict
from accord.types import Vote
from accord.web.callers import Caller, CurrentSite, Owner, Person
from accord.web.pages import render_page

MOST_VOTES, MOST_ITEMS = 1000, 1000

router = APIRouter()


class Added(BaseModel):
    """How many of those sent were new; the others were there already."""

    received: int
    added: int


class ItemRequest(BaseModel):
    """One thing to judge: a prompt and its answers, as in a votes file."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["comparison", "ranking", "rating"] = "comparison"
    prompt: Any = Field(description="A text, a list of messages, or an object with `text` or `messages`.")
    completions: list[Any] = Field(min_length=1, max_length=9, description="Texts, lists of messages, or objects.")
    overlap: int | None = Field(
        None, ge=1, le=100, description="How many people judge it; by default as the settings say."
    )
    gold: dict[str, Any] | None = Field(
        None, description="The known answer, `choice`, `ranks` or `rating`: a check, asked of everybody."
    )


class Status(BaseModel):
    """How far the labelling is."""

    items: int
    votes_wanted: int
    votes_missing: int
    leased: int
    votes: int


@router.post("/api/votes")
def add_votes(
    votes: Annotated[list[dict[str, Any]], Body(embed=True, max_length=MOST_VOTES)], site: CurrentSite, caller: Person
) -> Added:
    """Store votes, all or none. A vote that is there already, by its id, adds nothing, so a call may be repeated.

    An annotator's token votes as NAME, or as NAME/anything for the users behind a product; an owner's as anyone.
    """
    parsed = [_read_vote(row, number, caller) for number, row in enumerate(votes, 1)]
    return Added(received=len(parsed), added=site.store.add(parsed))


def _read_vote(row: dict[str, Any], number: int, caller: Caller) -> Vote:
    try:
        vote = vote_from_dict({"annotator": caller.name, **row}, "api")
        if vote.kind != "flag":
            require_different(vote.completions)
    except DataError as error:
        raise HTTPException(422, f"vote {number}: {error.message}") from error
    if not (caller.is_owner or vote.annotator == caller.name or vote.annotator.startswith(f"{caller.name}/")):
        raise HTTPException(403, f"vote {number}: this token votes as {caller.name!r} or {caller.name + '/...'!r}")
    if vote.simulated:
        raise HTTPException(422, f"vote {number}: simulated annotators vote in the loop")
    return vote


@router.get("/api/votes", response_class=StreamingResponse)
def read_votes(
    site: CurrentSite,
    caller: Owner,
    kind: Literal["comparison", "ranking", "rating", "flag"] | None = None,
    annotator: Annotated[str | None, Query(max_length=200)] = None,
    current: bool = True,
) -> StreamingResponse:
    """Votes as JSON lines, as `accord export` writes them. `current`: without those that a later one supersedes."""

    def lines() -> Iterator[str]:
        for vote in site.store.votes(kind, current=current, annotator=annotator):
            yield json.dumps(vote_to_dict(vote), ensure_ascii=False) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/api/items")
def add_items(
    items: Annotated[list[ItemRequest], Body(embed=True, max_length=MOST_ITEMS)], site: CurrentSite, caller: Owner
) -> Added:
    """Put things to judge into the queue. The same item twice is one."""
    fresh = [_read_item(item, number) for number, item in enumerate(items, 1)]
    label = site.config.label
    added = site.queue.add_items(
        fresh,
        round=0,
        seed=site.config.project.seed,
        actor=caller.name,
        overlap=Overlap(share=label.overlap_share, high=label.overlap),
        repeat_share=label.repeat_share,
    )
    return Added(received=len(fresh), added=added)


def _read_item(item: ItemRequest, number: int) -> NewItem:
    try:
        completions = tuple(parse_completion(value, f"answer {i}") for i, value in enumerate(item.completions, 1))
        require_different(completions)
        return NewItem(
            kind=item.kind,
            prompt=parse_prompt(item.prompt),
            completions=completions,
            overlap=item.overlap,
            gold=item.gold,
            source="api",
        )
    except DataError as error:
        raise HTTPException(422, f"item {number}: {error.message}") from error


@router.get("/api/status")
def read_status(site: CurrentSite, caller: Person) -> Status:
    """How many items there are, and how many votes are missing."""
    progress = site.queue.progress()
    return Status(
        items=progress.items,
        votes_wanted=progress.wanted,
        votes_missing=progress.missing,
        leased=progress.leased,
        votes=site.store.count(current=True),
    )


@router.get("/api", response_class=HTMLResponse, include_in_schema=False)
def show_api(request: Request, caller: Person) -> HTMLResponse:
    """The OpenAPI document as a page of our own: no request leaves this host."""
    document = request.app.openapi()
    calls = [
        (method.upper(), path, call, _describe_body(call, document))
        for path, methods in document["paths"].items()
        for method, call in methods.items()
    ]
    return render_page(request, "api.html.j2", caller, calls=calls, link=str(request.base_url).rstrip("/"))


def _describe_body(call: dict[str, Any], document: dict[str, Any]) -> str:
    """The JSON schema of a call's body, with what it refers to put in its place; empty where it takes none."""
    content = call.get("requestBody", {}).get("content", {}).get("application/json")
    return json.dumps(_resolve(content["schema"], document, 0), indent=2, ensure_ascii=False) if content else ""


def _resolve(schema: Any, document: dict[str, Any], depth: int) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema and depth < 6:
            return _resolve(document["components"]["schemas"][schema["$ref"].split("/")[-1]], document, depth + 1)
        return {name: _resolve(value, document, depth + 1) for name, value in schema.items() if name != "title"}
    return [_resolve(value, document, depth + 1) for value in schema] if isinstance(schema, list) else schema
