"""Who gets where: every route walked signed out, with the wrong role, with a forged form; sign-in; headers; hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount, Route

from accord.config import load_config
from accord.web.app import create_app
from accord.web.people import make_invitation
from accord.web.security import Guard, SignInLimiter, compute_csrf_token, is_csrf_token
from accord.web.site import Site, open_site
from accord.workspace import Workspace
from tests.web.served import PASSWORD, build_items, build_project

BASE = "http://localhost:8400"
PUBLIC = {"/", "/sign-in", "/invitations/{token}", "/openapi.json", "/static"}
FOR_ANNOTATORS = {
    "/label", "/guidelines", "/guidelines/text", "/sign-out", "/api", "/api/label/lease", "/api/label/answers",
    "/api/label/release", "/api/label/chat", "/api/votes", "/api/status", "/password",
}  # fmt: skip
OWNERS_METHODS = {("GET", "/api/votes"), ("POST", "/guidelines")}
"""Of paths that annotators reach, what they may not do there."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Accounts are asked for; nobody is there yet."""
    config = load_config(build_project(tmp_path), ["label.accounts=always"])
    opened = open_site(Workspace(tmp_path), config)
    yield opened
    opened.database.close()


def build_client(site: Site) -> TestClient:
    return TestClient(create_app(site), base_url=BASE, follow_redirects=False)


def read_csrf(client: TestClient, path: str) -> str:
    found = re.search(r'(?:name="csrf" value|data-csrf)="([0-9a-f]{64})"', client.get(path).text)
    assert found, path
    return found[1]


def sign_up(site: Site, name: str, role: Any = "annotator") -> TestClient:
    """A browser of someone who has accepted an invitation."""
    client = build_client(site)
    path = f"/invitations/{make_invitation(site, role, 'test')}"
    form = {"csrf": read_csrf(client, path), "name": name, "password": PASSWORD}
    answer = client.post(path, data=form)
    assert answer.status_code == 303, answer.text
    return client


def list_routes(site: Site) -> list[tuple[str, str]]:
    """(method, path) of everything that the app answers to, read from its route table."""
    found = []
    for route in create_app(site).routes:
        if isinstance(route, Mount):
            found.append(("GET", route.path))
        elif isinstance(route, Route):
            found += [(method, route.path) for method in sorted(route.methods or ()) if method != "HEAD"]
        else:
            found += _list_included(route)
    assert len(found) > 25
    return found


def _list_included(route: Any) -> list[tuple[str, str]]:
    inner = route.original_router.routes
    return [(method, one.path) for one in inner for method in sorted(one.methods) if method != "HEAD"]


def fill(path: str) -> str:
    return path.replace("{token}", "unknown").replace("{number}", "1")


def test_a_signed_out_client_gets_nowhere(site: Site) -> None:
    client = build_client(site)
    for method, path in list_routes(site):
        answer = client.request(method, fill(path), json={} if method == "POST" else None)
        if path in PUBLIC:
            continue
        assert answer.status_code in (303, 401), (method, path, answer.status_code)
        if answer.status_code == 303:
            assert answer.headers["location"].startswith("/sign-in"), (method, path)


def test_an_annotator_gets_to_no_owners_page(site: Site) -> None:
    client = sign_up(site, "ada")
    headers = {"x-csrf-token": read_csrf(client, "/label")}
    for method, path in list_routes(site):
        if path in PUBLIC or path == "/sign-out":
            continue
        answer = client.request(method, fill(path), json={} if method == "POST" else None, headers=headers)
        refused = path not in FOR_ANNOTATORS or (method, path) in OWNERS_METHODS
        assert (answer.status_code == 403) == refused, (method, path, answer.status_code)


def test_a_form_without_the_pages_token_is_refused_on_every_route(site: Site) -> None:
    client = sign_up(site, "olga", "owner")
    form = {"name": "x", "password": "y", "text": "z"}
    for method, path in list_routes(site):
        if method == "GET":
            continue
        for headers in ({}, {"x-csrf-token": compute_csrf_token("another session")}):
            answer = client.request(method, fill(path), headers=headers, data=form)
            assert answer.status_code == 403, (method, path, answer.status_code)
    assert [person.name for person in site.people.list()] == ["olga"]
    assert site.guidelines.latest() is None


def test_a_request_from_another_site_is_refused_even_with_the_token(site: Site) -> None:
    client = sign_up(site, "olga", "owner")
    token = read_csrf(client, "/guidelines")
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/guidelines", data={"csrf": token, "text": "x"}, headers=headers).status_code == 403
    own = {"origin": BASE, "sec-fetch-site": "same-origin"}
    assert client.post("/guidelines", data={"csrf": token, "text": "Be *kind*."}, headers=own).status_code == 303
    assert site.guidelines.latest() is not None


def test_open_on_loopback_still_refuses_forgery_and_rebinding(tmp_path: Path) -> None:
    site = open_site(Workspace(tmp_path), load_config(build_project(tmp_path)))
    client = build_client(site)
    assert not site.accounts
    assert client.post("/guidelines", data={"text": "x"}).status_code == 403
    token = read_csrf(client, "/guidelines")
    assert client.post("/guidelines", data={"csrf": token, "text": "x"}).status_code == 303
    for host in ("evil.example", "evil.example:8400", "localhost.evil.example", "localhost@evil.example", ""):
        assert client.get("/label", headers={"host": host}).status_code == 421, host
    for host in ("localhost:8400", "127.0.0.1:1", "[::1]:8400", "LOCALHOST"):
        assert client.get("/label", headers={"host": host}).status_code == 200, host
    site.database.close()


def test_any_other_host_asks_for_accounts(tmp_path: Path) -> None:
    config = load_config(build_project(tmp_path), ["label.host=0.0.0.0"])
    site = open_site(Workspace(tmp_path), config)
    assert site.accounts
    assert build_client(site).get("/label").status_code == 303
    site.database.close()


def test_every_answer_carries_the_headers(site: Site) -> None:
    client = sign_up(site, "olga", "owner")
    for path in ("/label", "/people", "/static/label.js", "/nowhere", "/openapi.json", "/api/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"


def test_the_session_cookie_is_out_of_reach_of_scripts(site: Site) -> None:
    client = build_client(site)
    path = f"/invitations/{make_invitation(site, 'annotator', 'test')}"
    answer = client.post(path, data={"csrf": read_csrf(client, path), "name": "ada", "password": PASSWORD})
    cookie = next(value for value in answer.headers.get_list("set-cookie") if "accord_session" in value).lower()
    assert "httponly" in cookie
    assert "samesite=" in cookie
    assert PASSWORD not in str(site.people.password_hash("ada"))
    assert str(site.people.password_hash("ada")).startswith("$argon2id$")


def test_sign_in_and_out(site: Site) -> None:
    sign_up(site, "ada")
    client = build_client(site)
    form = {"csrf": read_csrf(client, "/sign-in"), "name": "ada", "password": PASSWORD, "to": "/guidelines"}
    answer = client.post("/sign-in", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/guidelines")
    assert client.get("/label").status_code == 200
    assert client.post("/sign-out", data={"csrf": read_csrf(client, "/label")}).status_code == 303
    assert client.get("/label").status_code == 303


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_sign_in_leads_nowhere_else(site: Site, to: str) -> None:
    sign_up(site, "ada")
    client = build_client(site)
    form = {"csrf": read_csrf(client, "/sign-in"), "name": "ada", "password": PASSWORD, "to": to}
    assert client.post("/sign-in", data=form).headers["location"] == "/"


def test_guessing_a_password_is_stopped(site: Site) -> None:
    sign_up(site, "ada")
    client = build_client(site)
    token = read_csrf(client, "/sign-in")
    codes = [
        client.post("/sign-in", data={"csrf": token, "name": "ada", "password": f"wrong {n}"}).status_code
        for n in range(7)
    ]
    assert codes == [403] * 5 + [429] * 2
    right = client.post("/sign-in", data={"csrf": token, "name": "ada", "password": PASSWORD})
    assert right.status_code == 429, "even the right one waits"
    assert int(right.headers["retry-after"]) > 200


def test_the_limit_ends_with_its_window() -> None:
    now = [0.0]
    limiter = SignInLimiter(attempts=3, window_seconds=60.0, clock=lambda: now[0])
    for second in (0.0, 10.0, 20.0):
        now[0] = second
        limiter.record_failure("ada")
    assert limiter.seconds_to_wait("ada", "other") == 40.0
    now[0] = 60.5
    assert limiter.seconds_to_wait("ada") == 0.0
    limiter.record_failure("other")
    limiter.forget("ada")
    assert limiter.seconds_to_wait("ada") == 0.0


def test_an_invitation_works_once_and_not_after_it_was_taken_back(site: Site) -> None:
    owner = sign_up(site, "olga", "owner")
    token = read_csrf(owner, "/people")
    page = owner.post("/people/invitations", data={"csrf": token, "role": "annotator"}).text
    path = re.search(r"/invitations/[\w-]+", page)
    assert path
    client = build_client(site)
    form = {"csrf": read_csrf(client, path[0]), "name": "ada", "password": PASSWORD}
    assert client.post(path[0], data=form).status_code == 303
    assert client.post(path[0], data=form | {"name": "eve"}).status_code == 404
    second = f"/invitations/{make_invitation(site, 'owner', 'olga')}"
    (open_one,) = [one for one in site.people.invitations() if not one.closed_at]
    owner.post("/people/invitations/revoke", data={"csrf": token, "invitation": open_one.token_hash})
    assert client.get(second).status_code == 404


def test_paused_and_deleted_people(site: Site) -> None:
    owner, ada = sign_up(site, "olga", "owner"), sign_up(site, "ada")
    site.queue.add_items(build_items(2), round=1, seed=0)
    headers = {"x-csrf-token": read_csrf(ada, "/label")}
    lease = ada.post("/api/label/lease", json={"count": 2}, headers=headers).json()["items"][0]["lease"]
    token = read_csrf(owner, "/people")

    def change(action: str) -> None:
        form = {"csrf": token, "name": "ada", "action": action}
        assert owner.post("/people/change", data=form).status_code == 303

    change("pause")
    assert ada.post("/api/label/lease", json={"count": 2}, headers=headers).status_code == 403
    answer = {"id": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "kind": "comparison", "lease": lease, "choice": "a"}
    result = ada.post("/api/label/answers", json={"answers": [answer]}, headers=headers).json()["results"]
    assert result == [{"id": answer["id"], "stored": True, "reason": ""}], "what they had judged is kept"
    change("resume")
    assert ada.get("/label").status_code == 200
    change("delete")
    assert ada.get("/label").status_code == 303
    assert [vote.annotator for vote in site.store.votes()] == ["ada"]


def test_a_huge_body_is_refused(site: Site) -> None:
    client = sign_up(site, "ada")
    headers = {"x-csrf-token": read_csrf(client, "/label")}
    assert client.post("/api/label/answers", content=b" " * 2_000_001, headers=headers).status_code == 413


def test_the_guard_is_around_the_app(site: Site) -> None:
    app = create_app(replace(site))
    assert any(middleware.cls is Guard for middleware in app.user_middleware)


def test_csrf_tokens_belong_to_one_session() -> None:
    assert is_csrf_token("secret", compute_csrf_token("secret"))
    assert not is_csrf_token("secret", compute_csrf_token("secret2"))
    assert not is_csrf_token("secret", "")
    assert not is_csrf_token("secret", "é")
