"""Pages from templates: what each of them needs, set once.

Implements the template environment with escaping on, and the rendering of a page for whoever asks. Leaves out what
a page says.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from accord.web.callers import OPEN_COOKIE, Caller, make_secret
from accord.web.rendering import render_markdown
from accord.web.security import compute_csrf_token
from accord.web.site import Site

OPEN_COOKIE_SECONDS = 365 * 24 * 3600
ROLES = {"user": "Person", "assistant": "Assistant", "system": "Instructions to the assistant", "tool": "Tool"}
"""Who speaks in a turn, in words for people."""


@cache
def build_environment() -> Environment:
    """Jinja with escaping on; a name that a page was not given is an error, not an empty place."""
    environment = Environment(
        loader=PackageLoader("accord.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "markdown": render_markdown,
        "number": say_number,
        "signed": say_signed,
        "duration": say_duration,
        "ago": say_ago,
        "json_attribute": to_attribute,
    }
    environment.globals["roles"] = ROLES
    return environment


def render_template(name: str, **values: Any) -> Markup:
    """The template's HTML, for a part of a page."""
    return Markup(build_environment().get_template(name).render(**values))


def render_page(
    request: Request, template: str, caller: Caller | None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A whole page for `caller`; the first page of a browser that needs no account gets the cookie against forgery."""
    site: Site = request.app.state.site
    secret = caller.secret if caller else ""
    fresh = make_secret() if caller and not secret and caller.way == "cookie" and not site.accounts else ""
    html = (
        build_environment()
        .get_template(template)
        .render(
            site=site,
            project=site.config.project.name,
            caller=caller,
            path=request.url.path,
            csrf=compute_csrf_token(secret or fresh) if secret or fresh else "",
            **values,
        )
    )
    response = HTMLResponse(html, status)
    if fresh:
        response.set_cookie(
            OPEN_COOKIE, fresh, max_age=OPEN_COOKIE_SECONDS, httponly=True, samesite="strict", secure=site.secure
        )
    return response


def to_attribute(value: Any) -> str:
    """JSON for an attribute, keys in their order; the template escapes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def say_number(value: float | None, digits: int = 2) -> str:
    """`0.43`, `1,234`, or a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def say_signed(value: float | None, digits: int = 2) -> str:
    """`+0.43`, or `0.43` below zero with a true minus."""
    return say_number(value, digits) if value is None or value < 0 else f"+{say_number(value, digits)}"


def say_duration(seconds: float) -> str:
    """`0.4 s`, `51 s`, `5 min 32 s`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def say_ago(moment: datetime | str, now: datetime | None = None) -> str:
    """`just now`, `5 min ago`, `3 h ago`, or the day."""
    if isinstance(moment, str):
        if not moment:
            return ""
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 48 * 3600 else f"{moment:%Y-%m-%d}"
