"""Settings as text: a commented accord.toml for a new project, and docs/settings.md.

Both are made from the schema's own descriptions, so they cannot say something else than the code does.
"""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from accord.config.guarding import GuardedRewardSection
from accord.config.rewarding import SourceSection
from accord.config.schema import AnnotatorSection, Config

IMPORTANT = (
    "project.name", "project.seed", "project.rounds", "model.name", "prompts.train", "prompts.evaluation",
    "feedback.source", "sample.max_new_tokens", "policy.method", "policy.max_kl_nats", "ppo.updates", "ppo.kl_coef",
)  # fmt: skip
"""Settings that a new accord.toml sets outright, so that a reader sees them first; the rest are there as comments."""

TABLES: dict[str, type[BaseModel]] = {
    "annotators": AnnotatorSection,
    "sources": SourceSection,
    "rewards": GuardedRewardSection,
}
"""Settings that are lists of tables, and what such a table holds."""
EXAMPLE_NAMES: dict[type[BaseModel], str] = {
    AnnotatorSection: "ann",
    SourceSection: "proxy",
    GuardedRewardSection: "harmless",
}

HEAD = """\
# Settings of an Accord project. A line like `#name = value` shows a default: take the `#` away to change it.
# Every setting: docs/settings.md. One run only: accord run --set section.key=value
"""


def render_toml(active: Mapping[str, Mapping[str, Any]], head: str = "") -> str:
    """An accord.toml in which the settings in `active` (section -> key -> value) are set and all others are comments.

    `head` is text put above as comments. Read back, it gives exactly `active` and otherwise empty sections.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()] + ([""] if head else []) + [HEAD]
    for section, model in _sections():
        lines += [*_comment(model.__doc__ or ""), f"[{section}]"]
        values = active.get(section, {})
        for key, info in model.model_fields.items():
            if key in TABLES:
                continue  # below
            lines += _comment(info.description or "")
            if key in values:
                lines.append(f"{key} = {render_value(values[key])}")
            else:
                lines.append(f"#{key} = {render_value(info.default)}")
        for key in TABLES.keys() & model.model_fields.keys():
            lines += _render_tables(f"{section}.{key}", TABLES[key], values.get(key, ()))
        lines.append("")
    return "\n".join(lines)


def render_value(value: Any) -> str:
    """A TOML value: texts in double quotes, true and false, numbers as Python writes them, lists."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    return repr(value)


def select_important(config: Config) -> dict[str, dict[str, Any]]:
    """The IMPORTANT settings of `config` as section -> key -> value, for `render_toml`."""
    chosen: dict[str, dict[str, Any]] = {}
    for name in IMPORTANT:
        section, key = name.split(".")
        chosen.setdefault(section, {})[key] = getattr(getattr(config, section), key)
    return chosen


def render_settings() -> str:
    """docs/settings.md: a table for each section of accord.toml."""
    lines = [
        "# Settings",
        "",
        "Made from `accord/config/schema.py` by `python -m accord.config.document`; `make docs` writes it anew.",
        "",
        "A project's settings stand in its `accord.toml`. Each can be overridden for one run with",
        "`--set section.key=value`; the value is TOML, or else a plain text. An unknown name, a wrong type or an",
        "impossible combination is refused before any work, with its line and the nearest valid name.",
    ]
    for section, model in _sections():
        lines += ["", f"## [{section}]", "", model.__doc__ or "", "", *_table(model)]
        for key in TABLES.keys() & model.model_fields.keys():
            lines += ["", f"### [[{section}.{key}]]", "", TABLES[key].__doc__ or "", "", *_table(TABLES[key])]
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """(name, model) of each section, in the schema's order."""
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield name, info.annotation


def _comment(text: str) -> list[str]:
    """`text` as lines of `#` comments at most 110 characters long."""
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _render_tables(name: str, model: type[BaseModel], rows: Any) -> list[str]:
    """`[[name]]` tables; where there are none, one as a comment that shows the keys."""
    if rows:
        lines: list[str] = []
        for row in rows:
            lines += ["", f"[[{name}]]"]
            lines += [f"{key} = {render_value(value)}" for key, value in row.items()]
        return lines
    lines = ["", *_comment(model.__doc__ or ""), f"#[[{name}]]"]
    for key, info in model.model_fields.items():
        default = EXAMPLE_NAMES[model] if info.is_required() else 0.0 if info.default is None else info.default
        lines.append(f"#{key} = {render_value(default)}  # {info.description}")
    return lines


def _table(model: type[BaseModel]) -> list[str]:
    """A Markdown table of a section's settings."""
    lines = ["| setting | type | default | what it does |", "| --- | --- | --- | --- |"]
    for key, info in model.model_fields.items():
        default = (
            "(needed)"
            if info.is_required()
            else "(none)"
            if info.default in ((), None)
            else f"`{render_value(info.default)}`"
        )
        cells = (f"`{key}`", _type_name(info), default, info.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _type_name(info: FieldInfo) -> str:
    """`whole number >= 1`, `text`, one of the literals: what a person may write."""
    annotation: Any = info.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{render_value(value)}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "tables"
    if get_origin(annotation) is types.UnionType:
        annotation = get_args(annotation)[0]
    name = {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(limit, attribute)}"
        for limit in info.metadata
        for attribute, sign in signs.items()
        if getattr(limit, attribute, None) is not None
    ]
    return " ".join([name, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print(render_settings(), end="")
