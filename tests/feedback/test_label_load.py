"""The load benchmark in small: people at a served app that is killed meanwhile, on both databases."""

from __future__ import annotations

from benchmarks.label_load import Load, run


def test_what_was_acknowledged_is_there_once_though_the_server_is_killed(database_url: str) -> None:
    url = None if database_url.startswith("sqlite") else database_url
    found = run(Load(url, people=12, seconds=8.0, think_seconds=0.15, kill_seconds=2.0))
    assert found.kills >= 1
    assert found.acknowledged > 50
    assert (found.lost, found.doubled, found.beyond) == (0, 0, 0)


def test_leases_of_those_who_walk_away_run_out_and_go_to_others() -> None:
    found = run(Load(people=12, seconds=25.0, think_seconds=0.2, walk_away=0.04, lease_seconds=10))
    assert found.expired > 20
    assert found.returned > 0
    assert found.surplus > 0
    assert (found.lost, found.doubled, found.beyond) == (0, 0, 0)
