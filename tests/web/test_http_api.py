"""Votes from programs: tokens, names they may vote under, repeated calls, bad rows; and no input that breaks a call."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.config import load_config
from accord.errors import AccordError, DataError, RefusedError
from accord.web.app import create_app
from accord.web.client import VoteClient
from accord.web.site import Site, hash_secret, open_site
from accord.workspace import Workspace
from tests.web.served import Server, build_project

RATING = {"kind": "rating", "prompt": "What is tea?", "completions": ["A drink."], "rating": 1.0}


def give_token(site: Site, name: str, role: Any = "annotator") -> str:
    token = secrets.token_urlsafe()
    if site.people.find(name) is None:
        site.people.add(name, role=role, actor="test")
    site.people.open_session(hash_secret("api", token), name, expires_at=datetime.now(UTC) + timedelta(days=1))
    return token


def build_client(site: Site, name: str, role: Any = "annotator") -> TestClient:
    client = TestClient(create_app(site), base_url="http://localhost:8400", raise_server_exceptions=False)
    client.headers["authorization"] = f"Bearer {give_token(site, name, role)}"
    return client


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened = open_site(Workspace(tmp_path), load_config(build_project(tmp_path), ["label.accounts=always"]))
    yield opened
    opened.database.close()


def test_a_vote_is_stored_once_under_the_tokens_name(site: Site) -> None:
    client = build_client(site, "shop")
    for expected in (1, 0):
        answer = client.post("/api/votes", json={"votes": [{**RATING, "id": "v1"}]})
        assert answer.json() == {"received": 1, "added": expected}
    (vote,) = site.store.votes()
    assert (vote.annotator, vote.rating, vote.source, vote.simulated) == ("shop", 1.0, "api", False)


def test_a_token_votes_for_its_own_users_alone(site: Site) -> None:
    client = build_client(site, "shop")
    for name, status in (("shop/u-1", 200), ("other", 403), ("shopper", 403), ("other/shop", 403)):
        answer = client.post("/api/votes", json={"votes": [{**RATING, "annotator": name}]})
        assert answer.status_code == status, name
    owner = build_client(site, "olga", "owner")
    assert owner.post("/api/votes", json={"votes": [{**RATING, "annotator": "other"}]}).status_code == 200


def test_all_or_none_with_the_number_of_the_bad_one(site: Site) -> None:
    client = build_client(site, "shop")
    answer = client.post("/api/votes", json={"votes": [RATING, {**RATING, "rating": 2.0}]})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("vote 2:")
    assert site.store.count() == 0


def test_a_token_is_no_cookie_and_a_cookie_no_token(site: Site) -> None:
    client = build_client(site, "shop")
    token = client.headers.pop("authorization").removeprefix("Bearer ")
    client.cookies.set("accord_session", token)
    assert client.get("/api/status").status_code == 401
    assert client.get("/api/status", headers={"authorization": f"Basic {token}"}).status_code == 401


def test_items_come_in_and_votes_go_out(site: Site) -> None:
    owner = build_client(site, "olga", "owner")
    item = {"prompt": "What is tea?", "completions": ["A drink.", "A letter."], "overlap": 2}
    assert owner.post("/api/items", json={"items": [item]}).json() == {"received": 1, "added": 1}
    assert owner.post("/api/items", json={"items": [item]}).json()["added"] == 0
    assert owner.get("/api/status").json()["votes_wanted"] == 2
    leased = owner.post("/api/label/lease", json={"count": 1}).json()["items"][0]
    answer = {"id": str(uuid4()), "kind": "comparison", "lease": leased["lease"], "choice": "tie"}
    assert owner.post("/api/label/answers", json={"answers": [answer]}).json()["results"][0]["stored"]
    (line,) = owner.get("/api/votes").text.splitlines()
    assert json.loads(line)["choice"] == "tie"


def test_the_client_retries_and_counts_once(server: Server) -> None:
    server.start()
    site = open_site(Workspace(server.project), load_config(server.project))
    client = VoteClient(server.link, give_token(site, "shop"), name="shop", retries=2)
    assert client.rate("What is tea?", "A drink.", 1.0, user="u-1", vote_id="thumb-1")
    assert not client.rate("What is tea?", "A drink.", 1.0, user="u-1", vote_id="thumb-1")
    assert client.compare("What is tea?", "A drink.", "A letter.", "a", strength=7)
    assert client.status()["votes"] == 2
    assert [vote.annotator for vote in site.store.votes("rating")] == ["shop/u-1"]
    with pytest.raises(DataError, match="rating"):
        client.rate("What is tea?", "A drink.", 7.0)
    with pytest.raises(RefusedError):
        VoteClient(server.link, "no token").status()
    server.kill()
    with pytest.raises(AccordError, match="cannot be reached"):
        VoteClient(server.link, "x", retries=1).status()


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.just("\ud800\x00"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["rating", "comparison", "ranking", "flag", "skip", "undo"])
OTHERS = [
    "id",
    "annotator",
    "strength",
    "ranks",
    "flag",
    "lease",
    "position",
    "reason",
    "count",
    "have",
    "created_at",
    "overlap",
    "action",
]
VOTE_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "kind": KINDS | ANYTHING,
        "prompt": st.just("p") | ANYTHING,
        "completions": st.lists(st.text(max_size=3) | ANYTHING, max_size=3) | ANYTHING,
        "choice": st.just("a") | ANYTHING,
        "rating": st.floats(0, 1) | ANYTHING,
        **dict.fromkeys(OTHERS, ANYTHING),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=VOTE_LIKE | ANYTHING, path=st.sampled_from(["votes", "items", "answers", "leases"]))
def test_no_body_breaks_a_call(site: Site, body: Any, path: str) -> None:
    client = build_client(site, "olga", "owner")
    address, value = {
        "votes": ("/api/votes", {"votes": [body]}),
        "items": ("/api/items", {"items": [body]}),
        "answers": ("/api/label/answers", {"answers": [body]}),
        "leases": ("/api/label/lease", body),
    }[path]
    answer = client.post(address, content=json.dumps(value).encode(), headers={"content-type": "application/json"})
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("own_id", ["\ud800\x00", None, {"a": "\udfff"}, "x" * 5000, 10**40])
def test_an_answer_is_refused_whatever_stands_for_its_id(site: Site, own_id: Any) -> None:
    client = build_client(site, "ann")
    content = json.dumps({"answers": [{"id": own_id, "kind": "rating", "lease": "l", "rating": 0.5}]}).encode()
    answer = client.post("/api/label/answers", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    assert not result["stored"]
    assert result["reason"].startswith("id: ")
    assert len(result["id"]) <= 100


@pytest.mark.parametrize("path", ["/sign-in", "/guidelines", "/people/tokens", "/worth/verdicts", "/people/change"])
@pytest.mark.parametrize("body", [b"name=%FF%00&text=%00&password=%ED%A0%80", b"\xff\xfe", b"name=" + b"a" * 5000])
def test_no_form_breaks_a_page(site: Site, path: str, body: bytes) -> None:
    client = build_client(site, "olga", "owner")
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post(path, content=body, headers=headers).status_code < 500


@pytest.mark.parametrize(
    "query", ["page=99999999999999999999", "page=-1", "q=%00%FF", "source=%ED%A0%80", "q=" + "x" * 5000]
)
def test_no_query_breaks_a_page(site: Site, query: str) -> None:
    client = build_client(site, "olga", "owner")
    for path in ("/samples", "/dashboard", "/guidelines"):
        assert client.get(f"{path}?{query}&round=1&version=%00").status_code < 500
