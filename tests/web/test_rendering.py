"""A completion is hostile input: whatever it says, the HTML made of it has no way to act."""

import html.parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.web.rendering import SHOWN_CHARACTERS, render_markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/track.png)",
    "<https://evil.example>",
    "[a]: javascript:alert(1)\n\n[a]",
    "<svg onload=alert(1)><style>*{display:none}</style></svg>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "<details open ontoggle=alert(1)>",
    "| a |\n|---|\n| <iframe src=//evil.example></iframe> |",
    "<p style='position:fixed;inset:0'>x</p>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<input formaction=javascript:alert(1)><form action=//evil.example>",
    "`` ` ``<b onmouseover=alert(1)>",
]
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
ALLOWED = {"p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"} | TABLES
ALLOWED |= {f"h{level}" for level in range(1, 7)}


class Reader(html.parser.HTMLParser):
    """Every tag with its attributes, as the standard library reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.said += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(str(render_markdown(text)))
    return reader


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_text(text: str) -> None:
    for tag, attributes in read(text).tags:
        assert tag in ALLOWED
        assert attributes in ([], [("dir", "auto")])


@given(st.text(max_size=300) | st.lists(st.sampled_from([*HOSTILE, "\n", "> ", "* ", "`"]), max_size=6).map("".join))
def test_no_text_makes_a_tag_that_acts(text: str) -> None:
    for tag, attributes in read(text).tags:
        assert tag in ALLOWED
        assert [name for name, _ in attributes] in ([], ["dir"], ["class"])


def test_markdown_reads_as_markdown() -> None:
    reader = read("# Tea\n\n*hot* and **good**\n\n- one\n- two\n\n```\ncode\n```\n\n| a |\n|---|\n| b |")
    assert {tag for tag, _ in reader.tags} >= {"h1", "em", "strong", "ul", "li", "pre", "code", "table", "td"}


def test_a_link_stays_visible_as_it_was_written() -> None:
    assert "[here](https://evil.example)" in read("[here](https://evil.example)").said


def test_overrides_of_direction_are_named_not_obeyed() -> None:
    shown = str(render_markdown("safe \u202egnp.exe"))
    assert "\u202e" not in shown
    assert "U+202E" in shown
    assert "\u05e9\u05dc\u05d5\u05dd" in str(render_markdown("\u05e9\u05dc\u05d5\u05dd"))


def test_a_huge_text_is_cut_and_says_so() -> None:
    shown = str(render_markdown("word " * SHOWN_CHARACTERS))
    assert len(shown) < 2 * SHOWN_CHARACTERS
    assert f"{5 * SHOWN_CHARACTERS:,} characters" in shown


@pytest.mark.parametrize("text", ["> " * 5000, "[" * 20_000, "*a " * 20_000, "- " * 5000, "`" * 20_000, "|" * 20_000])
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    import time

    began = time.perf_counter()
    render_markdown(text)
    assert time.perf_counter() - began < 3.0
