"""The recipe of docs/objectives.md, followed to the letter on a copy of the package, as a stranger would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"`([\w/]+\.py)`[^`]*(?:`\w+`[^`]*)?:\n\n```python\n(.*?)```", PAGE, re.DOTALL))


def insert(text, line, *, before):
    """`text` with `line` put above the one line that starts with `before`."""
    found = re.findall(rf"^{re.escape(before)}.*$", text, re.MULTILINE)
    assert len(found) == 1, f"the recipe's place is gone: {before}"
    return text.replace(found[0], f"{line}\n{found[0]}")


def test_the_recipe_works_as_printed(tmp_path):
    shutil.copytree(ROOT / "accord", tmp_path / "accord", ignore=shutil.ignore_patterns("__pycache__", "web", "data"))
    tests = tmp_path / "tests" / "losses"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "losses" / "test_policy_objectives.py", tests)

    for path in ("accord/losses/spo.py", "tests/losses/test_spo.py"):
        assert not (ROOT / path).exists(), "the recipe's example is no longer new"
        (tmp_path / path).write_text(BLOCKS[path], encoding="utf-8")
    import_line, dictionary_line = BLOCKS["accord/losses/__init__.py"].strip().split("\n\n")
    init = tmp_path / "accord" / "losses" / "__init__.py"
    text = insert(init.read_text(encoding="utf-8"), import_line, before="from accord.losses.value import")
    init.write_text(insert(text, dictionary_line, before='    "reinforce":'), encoding="utf-8")

    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir", ".", "tests"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"^tests/losses/(\S*spo\S*) PASSED", done.stdout, re.MULTILINE)
    files = {name.split("::")[0] for name in passed}
    assert files == {"test_spo.py", "test_policy_objectives.py"}, (
        done.stdout
    )  # its own, and what every entry is held to
