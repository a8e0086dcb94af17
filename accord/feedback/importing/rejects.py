"""The rows that were not imported, kept to the byte beside their reasons, in `<name>.rejected.jsonl`.

Implements writing beside and renaming, so that the file is either whole or not there. Leaves out reading it back: mend
the rows in their source and import that again; what is known adds nothing.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from accord.feedback.importing.rows import BadRow, open_lines

BLOCK_BYTES = 3 << 18  # a multiple of 3, so that blocks of base64 join without padding


class RejectsFile:
    """A context that writes rejects; the file appears at `path` on `keep`, and never without it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(path.name + ".partial")
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._beside.unlink(missing_ok=True)

    def write(self, bad: BadRow) -> None:
        """One line: `{"path", "line", "reason", "raw"}`, or `raw_base64` where the bytes are not UTF-8 or very many."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._beside.open("w", encoding="utf-8")
        head = {"path": str(bad.path), "line": bad.line, "reason": bad.reason}
        if bad.span is not None:
            self._stream.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "raw_base64": "')
            self._copy_span(bad.path, *bad.span)
            self._stream.write('"}\n')
            return
        try:
            row = {**head, "raw": bad.raw.decode()}
        except UnicodeDecodeError:
            row = {**head, "raw_base64": base64.b64encode(bad.raw).decode("ascii")}
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def keep(self) -> Path | None:
        """Flushes and renames. Returns the path, or None where nothing was rejected."""
        if self._stream is None:
            return None
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._stream = None
        self._beside.replace(self.path)
        return self.path

    def _copy_span(self, path: Path, offset: int, length: int) -> None:
        assert self._stream is not None
        with open_lines(path) as source:
            source.seek(offset)
            while length and (block := source.read(min(BLOCK_BYTES, length))):
                length -= len(block)
                self._stream.write(base64.b64encode(block).decode("ascii"))
