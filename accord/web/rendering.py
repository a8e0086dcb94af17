"""Text of models and people as HTML that can do nothing but be read.

Implements Markdown without raw HTML, links or images (what a completion wrote as a link stays visible as text), a
second lock that drops every tag and attribute outside a short list, and marks for the control characters that would
turn a line's order around. Leaves out the policy that the page is served under (`security`).
"""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

SHOWN_CHARACTERS = 60_000
"""A longer text is cut for display, and says so: a browser should not hang on one."""

_TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "maxNesting": 20})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
)
# Embeddings and overrides reorder what stands around them; isolates and the plain marks of right-to-left text do not.
_REORDERING = re.compile("[\u202a-\u202e]")
# What has no shape: controls beside tab and newline, and the tag characters in which texts hide instructions.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\U000e0000-\U000e007f]")


@lru_cache(maxsize=4096)
def render_markdown(text: str) -> Markup:
    """Untrusted Markdown as harmless HTML. Every block takes its direction from its own first strong letter."""
    shown = show_controls(text[:SHOWN_CHARACTERS])
    html = nh3.clean(_MARKDOWN.render(shown), tags=_TAGS, attributes={}, link_rel=None)
    html = re.sub(r"<(p|li|h[1-6]|td|th|blockquote|pre)>", r'<\1 dir="auto">', html)
    if len(text) > SHOWN_CHARACTERS:
        html += f'<p class="cut">Cut here for display: the whole text has {len(text):,} characters.</p>'
    return Markup(html)


def show_controls(text: str) -> str:
    """`text` with characters that reorder or hide replaced by their names in brackets, `⟨U+202E⟩`."""
    text = _REORDERING.sub(_name, text.replace("\r\n", "\n").replace("\r", "\n"))
    return _INVISIBLE.sub(_name, text)


def _name(found: re.Match[str]) -> str:
    return f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(found[0]):04X}\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
