"""What a lease and a vote cost beside many others, on SQLite or PostgreSQL: one annotator alone, and fifty at once.

Prints a table. `python -m benchmarks.label_queue --votes 100000` makes an SQLite file in a temporary folder; `--url`
names another empty database. It measures the store alone; a server adds HTTP.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from accord.feedback.answering import Answer
from accord.feedback.database import Database, open_database
from accord.feedback.items import NewItem, Overlap
from accord.feedback.people import People
from accord.feedback.queue import Queue
from accord.types import Completion, Prompt
from benchmarks.tables import format_table

ALONE_VOTES = 300
PEOPLE = 50
PREFETCH_ITEMS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty database; default: SQLite in a temporary folder")
    parser.add_argument("--votes", type=int, default=100_000, help="votes that are there before the clock starts")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long fifty people label")
    parser.add_argument("--think", type=float, default=0.5, help="mean seconds between a person's answers")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_database(options.url or Path(folder) / "feedback.db") as database,
    ):
        print(measure(database, options.votes, options.seconds, options.think))


def measure(database: Database, votes: int, seconds: float, think_seconds: float) -> str:
    """A table of times in milliseconds: median, 99th percentile, longest, and votes a second."""
    names = [f"person {number}" for number in range(PEOPLE)]
    people, queue = People(database), Queue(database)
    for name in names:
        people.add(name, actor="benchmark")
    asked = votes + ALONE_VOTES + int(2 * PEOPLE * seconds / max(think_seconds, 0.01)) + PEOPLE * PREFETCH_ITEMS
    items = (build_item(number) for number in range(asked))
    queue.add_items(list(items), round=1, seed=0, overlap=Overlap(0.0, 1, 1))
    while votes > 0:
        votes -= len(label(queue, names[votes % PEOPLE], min(votes, 100))[1])
    rows = []
    leases, times = zip(*(label(queue, names[0], 1) for _ in range(ALONE_VOTES)), strict=True)
    rows.append(["a lease of one item", *describe(list(leases)), None])
    rows.append(["a vote", *describe([one for some in times for one in some]), None])
    together = label_together(queue, names, seconds, think_seconds)
    rows.append([f"a vote beside {PEOPLE} people", *describe(together), len(together) / seconds])
    return format_table(["", "median ms", "p99 ms", "max ms", "votes/s"], rows)


def build_item(number: int) -> NewItem:
    """A pair of short answers."""
    answers = (Completion.from_text(f"yes, {number}"), Completion.from_text(f"no, {number}"))
    return NewItem("comparison", Prompt.from_user(f"Is it {number}?"), answers)


def label(queue: Queue, name: str, count: int) -> tuple[float, list[float]]:
    """Leases and answers `count` items; seconds of the lease, and of each answer."""
    began = time.perf_counter()
    items = queue.lease(name, count)
    leased = time.perf_counter() - began
    return leased, [submit(queue, name, item.lease_id) for item in items]


def submit(queue: Queue, name: str, lease_id: str) -> float:
    """Seconds of one answer."""
    answer = Answer(str(uuid.uuid4()), name, lease_id, choice="a", seconds=1.0)
    began = time.perf_counter()
    queue.submit(answer)
    return time.perf_counter() - began


def label_together(queue: Queue, names: Sequence[str], seconds: float, think_seconds: float) -> list[float]:
    """Each person in a thread of their own, thinking for an exponential time before each answer; seconds of each."""
    times: list[float] = []
    deadline = time.monotonic() + seconds

    def work(name: str) -> None:
        stream = random.Random(name)
        while time.monotonic() < deadline:
            for item in queue.lease(name, PREFETCH_ITEMS):
                time.sleep(stream.expovariate(1.0 / think_seconds))
                if time.monotonic() > deadline:
                    return
                times.append(submit(queue, name, item.lease_id))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def describe(times: list[float]) -> list[float]:
    """Median, 99th percentile and longest, in milliseconds."""
    ordered = sorted(times)
    return [1000.0 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1.0)]


if __name__ == "__main__":
    main()
