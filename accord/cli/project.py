"""New projects: a commented accord.toml from the schema and, where asked, an example's settings.

Leaves out everything after the first file: the loop makes the rest.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import accord
from accord.config import FILE_NAME, Config
from accord.config.document import render_toml, select_important
from accord.errors import ConfigError, WorkspaceError


def find_examples() -> dict[str, Path]:
    """Name -> folder of each example: inside the installed package, or beside it in a checkout."""
    package = Path(accord.__file__).parent
    places = [package / "examples", package.parent / "examples"]
    root = next((place for place in places if place.is_dir()), None)
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{FILE_NAME}"))} if root else {}


def create_project(folder: Path, example: str | None = None) -> Path:
    """Writes a commented accord.toml into `folder`, which is made where it is missing; returns the file's path.

    Raises:
        WorkspaceError: there is an accord.toml already; it is left as it is.
        ConfigError: there is no example of that name.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise WorkspaceError(
            "there is a project here already", where=str(path), mend="choose another folder, or edit that file"
        )
    active, head = _read_example(example) if example else (select_important(Config()), "")
    if not example:
        active["project"]["name"] = folder.resolve().name or "my-project"
    text = render_toml(active, head)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise WorkspaceError(
            f"cannot be written: {error.strerror}", where=str(path), mend="choose another folder"
        ) from error
    return path


def _read_example(name: str) -> tuple[dict[str, dict[str, Any]], str]:
    """An example's settings, and the first paragraph of its README."""
    examples = find_examples()
    if name not in examples:
        near = difflib.get_close_matches(name, examples, n=1)
        mend = f"did you mean {near[0]}?" if near else f"examples: {', '.join(examples)}"
        raise ConfigError(f"there is no example {name!r}", where="--example", mend=mend)
    active = tomllib.loads((examples[name] / FILE_NAME).read_text(encoding="utf-8"))
    readme = (examples[name] / "README.md").read_text(encoding="utf-8")
    paragraphs = [part for part in readme.split("\n\n") if part.strip() and not part.startswith("#")]
    return active, f"Example {name}\n\n{paragraphs[0].strip()}" if paragraphs else f"Example {name}"
