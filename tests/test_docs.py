"""The pages say all that the code has: settings, commands, options, errors, metrics, report keys; and it holds."""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from markdown_it import MarkdownIt

from accord.cli import app
from accord.config.document import render_settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/README.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def read_docs() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


def find_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each block of code; an indented block has the language ''."""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            yield token.info.split(" ")[0], token.content


def compiles(code: str) -> bool:
    """Whether code is Python: whole, or an import and the lines of a dictionary, parted by an empty line."""

    def parse(text: str) -> bool:
        try:
            ast.parse(text)
        except SyntaxError:
            return False
        return True

    dedented = textwrap.dedent(code)
    parts = dedented.strip("\n").split("\n\n")
    return parse(dedented) or all(parse(part) or (part[0] == " " and parse(f"{{{part}}}")) for part in parts)


def find_anchors(text: str) -> set[str]:
    """The anchors that a page's headings make: lower case, hyphens for spaces, other signs dropped."""
    tokens = MarkdownIt().parse(text)
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def find_broken_links(page: Path) -> list[str]:
    """Links of a page to files and headings that are not there."""
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in find_anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def find_wrong_commands(text: str) -> list[str]:
    """`accord ...` lines that name a command or an option that is not there."""
    lines = [line for _, block in find_blocks(text) for line in block.splitlines()]
    lines += re.findall(r"`(accord [^`]+)`", text.replace("\n", " "))
    wrong = []
    for line in lines:
        for part in re.split(r"&&|;|\|", line.split("#")[0]):
            words = re.sub(r"[\[\],]|\.\.\.", " ", part).strip().removeprefix("$ ").strip()
            if not re.match(r"(?:\.venv/bin/)?accord [a-z]", words) or "=" in words.split("--")[0]:
                continue
            _, name, *rest = shlex.split(words)
            options = {o for p in COMMANDS[name].params for o in p.opts} if name in COMMANDS else set()
            wrong += [words for word in rest if word.startswith("-") and word not in options | {"--help"}]
            wrong += [words] if name not in COMMANDS else []
    return wrong


def test_the_settings_page_is_made_from_the_schema() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == render_settings(), "make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert find_broken_links(page) == []


def test_pages_that_the_code_names_are_there() -> None:
    files = [*(ROOT / "accord").rglob("*.py"), *(ROOT / "accord").rglob("*.j2"), *PAGES]
    named = {name for file in files for name in re.findall(r"\bdocs/[\w-]+\.md", file.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+\.md)", index))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - linked - {"index.md"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_the_pages_compiles(page: Path) -> None:
    for language, code in find_blocks(page.read_text(encoding="utf-8")):
        if language in ("python", "py"):
            assert compiles(code), code


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_pages_exist(page: Path) -> None:
    assert find_wrong_commands(page.read_text(encoding="utf-8")) == []


def test_every_command_and_option_is_on_the_commands_page() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        rows = [line for line in page.splitlines() if line.startswith(f"| `accord {name} ")]
        assert len(rows) == 1, f"docs/cli.md has no row for accord {name}"
        for parameter in command.params:
            for option in parameter.opts if parameter.opts[0].startswith("-") else ():
                assert option in rows[0], f"docs/cli.md: the row of accord {name} lacks {option}"
    options = {o for p in typer.main.get_command(app).params for o in p.opts}
    assert {option for option in options if option not in page} == set()


def test_every_event_is_on_the_commands_page() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text() for path in (ROOT / "accord/cli").glob("*.py"))
    events = set(re.findall(r"emit\(\s*\"(\w+)\"", code))
    assert len(events) >= 8
    assert {event for event in events if f"| `{event}` |" not in page} == set()


def test_every_error_is_on_the_commands_page() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    bases: dict[str, set[str]] = {}
    for path in (ROOT / "accord").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    errors, grown = {"AccordError"}, True
    while grown:
        more = {name for name, parents in bases.items() if parents & errors} - errors
        errors, grown = errors | more, bool(more)
    assert len(errors) >= 7
    assert {error for error in errors if f"`{error}`" not in page} == set()


@pytest.mark.parametrize(
    "text, problem",
    [
        ("see `accord rum`", "accord rum"),
        ("    accord run --sett x\n", "accord run --sett x"),
        ("```\naccord init x && accord go x\n```\n", "accord go x"),
    ],
)
def test_a_wrong_command_is_found(text: str, problem: str) -> None:
    assert find_wrong_commands(text) == [problem]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# A: one, two\n[b](b.md) [c](#a-one-two) [d](#a) [e](a.md#x) [f](https://f) `[g](g.md)`"
    )
    assert find_broken_links(tmp_path / "a.md") == ["b.md", "#a", "a.md#x"]


def test_python_is_told_from_what_is_none() -> None:
    assert compiles("x = 1\n\n\ny = 2\n")
    assert compiles('import a\n\n    "a": a.f,\n')
    assert not compiles("x = = 1\n")
    assert not compiles('import a\n\n    "a": = a.f,\n')


def test_blocks_are_found() -> None:
    assert list(find_blocks("a\n\n    b\n    c\n\n```python\nd\n```\n")) == [("", "b\nc\n"), ("python", "d\n")]
