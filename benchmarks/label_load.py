"""Fifty annotators at one served app, which is killed every ten seconds or left alone: what is lost, and how fast.

`python -m benchmarks.label_load` serves a project with `accord label`, on SQLite and on a PostgreSQL of its own, and
prints a table. Annotators go through the HTTP API as the labelling page does: lease, think, answer, send again until it
is acknowledged. Some walk away from what they hold, so that leases run out and go to others, and answer one of those
items after all when they come back. What was acknowledged is then looked for in the database. Leaves out the browser
(`label_paint`, tests) and the store by itself (`label_queue`).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from accord.cli.project import create_project
from accord.errors import AccordError, WorkspaceError
from accord.feedback.database import Database, open_database
from accord.feedback.items import Overlap
from accord.feedback.log import read_events
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.feedback.queue_schema import answers, items, leases
from accord.feedback.schema import votes
from accord.web.site import hash_secret
from benchmarks.label_queue import build_item, describe
from benchmarks.postgres import start_postgres
from benchmarks.tables import format_table

ROOT = Path(__file__).resolve().parents[1]
PREFETCH_ITEMS = 10
WALK_AWAY = 0.002
"""P(an annotator goes away instead of answering, for so long that what they hold runs out and goes to others)."""
LEASE_SECONDS = 15
RETRY_SECONDS = 0.1
START_SECONDS = 60.0
OVERLAP = Overlap(share=0.1, high=3, low=1)


@dataclass
class Load:
    """What to do. kill_seconds: between two SIGKILLs of the server; 0: none."""

    url: str | None = None
    people: int = 50
    seconds: float = 120.0
    think_seconds: float = 1.0
    kill_seconds: float = 0.0
    walk_away: float = WALK_AWAY
    lease_seconds: int = LEASE_SECONDS


@dataclass
class Served:
    """`accord label` in a process of its own, on a free port."""

    project: Path
    options: tuple[str, ...]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers. Raises WorkspaceError where it does not."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "accord", "label", str(self.project), "--port", str(self.port), *self.options]
        with (self.project / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.02)
        said = (self.project / "server.log").read_text()
        raise WorkspaceError("the server does not start", where=str(self.project), mend=said[-2000:])

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@dataclass
class Annotator:
    """One simulated person. acknowledged: (vote, lease) that the server said to have stored."""

    name: str
    token: str
    port: int
    deadline: float
    think_seconds: float
    walk_away: float = WALK_AWAY
    lease_seconds: int = LEASE_SECONDS
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    connection: http.client.HTTPConnection | None = None

    def work(self) -> None:
        """Lease, think, answer, until the time is over; what was begun is still delivered."""
        stream = random.Random(self.name)
        while time.monotonic() < self.deadline:
            held = [item["lease"] for item in self._call("lease", {"count": PREFETCH_ITEMS})[0]["items"]]
            renewed = time.monotonic()
            if not held:
                time.sleep(self.think_seconds)
            while held:
                away = stream.random() < self.walk_away
                pause = 2 * self.lease_seconds if away else stream.expovariate(1.0 / self.think_seconds)
                time.sleep(max(0.0, min(pause, self.deadline - time.monotonic())))
                if time.monotonic() > self.deadline:
                    return
                if away:  # what is on the screen is still answered, late; the rest is somebody else's by now
                    self._answer(held[0])
                    break
                if time.monotonic() > renewed + self.lease_seconds / 3:
                    self._call("lease", {"count": 0, "have": held})
                    renewed = time.monotonic()
                self._answer(held.pop(0))

    def _answer(self, lease: str) -> None:
        answer = {"id": str(uuid.uuid4()), "kind": "comparison", "lease": lease, "choice": "a", "strength": 4}
        told, seconds = self._call("answers", {"answers": [answer]})
        self.seconds.append(seconds)
        if told["results"][0]["stored"]:
            self.acknowledged.append((str(answer["id"]), lease))
        else:
            self.refused += 1

    def _call(self, path: str, body: object) -> tuple[dict[str, list[dict[str, str]]], float]:
        """The answer of the first try that gets one, and how long that try took."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        while True:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
            began = time.perf_counter()
            try:
                self.connection.request("POST", f"/api/label/{path}", json.dumps(body), headers)
                answer = self.connection.getresponse()
                read = answer.read()
                if answer.status == 200:
                    return json.loads(read), time.perf_counter() - began
            except (
                OSError,
                http.client.HTTPException,
            ):  # the server is down: the same again, as a browser's outbox does
                self.connection.close()
                self.connection = None
            time.sleep(RETRY_SECONDS)


@dataclass(frozen=True)
class Outcome:
    """What became of it. doubled: votes of one person on one item beyond the first; beyond: items of which more votes
    count than their overlap; expired: leases that ran out; returned: of their items, those that were judged all the
    same; surplus: late votes that are kept and do not count."""

    acknowledged: int
    lost: int
    doubled: int
    beyond: int
    expired: int
    returned: int
    surplus: int
    kills: int
    refused: int
    seconds: list[float]


def run(load: Load) -> Outcome:
    """Serve, label, kill, and count."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        create_project(project, "tiny")
        settings = ["label.accounts=always", f"label.lease_seconds={load.lease_seconds}"]
        if load.url:
            settings.append(f"project.database={load.url}")
        server = Served(project, tuple(part for setting in settings for part in ("--set", setting)))
        with open_database(load.url or project / "feedback.db") as database:
            crowd = prepare(database, load)
            server.start()
            try:
                kills = label(server, crowd, load)
            finally:
                server.kill()
            return count(database, crowd, kills)


def prepare(database: Database, load: Load) -> list[Annotator]:
    """Enough items, and people with a token each."""
    wanted = int(load.people * (load.seconds / load.think_seconds + 2 * PREFETCH_ITEMS))
    Queue(database).add_items([build_item(n) for n in range(wanted)], round=1, seed=0, overlap=OVERLAP)
    people, crowd = People(database), []
    for number in range(load.people):
        name, token = f"person {number}", secrets.token_urlsafe(32)
        people.add(name, actor="benchmark")
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        people.open_session(hash_secret("api", token), name, expires_at=tomorrow)
        crowd.append(Annotator(name, token, 0, 0.0, load.think_seconds, load.walk_away, load.lease_seconds))
    return crowd


def label(server: Served, crowd: Sequence[Annotator], load: Load) -> int:
    """Everybody at work for the time of the load; returns how often the server was killed."""
    end = time.monotonic() + load.seconds
    threads = []
    for one in crowd:
        one.port, one.deadline = server.port, end
        threads.append(threading.Thread(target=one.work))
        threads[-1].start()
    kills = 0
    while load.kill_seconds and time.monotonic() + load.kill_seconds < end:
        time.sleep(load.kill_seconds)
        server.kill()
        server.start()
        kills += 1
    for thread in threads:
        thread.join()
    return kills


def count(database: Database, crowd: Sequence[Annotator], kills: int) -> Outcome:
    """Look for every acknowledged vote, and for what must not be."""
    with database.read() as connection:
        stored = set(connection.execute(select(votes.c.id)).scalars())
        overlaps: dict[str, int] = {
            row.id: row.overlap for row in connection.execute(select(items.c.id, items.c.overlap))
        }
        given = connection.execute(
            select(answers.c.item_id, votes.c.annotator).join(votes, votes.c.id == answers.c.vote_id)
        ).all()
        held = connection.execute(select(leases.c.id, leases.c.item_id, leases.c.status, leases.c.surplus)).all()
        expired = [
            row["id"]
            for event in read_events(connection)
            if event.kind == "leases_expired"
            for _, table, rows in event.changes
            if table == "leases"
            for row in rows
            if row.get("status") == "expired"
        ]
    counted = Counter(row.item_id for row in held if row.status == "answered" and not row.surplus)
    by_person = Counter((row.item_id, row.annotator) for row in given)
    item_of = {row.id: row.item_id for row in held}
    acknowledged = [vote for one in crowd for vote, _ in one.acknowledged]
    return Outcome(
        acknowledged=len(acknowledged),
        lost=len(set(acknowledged) - stored) + len(acknowledged) - len(set(acknowledged)),
        doubled=sum(number - 1 for number in by_person.values()),
        beyond=sum(number > overlaps[item] for item, number in counted.items()),
        expired=len(expired),
        returned=sum(counted[item_of[lease]] > 0 for lease in expired),
        surplus=sum(row.surplus for row in held),
        kills=kills,
        refused=sum(one.refused for one in crowd),
        seconds=[seconds for one in crowd for seconds in one.seconds],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run")
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between a person's answers")
    parser.add_argument("--walk-away", type=float, default=WALK_AWAY, help="P(a person goes away instead of answering)")
    parser.add_argument("--lease", type=int, default=LEASE_SECONDS, help="seconds until what they hold goes to others")
    parser.add_argument("--kill-every", type=float, nargs="+", default=[10.0, 0.0], help="seconds; 0: left alone")
    options = parser.parse_args(arguments)
    try:
        compare(options)
    except AccordError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


def compare(options: argparse.Namespace) -> None:
    """Run each database with each rhythm of kills in turn and print them."""
    rows = []
    for kind in ("sqlite", "postgresql") if options.on == "both" else (options.on,):
        with start_postgres(durable=True) if kind == "postgresql" else nullcontext() as postgres:
            for kill_seconds in options.kill_every:
                url = postgres.create_database() if postgres else None
                load = Load(url, options.people, options.seconds, options.think, kill_seconds)
                found = run(replace(load, walk_away=options.walk_away, lease_seconds=options.lease))
                told = [found.acknowledged, found.lost, found.doubled, found.beyond]
                told += [found.expired, found.returned, found.surplus]
                rows.append([kind, found.kills, *told, *describe(found.seconds)[:2]])
                print(rows[-1], file=sys.stderr, flush=True)
    heads = ["", "kills", "acknowledged", "lost", "doubled", "beyond overlap", "leases run out", "judged after all"]
    print(format_table([*heads, "surplus", "median ms", "p99 ms"], rows))


if __name__ == "__main__":
    main()
