"""The load benchmark in small: people at a served app that is killed meanwhile, on both databases."""

from __future__ import annotations

from benchmarks.label_load import Load, run


def test_what_was_acknowledged_is_there_once_though_the_server_is_killed(database_url: str) -> None:
    url = None if database_url.startswith("sqlite") else database_url
    found = run(Load(url, people=12, seconds=8.0, think_seconds=0.15, kill_seconds=2.0))
    assert found.kills >= 1
    assert found.acknowledged > 50
    assert (found.lost, found.doubled, found.beyond) == (0, 0, 0)
