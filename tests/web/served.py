"""A labelling server in a process of its own, as a user starts it, with a project and items made on the spot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from accord.cli.project import create_project
from accord.feedback.database import Database, open_database
from accord.feedback.items import NewItem, Overlap
from accord.feedback.queue import Queue
from accord.types import Completion, Message, Prompt
from accord.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
PASSWORD = "correct horse battery"


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_project(folder: Path) -> Path:
    create_project(folder, "tiny")
    return folder


def build_items(count: int, kind: str = "comparison", answers: int = 2, overlap: int = 1) -> list[NewItem]:
    """Items of a chat of three turns; each answer says which one it is, and whose (which must never be shown)."""
    made = []
    for number in range(count):
        prompt = Prompt(
            messages=(
                Message("system", "Be kind."),
                Message("user", f"Question {number}: what is tea?"),
                Message("assistant", "A drink."),
                Message("user", "Tell me *more*."),
            )
        )
        given = tuple(
            Completion.from_text(f"Answer {k} to question {number}.", origin=f"secret-origin-{k}")
            for k in range(answers)
        )
        made.append(NewItem(kind, prompt, given, overlap=overlap))  # type: ignore[arg-type]
    return made


@dataclass
class Server:
    """`accord label` on a free port, from the wheel in the folder `installed`, or else from the checkout.

    `kill` is SIGKILL; `start` again goes on with the same database.
    """

    project: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=find_port)
    process: subprocess.Popen[str] | None = None
    installed: Path | None = None

    @property
    def link(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> Path:
        return self.project / "server.log"

    @property
    def database(self) -> Database:
        return open_database(Workspace(self.project).database_url)

    def start(self) -> Server:
        command = [sys.executable, "-m", "accord", "label", str(self.project), "--port", str(self.port), *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.installed is not None:
            environment["PYTHONPATH"] = str(self.installed)
        home = ROOT if self.installed is None else self.project
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, text=True)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.link}/static/icon.svg", timeout=1).close()
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def add(self, items: list[NewItem], round: int = 1) -> int:
        with self.database as database:
            return Queue(database).add_items(items, round=round, seed=0, overlap=Overlap(share=0.0))
