"""The app: routers, the guard around them, and what an error looks like to a person and to a program.

Implements the order of the parts. Leaves out the routes (their modules) and the server (`server`).
"""

from __future__ import annotations

import html
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

import accord
from accord.errors import AccordError, ConflictError, DataError, NotFoundError, RefusedError
from accord.web import api, dashboard, entry, labelling, password, people, worth
from accord.web.pages import render_page
from accord.web.security import LOOPBACK_NAMES, Guard
from accord.web.site import Site

STATUS_OF_ERRORS: dict[type[AccordError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    RefusedError: 403,
    DataError: 422,
}
"""What an error of the rooms below means to a client; any other is 503: the request was fine, the server is not."""


class Problem(BaseModel):
    """A field that does not fit: its place in the request, and why."""

    where: str
    message: str


class Refusal(BaseModel):
    """Why a call was refused, and what mends it where that is known."""

    detail: str | list[Problem]
    mend: str = ""


def create_app(site: Site) -> FastAPI:
    """The app for one project. Its OpenAPI document is at /openapi.json, and as a page at /api."""
    app = FastAPI(
        title="Accord",
        version=accord.__version__,
        description="Votes from anywhere into an Accord project, and the labelling queue.",
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Refusal} for status in (401, 403, 404, 409, 422, 503)},
    )
    app.state.site = site
    for module in (api, labelling, entry, password, people, worth, dashboard):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(packages=[("accord.web", "static")]), name="static")
    app.add_exception_handler(StarletteHTTPException, _as_handler(answer_http_error))
    app.add_exception_handler(RequestValidationError, _as_handler(answer_invalid))
    app.add_exception_handler(AccordError, _as_handler(answer_accord_error))
    app.add_middleware(Guard, names=list_names(site))
    return app


def list_names(site: Site) -> frozenset[str]:
    """The host names that the app answers to: loopback's alone where no account is asked for, so that a foreign page
    whose name suddenly means this machine (DNS rebinding) gets nothing; with `label.url` that name; otherwise any."""
    if site.config.label.url:
        return frozenset({urlsplit(site.config.label.url).hostname or ""})
    return LOOPBACK_NAMES if site.config.label.host in LOOPBACK_NAMES else frozenset()


def answer_http_error(request: Request, error: StarletteHTTPException) -> Response:
    """A page for a person (sign-in where nobody is known), JSON for a program."""
    detail = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
    if not _wants_page(request):
        return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)
    if error.status_code == 401:
        return RedirectResponse(f"/sign-in?to={quote(request.url.path)}", 303)
    return _error_page(request, error.status_code, detail)


def answer_invalid(request: Request, error: RequestValidationError) -> Response:
    """Fields that do not fit: 422, each problem with its place."""
    problems = [{"where": ".".join(map(str, one["loc"])), "message": one["msg"]} for one in error.errors()]
    if _wants_page(request):
        return _error_page(request, 422, "; ".join(f"{one['where']}: {one['message']}" for one in problems)[:500])
    return JSONResponse({"detail": problems}, 422)


def answer_accord_error(request: Request, error: AccordError) -> Response:
    """What a room below refuses, with its mend."""
    status = next((code for kind, code in STATUS_OF_ERRORS.items() if isinstance(error, kind)), 503)
    if _wants_page(request):
        return _error_page(request, status, f"{error.message[:1].upper()}{error.message[1:]}.")
    return JSONResponse({"detail": error.message, "mend": error.mend}, status)


def _error_page(request: Request, status: int, detail: str) -> HTMLResponse:
    try:
        return render_page(request, "error.html.j2", None, status=status, code=status, detail=detail)
    except UnicodeEncodeError:
        return HTMLResponse(html.escape(HTTPStatus(status).phrase), status)


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith("/api/") and request.url.path != "/openapi.json"


def _as_handler(handler: Callable[..., Response]) -> Callable[..., Response]:
    return handler
