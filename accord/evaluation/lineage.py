"""From the result back to each vote: the artifacts of a round drawn as an inline SVG, parents to the left of children.

Implements layout by longest path and the drawing. Leaves out what the artifacts hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 172, 44, 26, 26, 8


@dataclass(frozen=True, slots=True)
class Node:
    """One artifact: kind, key, and the keys of its parents."""

    kind: str
    key: str
    parents: tuple[str, ...]


def read_lineage(rows: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Nodes of `report["lineage"]`. Parents may be keys, "kind/key" addresses, or a mapping of roles to either."""
    nodes = []
    for row in rows:
        parents = row.get("parents") or ()
        addresses = parents.values() if isinstance(parents, Mapping) else parents
        keys = dict.fromkeys(str(address).rpartition("/")[2] for address in addresses)
        nodes.append(Node(str(row["kind"]), str(row["key"]), tuple(keys)))
    return nodes


def place_nodes(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """(column, row) of each node: one column right of its rightmost parent; parents outside `nodes` count as none."""
    known = {node.key: node for node in nodes}
    depths: dict[str, int] = {}

    def find_depth(key: str, path: frozenset[str]) -> int:
        if key not in depths:
            above = [p for p in known[key].parents if p in known and p not in path]
            depths[key] = 1 + max((find_depth(p, path | {key}) for p in above), default=-1)
        return depths[key]

    filled: dict[int, int] = defaultdict(int)
    places = {}
    for node in nodes:
        column = find_depth(node.key, frozenset({node.key}))
        places[node.key] = (column, filled[column])
        filled[column] += 1
    return places


def draw_lineage(nodes: Sequence[Node]) -> Markup:
    """An SVG of boxes and arrows, styled by the page; empty for no nodes."""
    if not nodes:
        return Markup("")
    places = place_nodes(nodes)
    columns, rows = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    width = columns * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = rows * (BOX_HEIGHT + GAP_Y) + MARGIN
    edges = [_draw_edge(places[p], places[node.key]) for node in nodes for p in node.parents if p in places]
    boxes = [_draw_box(node, places[node.key]) for node in nodes]
    label = "Artifacts from left to right, each with arrows from what it was made of; the list below says the same."
    return Markup(
        '<svg class="lineage" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}{}</svg>'
    ).format(label, width, height, width, height, Markup("").join(edges), Markup("").join(boxes))


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return MARGIN + place[0] * (BOX_WIDTH + GAP_X), MARGIN + place[1] * (BOX_HEIGHT + GAP_Y)


def _draw_edge(start: tuple[int, int], end: tuple[int, int]) -> Markup:
    """A curve from the right of a box to the left of another; one that passes over a column bows below its row."""
    (x0, y0), (x1, y1) = _corner(start), _corner(end)
    x0, y0, y1 = x0 + BOX_WIDTH, y0 + BOX_HEIGHT // 2, y1 + BOX_HEIGHT // 2
    if end[0] - start[0] == 1:
        bend = (x0 + x1) // 2
        return Markup('<path d="M{} {} C{} {} {} {} {} {}"/>').format(x0, y0, bend, y0, bend, y1, x1, y1)
    below = y0 + (BOX_HEIGHT + GAP_Y) // 2
    return Markup('<path class="long" d="M{} {} C{} {} {} {} {} {} L{} {} C{} {} {} {} {} {}"/>').format(
        x0, y0, x0 + 14, y0, x0 + 4, below, x0 + GAP_X, below,
        x1 - GAP_X, below, x1 - 4, below, x1 - 14, y1, x1, y1,
    )  # fmt: skip


def _draw_box(node: Node, place: tuple[int, int]) -> Markup:
    x, y = _corner(place)
    return Markup(
        '<g><rect x="{}" y="{}" width="{}" height="{}" rx="8"/><text x="{}" y="{}">{}</text>'
        '<text class="key" x="{}" y="{}">{}</text></g>'
    ).format(x, y, BOX_WIDTH, BOX_HEIGHT, x + 10, y + 19, node.kind.replace("_", " "), x + 10, y + 35, node.key[:12])
