"""How numbers and model text are put into words on the report's page.

Implements rounding, intervals in words, durations and sizes, and the cleaning of untrusted text. Leaves out any
markup of the page itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

NOT_MEASURED = "not measured"
MINUS = "\N{MINUS SIGN}"

# Nothing here can link, load, run or restyle: a completion may say anything.
_TAGS = {"p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"}
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable(
    ["link", "image", "autolink", "reference", "heading", "lheading"]
)


def say_number(value: float | int | None, digits: int = 2, *, sign: bool = False) -> str:
    """`value` with `digits` decimals (whole numbers with none), a true minus, or 'not measured'."""
    if value is None:
        return NOT_MEASURED
    text = f"{value:+,}" if isinstance(value, int) else f"{value:+,.{digits}f}"
    if not text.strip("+-0.,"):  # a zero has no sign
        return text[1:]
    text = text.replace("-", MINUS)
    return text if sign or text.startswith(MINUS) else text[1:]


def say_percent(share: float | None, digits: int = 0, *, sign: bool = False) -> str:
    """A share in [0, 1] as a percentage, or 'not measured'."""
    return NOT_MEASURED if share is None else f"{say_number(100 * float(share), digits, sign=sign)} %"


def say_interval(
    estimate: Mapping[str, Any] | None, digits: int = 2, *, percent: bool = False, sign: bool = False
) -> str:
    """'0.31 to 0.53', '64 to 77 %', or why there is none."""
    if estimate is None:
        return NOT_MEASURED
    if estimate["low"] is None or estimate["high"] is None:
        return "too few for an interval"
    factor = 100.0 if percent else 1.0
    low, high = (say_number(factor * float(estimate[end]), digits, sign=sign) for end in ("low", "high"))
    return f"{low} to {high}" + (" %" if percent else "")


def say_estimate(
    estimate: Mapping[str, Any] | None, digits: int = 2, *, percent: bool = False, sign: bool = False
) -> str:
    """'0.42 (0.31 to 0.53)', '71 % (64 to 77 %)', or 'not measured'."""
    if estimate is None:
        return NOT_MEASURED
    value = estimate["value"]
    head = say_percent(value, digits, sign=sign) if percent else say_number(float(value), digits, sign=sign)
    return f"{head} ({say_interval(estimate, digits, percent=percent, sign=sign)})"


def say_seconds(seconds: float | None) -> str:
    """'48 s', '3 min 20 s', '2 h 5 min', or 'not measured'."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def say_bytes(count: float | None) -> str:
    """'3.1 GiB' or '512 MiB', or 'not measured' for none and zero."""
    if not count:
        return NOT_MEASURED
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def clean_markdown(text: str) -> Markup:
    """Untrusted Markdown as harmless HTML: paragraphs, lists, emphasis, code; links, images, HTML, headings stay text.

    The second lock is nh3, which drops every tag and attribute outside a short list.
    """
    return Markup(nh3.clean(_MARKDOWN.render(text), tags=_TAGS, attributes={}, link_rel=None))


def clean_text(text: str) -> Markup:
    """Untrusted plain text, escaped."""
    return escape(text)
