"""A server in the test process: through starlette's client, or through uvicorn on a free port where sockets matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.testclient import TestClient

from apps.serving.app import make_app
from apps.serving.heads import timed_protocol
from apps.serving.limits import Limits
from apps.serving.metrics import Metrics
from apps.serving.service import Service
from apps.serving.work import Work
from apps.web.access import Access
from apps.web.options import WebOptions
from apps.web.server import Server, bind

from .fakes import FakeService

TOKEN = "a-token-of-the-tests-0123456789"
BASE = "http://localhost:8000"
MakeClient = Callable[..., TestClient]


@dataclass
class Parts:
    """The parts of a test app.

    log          the defects of our own that the server would log
    connections  uvicorn's open connections, if uvicorn serves the app
    """

    service: Any = field(default_factory=FakeService)
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    work: Work = field(default_factory=Work)
    log: list[str] = field(default_factory=list)
    connections: Any = ()

    def app(self, port: int = 8000) -> Any:
        access = Access.of(WebOptions(), token=self.token, port=port)
        return make_app(
            self.service, access=access, limits=self.limits, metrics=self.metrics, work=self.work, log=self.log.append
        )


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def parts(service: Service) -> Parts:
    return Parts(service=service)


@pytest.fixture
def client_of() -> Iterator[MakeClient]:
    with ExitStack() as stack:

        def make(parts: Parts) -> TestClient:
            client = TestClient(parts.app(), base_url=BASE, raise_server_exceptions=False)
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(client_of: MakeClient, parts: Parts) -> Iterator[TestClient]:
    yield client_of(parts)
    assert parts.log == [], "the server logged a defect of its own"


@contextmanager
def served(parts: Parts, *, head_s: float = 20.0, unread_s: float = 60.0) -> Iterator[int]:
    """Serve the app with uvicorn; yields the port."""
    listening = bind("127.0.0.1", 0)
    port = int(listening.getsockname()[1])
    server = Server(parts.app(port), listening, max_message=1, connections=64, http=timed_protocol(head_s, unread_s))
    server.start()
    parts.connections = server._server.server_state.connections
    try:
        yield port
    finally:
        server.close()
