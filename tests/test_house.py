"""The house rules, read from the source: floors, cycles, lengths, docstrings, words and paths that do not belong.

Each rule is a function of a folder, tried on a small house with the mistake planted in it before it judges this one.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES, TRAINER_LINES, FUNCTION_P95_LINES = 400, 120, 150, 60
FORBIDDEN_FILES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
FORBIDDEN_WORDS = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|opt/\w+|mnt)/|[A-Z]:\\Users|pythonhosted\.|pypi\.(?:org)/"
)


def read_floors(design: Path) -> dict[str, int]:
    """Room -> floor, 0 at the ground, from the block below 'Rooms and floors' in docs/design.md."""
    block = design.read_text(encoding="utf-8").split("## Rooms and floors")[1].split("\n## ")[0]
    lines = [line[4:] for line in block.splitlines() if line.startswith("    ")]
    return {
        room.strip(): floor
        for floor, line in enumerate(lines)
        for room in re.split(r"\s{2,}", line.strip(), maxsplit=1)[0].split(",")
    }


def list_modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    modules = {}
    for path in sorted((root / "accord").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def list_imports(tree: ast.Module, modules: dict[str, Path], *, typing_only: bool) -> Iterator[tuple[int, str]]:
    """(line, module of this package) of each import; those under TYPE_CHECKING only where `typing_only`."""
    guarded = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if not typing_only and id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name.startswith("accord."):
                yield node.lineno, name


def room_of(module: str) -> str:
    return module.split(".")[1]


def find_upward_arrows(root: Path) -> list[str]:
    """Imports that do not point down, rooms on no floor, and what `feedback` sees beside types and errors."""
    floors, modules, found = read_floors(root / "docs/design.md"), list_modules(root), []
    for name, path in modules.items():
        if name in ("accord", "accord.__main__"):
            continue
        own = room_of(name)
        if own not in floors:
            found.append(f"{own} stands on no floor of docs/design.md")
            continue
        for line, target in list_imports(ast.parse(path.read_text()), modules, typing_only=True):
            other = room_of(target)
            if other == own:
                continue
            if floors.get(other, 99) >= floors[own] and floors[own] > 0:
                found.append(f"{path.relative_to(root)}:{line}: {own} imports {other}, which is not below it")
            if own == "feedback" and other not in ("types", "errors"):
                found.append(f"{path.relative_to(root)}:{line}: feedback sees only types and errors, not {other}")
    return found


def find_cycles(root: Path) -> list[str]:
    """A cycle of imports between modules; imports for type checkers alone do not count."""
    modules = list_modules(root)
    graph = {
        name: {t for _, t in list_imports(ast.parse(path.read_text()), modules, typing_only=False) if t != name}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def list_functions(root: Path) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Each function or method with its length in lines."""
    for path in list_modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node, (node.end_lineno or 0) - node.lineno + 1


def find_long_functions(root: Path) -> list[str]:
    """Functions beyond 120 lines (150 in training), and a 95th percentile beyond 60."""
    found, lengths = [], []
    for path, node, length in list_functions(root):
        lengths.append(length)
        if length > (TRAINER_LINES if path.parent.name == "training" else FUNCTION_LINES):
            found.append(f"{path.relative_to(root)}:{node.lineno}: {node.name} has {length} lines")
    lengths.sort()
    if lengths and lengths[int(0.95 * (len(lengths) - 1))] > FUNCTION_P95_LINES:
        found.append(f"one function in twenty is longer than {FUNCTION_P95_LINES} lines")
    return found


def find_long_files(root: Path) -> list[str]:
    """Files beyond 400 lines, tests included."""
    paths = [*(root / "accord").rglob("*.py"), *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    counts = {path: len(path.read_text().splitlines()) for path in paths}
    return [f"{path.relative_to(root)} has {count} lines" for path, count in counts.items() if count > FILE_LINES]


def find_missing_docstrings(root: Path) -> list[str]:
    """Modules, public classes and public functions without one. A Protocol's members speak through its class."""
    found = []
    for path in list_modules(root).values():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            found.append(f"{path.relative_to(root)}: the module")
        for holder in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name[0] != "_")]:
            for node in holder.body:
                if (
                    isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                    and not node.name.startswith("_")
                    and not ast.get_docstring(node)
                    and ast.unparse(node.body[-1]) != "..."
                ):
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {node.name}")
    return found


def find_swallowed_errors(root: Path) -> list[str]:
    """`except` without a class, and handlers that only pass."""
    found = []
    for path in list_modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or isinstance(node.body[0], ast.Pass)):
                found.append(f"{path.relative_to(root)}:{node.lineno}: an error is swallowed")
    return found


def list_files(root: Path) -> list[Path]:
    """What git keeps, or everything where there is no git."""
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if answer.returncode == 0 and answer.stdout:
        return [root / name for name in answer.stdout.split("\0") if name and (root / name).is_file()]
    return [path for path in root.rglob("*") if path.is_file()]


def find_machine_paths(root: Path) -> list[str]:
    """Absolute paths of somebody's machine and registry hosts, in any file that git keeps."""
    found = []
    for path in list_files(root):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:80]}")
    return found


def find_leftovers(root: Path) -> list[str]:
    """Files named after no thing, classes named Manager, and notes of unfinished work."""
    found = []
    for path in list_files(root):
        if path.name in FORBIDDEN_FILES:
            found.append(f"{path.relative_to(root)}: what is it for?")
        if path.suffix in (".py", ".md", ".toml", ".html", ".js", ".css") or path.name == "Makefile":
            text = path.read_text(errors="replace")
            if FORBIDDEN_WORDS.search(text):
                found.append(f"{path.relative_to(root)}: a note of unfinished work")
            if re.search(r"^class \w*Man" r"ager\b", text, re.MULTILINE):
                found.append(f"{path.relative_to(root)}: a class that manages")
    return found


RULES: dict[str, tuple[Callable[[Path], list[str]], dict[str, str]]] = {
    "upward arrow": (find_upward_arrows, {"accord/losses/a.py": '"""A."""\nfrom accord.models import base\n'}),
    "sideways arrow": (find_upward_arrows, {"accord/losses/a.py": '"""A."""\nimport accord.feedback.store\n'}),
    "arrow for types": (
        find_upward_arrows,
        {"accord/losses/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import accord.models.base\n"},
    ),
    "arrow in a function": (find_upward_arrows, {"accord/losses/a.py": "def f():\n    from accord import models\n"}),
    "feedback sees too much": (find_upward_arrows, {"accord/feedback/a.py": "import accord.functional.gae\n"}),
    "room without a floor": (find_upward_arrows, {"accord/attic/__init__.py": ""}),
    "cycle": (
        find_cycles,
        {
            "accord/losses/a.py": "import accord.losses.b",
            "accord/losses/b.py": "from . import a\nimport accord.losses.a",
        },
    ),
    "long function": (find_long_functions, {"accord/losses/a.py": "def f():\n" + "    x = 1\n" * 120}),
    "long trainer": (find_long_functions, {"accord/training/a.py": "def f():\n" + "    x = 1\n" * 150}),
    "many long functions": (
        find_long_functions,
        {"accord/losses/a.py": "".join(f"def f{n}():\n" + "    x = 1\n" * 61 for n in range(2))},
    ),
    "long file": (find_long_files, {"accord/losses/a.py": "x = 1\n" * 401}),
    "long test": (find_long_files, {"tests/test_a.py": "x = 1\n" * 401}),
    "no module docstring": (find_missing_docstrings, {"accord/losses/a.py": "x = 1\n"}),
    "no function docstring": (find_missing_docstrings, {"accord/losses/a.py": '"""A."""\ndef f(): return 1\n'}),
    "no method docstring": (
        find_missing_docstrings,
        {"accord/losses/a.py": '"""A."""\nclass C:\n    """C."""\n    def f(self): return 1\n'},
    ),
    "bare except": (find_swallowed_errors, {"accord/losses/a.py": "try:\n    x\nexcept:\n    y\n"}),
    "swallowed error": (find_swallowed_errors, {"accord/losses/a.py": "try:\n    x\nexcept ValueError:\n    pass\n"}),
    "machine path": (find_machine_paths, {"docs/a.md": "see " + "/".join(["", "home", "me", "models"])}),
    "unfinished work": (find_leftovers, {"accord/losses/a.py": "# TO" + "DO: later\n"}),
    "a manager": (find_leftovers, {"accord/losses/a.py": "class RunMan" + "ager:\n    x = 1\n"}),
    "a drawer": (find_leftovers, {"accord/utils.py": ""}),
}


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A house without fault: the real floors, and one good module in each of three rooms."""
    files = {
        "docs/design.md": (ROOT / "docs/design.md").read_text(encoding="utf-8"),
        "accord/__init__.py": '"""Accord."""\n',
        "accord/types.py": '"""Types."""\nfrom accord import errors\n',
        "accord/errors.py": '"""Errors."""\n',
        **{
            f"accord/{room}/__init__.py": f'"""{room}."""\nimport accord.types\n'
            for room in ("functional", "losses", "feedback", "models", "training")
        },
        "accord/models/base.py": '"""Base."""\nfrom accord.losses import __name__\n',
        "accord/functional/gae.py": '"""GAE."""\n',
        "accord/feedback/store.py": '"""Store."""\nfrom accord.types import Vote\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("mistake", RULES)
def test_each_rule_finds_its_mistake(small_house: Path, mistake: str) -> None:
    rule, files = RULES[mistake]
    assert rule(small_house) == []
    for name, text in files.items():
        (small_house / name).parent.mkdir(parents=True, exist_ok=True)
        (small_house / name).write_text(text)
    assert rule(small_house) != []


@pytest.mark.parametrize(
    "rule", sorted({rule for rule, _ in RULES.values()}, key=lambda f: f.__name__), ids=lambda f: f.__name__
)
def test_this_house_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def test_the_floors_hold_every_room() -> None:
    floors = read_floors(ROOT / "docs/design.md")
    assert floors["types"] < floors["functional"] < floors["losses"] < floors["models"] < floors["training"]
    assert floors["training"] < floors["loop"] < floors["cli"]
