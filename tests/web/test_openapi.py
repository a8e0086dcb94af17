"""Schemathesis reads the OpenAPI document and calls everything in it, well and badly: nothing may answer 5xx.

It runs inside the process, on a project with items and guidelines, as an owner with a token; what is answered must have
the form that the document says.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from accord.config import load_config
from accord.web.app import create_app
from accord.web.site import Site, open_site
from accord.workspace import Workspace
from tests.web.served import build_items, build_project
from tests.web.test_http_api import give_token

EXAMPLES = 20
CALLS = {
    ("GET", "/api/votes"), ("POST", "/api/votes"), ("POST", "/api/items"), ("GET", "/api/status"),
    ("POST", "/api/label/lease"), ("POST", "/api/label/chat"), ("POST", "/api/label/answers"),
    ("POST", "/api/label/release"),
}  # fmt: skip


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """A project and its owner's token."""
    folder = tmp_path_factory.mktemp("openapi")
    site = open_site(Workspace(folder), load_config(build_project(folder), ["label.host=0.0.0.0"]))
    token = give_token(site, "olga", "owner")
    site.queue.add_items(build_items(40), round=1, seed=0)
    site.guidelines.publish("Be fair.", author="olga")
    yield site, token
    site.database.close()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_nothing_in_the_document_breaks_the_server(owned: tuple[Site, str], mode: GenerationMode) -> None:
    site, token = owned
    document = schemathesis.openapi.from_asgi("/openapi.json", create_app(site))
    called = set()
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: schemathesis.Case) -> None:
            answer = case.call(headers={"authorization": f"Bearer {token}"})
            case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])

        try:
            call()
        except Unsatisfiable:  # a call without input cannot be made badly
            assert (mode, operation.path) == (GenerationMode.NEGATIVE, "/api/status")
        called.add((operation.method.upper(), operation.path))
    assert called == CALLS
