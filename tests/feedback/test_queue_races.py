"""Many people at once, on both databases, and servers that die: no item over its overlap, no vote lost or doubled."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import event

from accord.feedback.answering import Answer
from accord.feedback.database import Database, open_database
from accord.feedback.items import Overlap
from accord.feedback.queue import Queue
from tests.feedback.labelling import ALONE, new_id, open_queue, pair

PEOPLE = [f"person {i:02}" for i in range(20)]
ITEMS = 500


def count_votes(database: Database) -> Counter[str]:
    """Standing votes by item."""
    with database.read() as connection:
        query = "SELECT item_id FROM leases WHERE status = 'answered'"
        return Counter(connection.exec_driver_sql(query).scalars())


def watch_overlap(database: Database, stop: threading.Event) -> Iterator[str]:
    """Items that are over their overlap at some moment, counted from the rows and not from the counters."""
    query = (
        "SELECT items.id FROM items JOIN leases ON leases.item_id = items.id "
        "WHERE leases.status IN ('live', 'answered') GROUP BY items.id, items.overlap HAVING count(*) > items.overlap"
    )
    while not stop.is_set():
        with database.read() as connection:
            yield from connection.exec_driver_sql(query).scalars()
        time.sleep(0.02)


def test_twenty_people_label_five_hundred_items_at_once(database: Database) -> None:
    queue = open_queue(database, *PEOPLE)
    queue.add_items([pair(i) for i in range(ITEMS)], round=1, seed=3, overlap=Overlap(0.1, 3, 1))
    acknowledged: list[str] = []

    def label(name: str) -> None:
        stream = random.Random(name)
        while items := queue.lease(name, stream.randint(1, 4)):
            for item in items:
                answer = Answer(new_id(), name, item.lease_id, choice=stream.choice(("a", "b", "tie")))
                for _ in range(1 + (stream.random() < 0.2)):  # the network repeats itself
                    queue.submit(answer)
                acknowledged.append(answer.client_id)

    stop = threading.Event()
    with ThreadPoolExecutor(len(PEOPLE) + 1) as pool:
        watching = pool.submit(lambda: list(watch_overlap(database, stop)))
        for done in [pool.submit(label, name) for name in PEOPLE]:
            done.result(timeout=120)
        stop.set()
        assert watching.result() == []
    wanted = ITEMS + 2 * (ITEMS // 10)
    with database.read() as connection:
        stored = list(connection.exec_driver_sql("SELECT id FROM votes").scalars())
        overlaps = dict(connection.exec_driver_sql("SELECT id, overlap FROM items").tuples().all())
        doubles = "SELECT count(*) FROM leases GROUP BY item_id, annotator HAVING count(*) > 1"
        assert connection.exec_driver_sql(doubles).all() == []
    assert sorted(stored) == sorted(acknowledged)
    assert len(stored) == wanted
    assert count_votes(database) == Counter(overlaps)
    assert queue.progress(round=1).complete


def test_two_people_race_for_the_last_item(database: Database) -> None:
    queue = open_queue(database)
    for round in range(20):
        queue.add_items([pair(round)], round=round, seed=0, overlap=ALONE)
        barrier = threading.Barrier(2)

        def race(name: str, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return len(queue.lease(name, 1))

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(race, ["ann", "bob"])) == [0, 1]


def test_one_person_in_many_windows_gets_each_item_once(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair(i) for i in range(40)], round=1, seed=0, overlap=Overlap(1.0, 3, 1))
    with ThreadPoolExecutor(8) as pool:
        given = [item for items in pool.map(lambda _: queue.lease("ann", 10), range(8)) for item in items]
    assert len(given) == len({item.lease_id for item in given}) == 40


def test_the_same_answer_sent_at_once_is_one_vote(database: Database) -> None:
    queue = open_queue(database)
    queue.add_items([pair()], round=1, seed=0)
    (item,) = queue.lease("ann", 1)
    answer = Answer(new_id(), "ann", item.lease_id, choice="a")
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda _: queue.submit(answer), range(8)))
    assert [receipt.repeated for receipt in receipts].count(False) == 1
    assert sum(count_votes(database).values()) == 1


WORKER = """
import sys, time, uuid
from accord.feedback.answering import Answer
from accord.feedback.database import open_database
from accord.feedback.queue import Queue
url, name = sys.argv[1:]
with open_database(url) as database:
    queue = Queue(database)
    while items := queue.held(name) + queue.lease(name, 3):
        for item in items:
            client_id = str(uuid.uuid4())
            queue.submit(Answer(client_id, name, item.lease_id, choice="a"))
            print(client_id, flush=True)
            time.sleep(0.02)
"""


def test_processes_that_are_killed_lose_no_acknowledged_vote(database_url: str) -> None:
    with open_database(database_url) as database:
        queue = open_queue(database, *PEOPLE[:3])
        queue.add_items([pair(i) for i in range(150)], round=1, seed=3, overlap=Overlap(0.2, 2, 1))
        acknowledged: list[str] = []
        for _ in range(4):
            workers = [start_worker(database_url, name) for name in PEOPLE[:3]]
            for worker in workers:
                assert worker.stdout is not None
                acknowledged += [worker.stdout.readline().strip() for _ in range(4)]
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
            acknowledged += [line for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
            assert not queue.progress(round=1).complete
        workers = [start_worker(database_url, name) for name in PEOPLE[:3]]
        acknowledged += [line for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
        with database.read() as connection:
            stored = list(connection.exec_driver_sql("SELECT id FROM votes").scalars())
            overlaps = dict(connection.exec_driver_sql("SELECT id, overlap FROM items").tuples().all())
        whole = [line for line in acknowledged if len(line) == 36]  # a killed one may have died within a line
        assert len(whole) > 48
        assert set(whole) <= set(stored)
        assert len(stored) == len(set(stored)) == 150 + 30
        assert count_votes(database) == Counter(overlaps)


def start_worker(url: str, name: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", WORKER, url, name]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_full_database_is_no_more_work(tmp_path: Path) -> None:
    """A lease and a vote beside 20,000 votes take SQLite no more steps than beside 200: every query finds its rows by
    an index. (Milliseconds: benchmarks.label_queue.)"""
    assert count_steps(tmp_path / "full.db", 20_000) < 1.2 * count_steps(tmp_path / "fresh.db", 200)


def count_steps(path: Path, votes: int) -> int:
    """Instructions of SQLite's machine, in hundreds, for twenty leases and votes beside so many votes."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    with open_database(f"sqlite:///{path}") as database:
        queue = open_queue(database, "ann")
        queue.add_items([pair(i) for i in range(votes + 20)], round=1, seed=0, overlap=ALONE)
        fill(database, votes)
        event.listen(database.engine, "checkout", lambda driver, *_: driver.set_progress_handler(count, 100))
        for _ in range(20):
            (item,) = queue.lease("ann", 1)
            queue.submit(Answer(new_id(), "ann", item.lease_id, choice="a"))
    return hundreds


def fill(database: Database, count: int) -> None:
    """Answers the first `count` items by hand, quickly: the rows that leases and votes would have left."""
    with database.write("filled", "test") as transaction:
        run = transaction.connection.exec_driver_sql
        run(
            "INSERT INTO votes (id, hash, kind, prompt_id, annotator, choice, created_at, simulated, source) "
            f"SELECT 'v' || id, '', 'comparison', prompt_id, 'ann', 'a', '2026', position < 0, 'web' FROM items "
            f"WHERE position < {count}"
        )
        run(
            "INSERT INTO leases (id, item_id, annotator, shown, status, surplus, vote_id, created_at, expires_at) "
            f"SELECT id, id, 'ann', '[0, 1]', 'answered', position < 0, 'v' || id, '2026', '2026' FROM items "
            f"WHERE position < {count}"
        )
        run(f"UPDATE items SET answered = 1, is_open = position < 0 WHERE position < {count}")
    assert Queue(database).progress(round=1).cast == count
