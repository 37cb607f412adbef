"""The web page in the test process: through starlette's client, or through uvicorn on a free port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from apps.browser import BrowserCamera
from apps.listeners import Commands
from apps.watchdog import Watchdog
from apps.web.access import Access
from apps.web.app import make_app
from apps.web.health import Health
from apps.web.hub import Hub
from apps.web.metrics import Metrics
from apps.web.options import WebOptions
from apps.web.orders import Reader
from apps.web.server import Page, open_page

TOKEN = "a-token-of-the-tests-0123456789"
SOCKET = "ws://localhost:8080/ws"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(clock: Clock) -> Watchdog:
    return Watchdog(hang_s=20.0, no_frame_s=5.0, changed=lambda hang: None, clock=clock)


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def hub(commands: Commands) -> Iterator[Hub]:
    made = Hub(commands, options=WebOptions(viewers=2), metrics=Metrics())
    yield made
    made.close()


@pytest.fixture
def health(watchdog: Watchdog) -> Health:
    return Health(watchdog)


@pytest.fixture
def client_of(hub: Hub, health: Health) -> Iterator[Callable[..., TestClient]]:
    """A browser at http://localhost:8080, for a page with or without a token."""
    with ExitStack() as stack:

        def make(*, token: str | None = None) -> TestClient:
            access = Access.of(WebOptions(), token=token, port=8080)
            app = make_app(hub, access=access, reader=Reader(files=None), health=health, metrics=hub.metrics)
            return stack.enter_context(TestClient(app, base_url="http://localhost:8080"))

        yield make


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()


@pytest.fixture
def page_of(commands: Commands, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Page]]:
    """A page on a free port of 127.0.0.1, or with the options a test passes."""
    monkeypatch.delenv("PVC_LIVE_TOKEN", raising=False)
    with ExitStack() as stack:

        def make(**options: Any) -> Page:
            told = WebOptions(**{"port": 0, "picture_fps": 60.0, **options})
            return stack.enter_context(open_page(told, commands=commands, watchdog=watchdog, camera=BrowserCamera()))

        yield make


@pytest.fixture
def page(page_of: Callable[..., Page]) -> Page:
    return page_of()
