"""Reads accord.toml and the overrides; refuses what is wrong, every problem at once, each with its line and mend.

Implements the reading, the overrides and the words of a refusal; what is valid is said by `accord/config/schema.py`
alone. Leaves out names looked up in a registry (objectives, rewards, trainers): the loop's preflight does that.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from accord.config.locate import KeyPath, locate_keys
from accord.config.schema import AnnotatorSection, Config
from accord.errors import ConfigError

FILE_NAME = "accord.toml"


class Problem(NamedTuple):
    """One refusal: where (`accord.toml:12` or `--set ppo.gamma`), what was wrong, and the mend (or None)."""

    where: str
    message: str
    mend: str | None


class InvalidSettings(ConfigError):
    """accord.toml or an override was refused; `problems` holds every reason, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        if len(problems) == 1:
            (only,) = problems
            super().__init__(only.message, where=only.where, mend=only.mend)
            return
        lines = [f"  {p.where}: {p.message}" + (f" ({p.mend})" if p.mend else "") for p in problems]
        super().__init__("\n".join([f"{len(problems)} problems", *lines]), where=FILE_NAME)


def load_config(folder: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of the project in `folder`: accord.toml, then each override `section.key=value` in turn.

    An override's value is TOML (`0.1`, `true`, `[1, 2]`) and otherwise a plain text. Raises InvalidSettings (a
    ConfigError) with every problem found: an unreadable file, invalid TOML, unknown sections and keys, wrong types,
    values out of range, impossible combinations.
    """
    path = Path(folder) / FILE_NAME
    text = _read(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings([_invalid_toml(error, text)]) from error
    source = _Source(lines=locate_keys(text))
    for override in overrides:
        _apply_override(content, override, source)
    return _validate(content, source)


@dataclass
class _Source:
    """Where each setting was said: its line in the file, or the override that set it. `problems` collects refusals."""

    lines: dict[KeyPath, int]
    overridden: set[KeyPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """`--set section.key`, or `accord.toml:LINE` of the setting or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return f"--set {_dotted(path[:length])}"
            if path[:length] in self.lines:
                return f"{FILE_NAME}:{self.lines[path[:length]]}"
        for override in self.overridden:
            if override[: len(path)] == path:  # a section that only an override speaks of
                return f"--set {_dotted(override)}"
        return FILE_NAME


def _read(path: Path) -> str:
    """The text of accord.toml. Raises InvalidSettings where there is none, or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        mend = f"make a project here with: accord init {path.parent}"
        raise InvalidSettings([Problem(str(path), "there is no accord.toml", mend)]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        problem = Problem(f"{FILE_NAME}:{line}", "the file is not UTF-8", "save it as UTF-8")
        raise InvalidSettings([problem]) from error
    except OSError as error:
        raise InvalidSettings([Problem(str(path), f"cannot be read: {error.strerror}", None)]) from error


def _invalid_toml(error: tomllib.TOMLDecodeError, text: str) -> Problem:
    """tomllib's message, with its line and column (the last line, where the end came too early) moved to the front."""
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
    message = str(error)[: found.start()] if found else str(error)
    where = f"{found[1]}:{found[2]}" if found and found[1] else len(text.splitlines())
    message = f"invalid TOML: {message[:1].lower()}{message[1:]}"
    return Problem(f"{FILE_NAME}:{where}", message, 'texts are quoted: name = "value"')


def _apply_override(content: dict[str, Any], override: str, source: _Source) -> None:
    """Writes `section.key=value` into `content`; an unusable override becomes a problem."""
    name, equals, raw = override.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or len(path) != 2 or not all(path):
        mend = "write --set section.key=value, as in --set ppo.updates=8"
        source.problems.append(Problem(f"--set {override}", "not of the form section.key=value", mend))
        return
    section = content.setdefault(path[0], {})
    if not isinstance(section, dict):
        return  # the file's own mistake, found by the validation
    section[path[1]] = parse_override_value(raw)
    source.overridden.add(path)


def parse_override_value(raw: str) -> Any:
    """`raw` as a TOML value (`3`, `true`, `"text"`), or as the text itself where it is none."""
    try:
        parsed = tomllib.loads(f"value = {raw.strip()}")
    except tomllib.TOMLDecodeError:
        return raw
    return parsed["value"] if set(parsed) == {"value"} else raw


def _validate(content: dict[str, Any], source: _Source) -> Config:
    """Config of `content`, or InvalidSettings.

    Cross-checks run only on sections whose keys are all fine. So each refused setting is dropped and the rest is
    validated again until nothing new is found; a cross-check that rests on a dropped setting says nothing.
    """
    found: list[tuple[int, Problem]] = []
    dropped: set[KeyPath] = set()
    config: Config | None = None
    while config is None:
        try:
            config = Config.model_validate(_freeze(content))
        except ValidationError as error:
            fresh = [_Refusal.read(details, content) for details in error.errors()]
            for refusal in fresh:
                if not dropped & set(refusal.rests_on):
                    line = source.lines.get(refusal.place, 1 << 30)
                    found.append((line, Problem(source.where(refusal.place), refusal.message, refusal.mend)))
            cut = {path for refusal in fresh for path in refusal.drop}
            dropped |= cut
            if not sum(_drop(content, path) for path in sorted(cut, reverse=True)):
                break
    source.problems += [problem for _, problem in sorted(found, key=lambda item: item[0])]
    if source.problems or config is None:
        raise InvalidSettings(source.problems)
    return config


def _freeze(value: Any) -> Any:
    """Lists as tuples, which frozen sections hold."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _drop(content: Any, path: KeyPath) -> bool:
    """Removes what stands at `path`; False where nothing did."""
    *parents, last = path
    for name in parents:
        try:
            content = content[name]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(content, dict):
        return content.pop(last, _drop) is not _drop
    if isinstance(content, list) and isinstance(last, int) and last < len(content):
        del content[last]
        return True
    return False


@dataclass(frozen=True)
class _Refusal:
    """pydantic's refusal in our words. `drop`: settings without which more is found. `rests_on`: of a cross-check."""

    place: KeyPath
    message: str
    mend: str | None
    drop: tuple[KeyPath, ...]
    rests_on: tuple[KeyPath, ...] = ()

    @classmethod
    def read(cls, details: ErrorDetails, content: Mapping[str, Any]) -> _Refusal:
        """From one entry of `ValidationError.errors()`."""
        path: KeyPath = details["loc"]
        match details["type"]:
            case "extra_forbidden":
                return cls(path, *_unknown_name(path), drop=(path,))
            case "value_error":
                message = str(details["ctx"]["error"])
                named = _named_settings(message, path)
                given = tuple(setting for setting in named if setting[1] in content.get(setting[0], {}))
                return cls(given[0] if given else path, message, None, given or (path,), rests_on=named)
            case "missing":
                message = f"{_dotted(path)} is missing"
                return cls(path[:-1], message, f"add {path[-1]} = ...", (path[:-1],))
        return cls(path, *_wrong_value(details), drop=(path,))


def _dotted(path: Iterable[str | int]) -> str:
    """`ppo.gamma`, `simulation.annotators[0].skill`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def _named_settings(message: str, section: KeyPath) -> tuple[tuple[str, str], ...]:
    """The settings that a cross-check's message names, in order: `key` in a section's, `section.key` in Config's."""
    sections = _sections()
    found: dict[tuple[str, str], None] = {}
    for words in re.findall(r"[a-z_]+(?:\.[a-z_]+)?", message):
        owner, _, key = (str(section[0]), "", words) if section else words.partition(".")
        if owner in sections and key in sections[owner].model_fields:
            found[owner, key] = None
    return tuple(found)


def _sections() -> dict[str, type[BaseModel]]:
    """Name -> model of each section of accord.toml."""
    models = {name: info.annotation for name, info in Config.model_fields.items()}
    return {name: model for name, model in models.items() if isinstance(model, type) and issubclass(model, BaseModel)}


def _unknown_name(path: KeyPath) -> tuple[str, str]:
    """Message and mend for a name that the schema does not know: the nearest one, in its section first."""
    sections, name = _sections(), str(path[-1])
    if len(path) == 1:
        owners = [section for section, model in sections.items() if name in model.model_fields]
        if owners:
            return f"{name} stands outside any section", f"put it below [{owners[0]}]"
        return f"unknown section [{name}]", _nearest(name, sections, "sections: ")
    section = str(path[0])
    names = (sections[section] if len(path) == 2 else AnnotatorSection).model_fields
    shown = _dotted((section, name)) if len(path) == 2 else _dotted(path)
    if not difflib.get_close_matches(name, names):
        owners = [other for other, model in sections.items() if name in model.model_fields]
        if owners:
            return f"unknown setting {shown}", f"{name} is a setting of [{owners[0]}]"
    return f"unknown setting {shown}", _nearest(name, names, f"settings of [{section}]: ")


def _nearest(name: str, valid: Iterable[str], otherwise: str) -> str:
    """`did you mean x?`, or all valid names where none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"did you mean {close[0]}?" if close else otherwise + ", ".join(valid)


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
}


def _wrong_value(details: ErrorDetails) -> tuple[str, str | None]:
    """Message and mend for a value of the wrong type or out of its range: what was expected, what came."""
    name, given = _dotted(details["loc"]), details["input"]
    expected = _EXPECTED.get(details["type"], details["msg"]).format_map(details.get("ctx", {}))
    message = f"{name}: expected {expected}, got {_show(given)}"
    if details["type"] == "literal_error" and isinstance(given, str):
        return message, _nearest(given, re.findall(r"'([^']+)'", expected), "one of ")
    if details["type"] == "string_type" and not isinstance(given, (dict, tuple)):
        return message, f'in quotes it is a text: {name.split(".")[-1]} = "{given}"'
    if details["type"] in ("model_type", "model_attributes_type") and len(details["loc"]) == 1:
        return message, f"write the section as a line [{name}] with its settings below"
    return message, None


def _show(value: Any) -> str:
    """A TOML value as its type and itself, shortened: `the text "abc"`."""
    kinds = {bool: "", str: "the text ", int: "the number ", float: "the number ", dict: "a table", tuple: "a list"}
    kind = kinds.get(type(value), "")
    if isinstance(value, (dict, tuple)):
        return kind
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}"
    text = text if len(text) <= 40 else text[:39] + "…"
    return f'{kind}"{text}"' if isinstance(value, str) else f"{kind}{text}"
