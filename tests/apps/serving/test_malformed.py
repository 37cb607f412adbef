"""Every request gets an answer or an error in one common form, and leaves nothing in the server.

This test sends a few hundred requests; `make serve-clients` sends 10,000 over a port.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from apps.serving.local import LocalLimits, LocalService
from engines.many.scheduler import OneByOne, Scheduler

from ...engines.exact import exact_bundle
from .conftest import MakeClient, Parts
from .fakes import MODEL, chat
from .malformed import ALLOWED, CHAT, SESSIONS, exchanged, places, requests
from .test_server import until


class Named(LocalService):
    """A LocalService under the model name that malformed.py requests."""

    model_id = MODEL  # type: ignore[assignment]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    folder: Path = tmp_path_factory.mktemp("exact")
    made = Scheduler(OneByOne(bundle=exact_bundle(folder)), max_streams=6)
    yield made
    made.close()


@pytest.fixture
def true_client(scheduler: Scheduler, client_of: MakeClient, parts: Parts) -> Iterator[TestClient]:
    parts.service = Named(scheduler, limits=LocalLimits(sessions=4, answers=2))
    yield client_of(parts)
    assert parts.log == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_a_malformed_request_is_answered_or_refused_in_one_form(true_client: TestClient, request: Any) -> None:
    method, path, headers, body = request
    encoded = {name: text.encode("latin-1") for name, text in headers.items()}
    response = true_client.request(method, path, headers=encoded, content=body)
    assert response.status_code in ALLOWED, (response.status_code, response.text)
    if response.status_code != 200:
        assert set(json.loads(response.text)["error"]) == {"message", "type", "param", "code"}


def test_after_all_of_it_a_good_request_is_answered(
    true_client: TestClient, scheduler: Scheduler, parts: Parts
) -> None:
    for session_id in ("fuzz-1", "fuzz-2"):
        true_client.post(SESSIONS, json={"id": session_id})
        assert true_client.delete(f"{SESSIONS}/{session_id}").status_code == 200
    assert true_client.post(CHAT, json=chat(max_tokens=3)).status_code == 200
    assert parts.work.num_running == 0
    assert until(lambda: sum(handle.num_waiting for handle in scheduler.handles) == 0)


def test_a_value_can_be_exchanged_wherever_it_stands() -> None:
    good = {"a": [1, {"b": 2}]}
    assert places(good) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
    assert exchanged(good, ("a", 1, "b"), 3, "put") == {"a": [1, {"b": 3}]}
    assert exchanged(good, ("a", 0), 3, "remove") == {"a": [{"b": 2}]}
    assert exchanged(good, ("a", 0), 3, "add") == {"a": [1, {"b": 2}, 3]} and good == {"a": [1, {"b": 2}]}
