"""A project on disk: artifact keys, immutable artifacts, checkpoints of unfinished ones, the ledger, and one lock.

Implements `artifacts/KIND/KEY/` written beside its place, flushed and renamed; a KEY that hashes all that shaped the
artifact; `rounds/NNN/` for what has a clock. Leaves out what the stages do (`loop`) and what votes are (`feedback`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.distributed import is_first
from accord.errors import WorkspaceError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
LINK_FILE = ".label.json"
"""Written by `accord label` while it runs: `link` and `pid`."""


def dump_json(value: Any) -> str:
    """Canonical, readable JSON: sorted keys, two spaces, UTF-8, no NaN. Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compute_key(stage: str, version: int, section: Mapping[str, Any], parents: Mapping[str, str], seed: int) -> str:
    """First 20 hex digits of the SHA-256 of all that shapes an artifact: stage, version, settings, parents, seed."""
    value = {"stage": stage, "version": version, "section": section, "parents": parents, "seed": seed}
    return hashlib.sha256(dump_json(value).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Artifact:
    """A finished, immutable result: `kind`, `key`, its folder, and its manifest (see docs/artifacts.md)."""

    kind: str
    key: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The few numbers that the stage wants to be found without opening its files."""
        result: Mapping[str, Any] = self.manifest["summary"]
        return result

    def read_json(self, name: str) -> Any:
        """A JSON file of the artifact."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def read_jsonl(self, name: str) -> list[Any]:
        """A file of JSON lines of the artifact."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True)
class Draft:
    """An artifact that is being made: write files into `folder`, put the numbers to remember into `summary`."""

    folder: Path
    summary: dict[str, Any]

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, canonically."""
        (self.folder / name).write_text(dump_json(value), encoding="utf-8")

    def write_jsonl(self, name: str, rows: Iterable[Any]) -> None:
        """Write JSON lines, canonically."""
        with (self.folder / name).open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


class Workspace:
    """The folder of one project."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @property
    def database_url(self) -> str:
        """Where the votes are if the settings do not say."""
        return self.locate_votes("")

    def locate_votes(self, database: str) -> str:
        """Where the votes are: the setting `project.database`, or feedback.db in this folder where it is empty."""
        return database or f"sqlite:///{self.root / 'feedback.db'}"

    def label_link(self) -> str | None:
        """Where people label this project, if `accord label` runs; what a killed server left counts for nothing."""
        try:
            row = json.loads((self.root / LINK_FILE).read_text(encoding="utf-8"))
            os.kill(int(row["pid"]), 0)  # signal 0 asks whether the process is there
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return str(row["link"])

    def round_folder(self, number: int) -> Path:
        """`rounds/NNN`, made when first asked for."""
        folder = self.root / "rounds" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact, or None.

        Raises:
            WorkspaceError: its manifest cannot be read: the folder was changed by hand.
        """
        folder = self.root / "artifacts" / kind / key
        if not folder.is_dir():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WorkspaceError(
                f"the artifact has no readable manifest ({error})",
                where=str(folder),
                mend="delete that folder; accord run makes it again",
            ) from error
        return Artifact(kind, key, folder, manifest)

    def scratch_folder(self, kind: str, key: str) -> Path:
        """Where an unfinished artifact keeps its checkpoint between runs; gone once it is finished."""
        folder = self.root / "artifacts" / kind / f".{key}.unfinished"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def create(
        self,
        kind: str,
        key: str,
        *,
        stage: str,
        version: int,
        section: Mapping[str, Any],
        parents: Mapping[str, str],
        seed: int,
    ) -> Iterator[Draft]:
        """Make an artifact: files are written beside its place, flushed to disk, then renamed. All or nothing.

        Of several processes that make it together, the first one keeps what it writes, the others throw it away.
        """
        if not is_first():
            with tempfile.TemporaryDirectory() as folder:
                yield Draft(Path(folder), {})
            return
        place = self.root / "artifacts" / kind / key
        scratch = place.with_name(f".{key}.draft")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        draft = Draft(scratch, {})
        yield draft
        files = {
            str(path.relative_to(scratch)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "kind": kind,
            "key": key,
            "stage": stage,
            "version": version,
            "section": section,
            "parents": parents,
            "seed": seed,
            "files": files,
            "summary": draft.summary,
        }
        draft.write_json(MANIFEST, manifest)
        _flush_tree(scratch)
        os.replace(scratch, place)
        _flush_folder(place.parent)
        shutil.rmtree(place.with_name(f".{key}.unfinished"), ignore_errors=True)

    def ancestors(self, artifact: Artifact) -> list[Artifact]:
        """The artifact and all it came from, nearest first, each once: from a policy back to the votes."""
        found: dict[str, Artifact] = {}
        queue = [artifact]
        while queue:
            current = queue.pop(0)
            if current.key in found:
                continue
            found[current.key] = current
            for kind_and_key in current.manifest["parents"].values():
                kind, _, key = kind_and_key.partition("/")
                parent = self.find(kind, key) if key else None
                if parent:
                    queue.append(parent)
        return list(found.values())

    def append_ledger(self, number: int, row: Mapping[str, Any]) -> None:
        """One line of `rounds/NNN/ledger.jsonl`: what was done when, and what it cost."""
        append_line(self.round_folder(number) / "ledger.jsonl", row)

    def read_ledger(self, number: int) -> list[dict[str, Any]]:
        """All whole lines of the round's ledger; a last line that a kill cut short is left out."""
        return read_lines(self.round_folder(number) / "ledger.jsonl")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One `accord run` at a time. The lock goes with the process, however it ends.

        Raises:
            WorkspaceError: another process holds it.
        """
        path = self.root / ".lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WorkspaceError(
                    "another accord run is at work in this project",
                    where=str(self.root),
                    mend="wait for it, or stop it",
                ) from error
            yield


class FolderCheckpoint:
    """`types.Checkpoint` in a folder: tensors as safetensors and state as JSON, replaced in one rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the last checkpoint. The state travels in the safetensors header, so both change at once.

        Of several processes, which all hold the same, the first one writes.
        """
        from safetensors.torch import save_file

        if not is_first():
            return
        scratch = self.folder / ".checkpoint.draft"
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, scratch, metadata={"state": json.dumps(state)})
        _flush_file(scratch)
        os.replace(scratch, self.folder / "checkpoint.safetensors")
        _flush_folder(self.folder)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, or None."""
        from safetensors import safe_open

        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads(file.metadata()["state"])


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line, whole: a line that a kill cut short is cut off first."""
    _cut_unfinished_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; an unfinished last line is left out, a missing file is empty."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]


def replace_file(path: Path, text: str) -> None:
    """Write a whole file beside its place and rename it: a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    _flush_file(draft)
    os.replace(draft, path)


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`replace_file` with JSON lines."""
    replace_file(path, "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows))


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush_file(path)
    for path in sorted(p for p in folder.rglob("*") if p.is_dir()):
        _flush_folder(path)
    _flush_folder(folder)
