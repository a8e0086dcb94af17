"""On which line of a TOML file each table and key stands.

`tomllib` reads values but forgets where they were. Here the text is cut into its statements (a table header or a
key with its value) by letting `tomllib` judge where each one is complete; nothing of TOML's grammar is repeated. Leaves
out everything but line numbers; the values themselves come from one plain `tomllib.loads` of the whole file.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str | int, ...]
"""Names from the root to a table or key; an int is a place in an array: ("simulation", "annotators", 0)."""


def locate_keys(text: str) -> dict[KeyPath, int]:
    """Line (1 is the first) of every table and key of a valid TOML text, each path at its first mention."""
    lines: dict[KeyPath, int] = {}
    arrays: Counter[KeyPath] = Counter()
    table: KeyPath = ()
    for line, statement in _split_statements(text):
        content = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _enter_table(content, arrays)
            paths = [table[: n + 1] for n in range(len(table))]
        else:
            paths = [table + path for path in _walk(content)]
        for path in paths:
            lines.setdefault(path, line)
    return lines


def _split_statements(text: str) -> Iterator[tuple[int, str]]:
    """(first line, statement): lines are added until `tomllib` takes them as whole. No proper part of one parses."""
    begin, kept = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not kept and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begin = begin if kept else number
        kept += line + "\n"
        try:
            tomllib.loads(kept)
        except tomllib.TOMLDecodeError:
            continue
        yield begin, kept
        kept = ""


def _enter_table(content: dict[str, Any], arrays: Counter[KeyPath]) -> KeyPath:
    """Path of the table that a header opens, given the header's own parse; counts the entries of arrays of tables."""
    path: KeyPath = ()
    node: Any = content
    while node:
        if isinstance(node, list):
            arrays[path] += 1
            path, node = (*path, arrays[path] - 1), node[0]
            continue
        name, node = next(iter(node.items()))
        path = (*path, name)
        if not isinstance(node, list) and arrays[path]:
            path = (*path, arrays[path] - 1)  # [a.b] below the last [[a]]
    return path


def _walk(content: dict[str, Any]) -> Iterator[KeyPath]:
    """Every path in a parsed key: one for a plain key, more for a dotted key or an inline table."""
    for name, value in content.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in _walk(value))
