"""The page over a real port: slow, multiple and lost viewers, and what a port may reveal."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from apps.listeners import Commands, Reset
from apps.web.server import Page, bind, require_packages
from engines.errors import BackendUnavailable

from . import told
from .conftest import TOKEN

Make = Callable[..., Page]


def look(page: Page, **options: Any) -> ClientConnection:
    return connect(page.url.partition("?")[0].replace("http", "ws") + "ws", proxy=None, max_size=None, **options)


def next_of(socket: ClientConnection, kind: str) -> Any:
    while True:
        message = socket.recv(timeout=10)
        if isinstance(message, bytes):
            if kind == "picture":
                return message
        else:
            found, value = told.read(message)
            assert found != "beat", f"nothing was sent for seconds, and no {kind}"
            if found == kind:
                return value


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def test_two_viewers_see_and_hear_the_same(page: Page) -> None:
    with look(page) as first, look(page) as second:
        for viewer in (first, second):
            next_of(viewer, "state")
        page.saw(told.captured(6), told.status())
        page.said("What happens?", "A dog")
        for viewer in (first, second):
            assert told.brightness(next_of(viewer, "picture")) == 6
        page.happened(told.answered("What happens?", "A dog runs."), told.captured())
        for viewer in (first, second):
            assert next_of(viewer, "event")["answer"] == "A dog runs."


def test_a_viewer_that_stops_reading_slows_nothing_and_what_waits_for_it_is_bounded(page: Page) -> None:
    picture, slowest_s, received = told.noise(), 0.0, 0
    with look(page, max_queue=1, close_timeout=0.1) as slow, look(page) as quick:
        next_of(quick, "state")
        for _ in range(250):
            before = time.monotonic()
            page.saw(picture, told.status())
            page.happened(told.event("rollover", "x" * 20_000), picture)
            slowest_s = max(slowest_s, time.monotonic() - before)
            time.sleep(0.004)
            with contextlib.suppress(TimeoutError):
                while quick.recv(timeout=0):
                    received += 1
        # 5 MB of messages and much more of pictures: what the kernel's buffers do not take is queued, and the queue is
        # bounded.
        behind, ahead = sorted(page.hub._viewers.values(), key=lambda viewer: -viewer.num_overflows)
        assert behind.num_overflows >= 1 and behind.num_waiting <= 65 and ahead.num_overflows == 0
        assert slowest_s < 0.5 and received > 250
        page.saw(told.captured(9), told.status("the last"))
        state = next_of(slow, "state")  # the state sent before it stopped reading
        while state["status"].get("question") != "the last":
            state = next_of(slow, "state")
        assert state["num_events"] == 250 and len(state["events"]) == 250


def test_the_newest_picture_comes_and_not_all_of_them(page_of: Make) -> None:
    page = page_of(picture_fps=20.0)
    with look(page) as viewer:
        next_of(viewer, "state")
        for value in range(1, 31):
            page.saw(told.captured(value), told.status())
            time.sleep(0.005)
        seen = [told.brightness(next_of(viewer, "picture"))]
        while seen[-1] != 30:
            seen.append(told.brightness(next_of(viewer, "picture")))
    assert seen == sorted(seen) and len(seen) < 20


def test_a_page_that_comes_back_is_told_everything_again(page_of: Make) -> None:
    first = page_of()
    port = int(first.url.split(":")[2].strip("/"))
    with look(first) as viewer:
        next_of(viewer, "state")
        first.close()
        with pytest.raises(ConnectionClosed) as caught:
            next_of(viewer, "never")
    assert caught.value.rcvd is not None and caught.value.rcvd.code in (1001, 1012)  # ours, or uvicorn's if it is late
    again = page_of(port=port)
    again.happened(told.answered("What happens?", "It is back."), told.captured())
    with look(again) as viewer:
        assert next_of(viewer, "state")["conversation"][0]["answer"] == "It is back."


def test_a_viewer_that_vanishes_frees_its_place(page_of: Make) -> None:
    page = page_of(viewers=1)
    with look(page) as viewer:
        next_of(viewer, "state")
        viewer.socket.shutdown(socket.SHUT_RDWR)
        assert until(lambda: page.hub.num_viewers == 0)
        with look(page) as other:
            next_of(other, "state")


def test_a_message_that_is_far_too_large_ends_the_connection_before_it_is_read(page: Page) -> None:
    with look(page) as viewer:
        next_of(viewer, "state")
        with pytest.raises(ConnectionClosed) as caught:
            viewer.send(bytes(3_000_000))
            next_of(viewer, "never")
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
    assert until(lambda: page.hub.num_viewers == 0)


def test_orders_reach_the_session_over_the_wire(page: Page, commands: Commands) -> None:
    with look(page) as viewer:
        viewer.send(json.dumps({"do": "reset"}))
        taken: list[object] = []
        assert until(lambda: (command := commands.take()) is not None and not taken.append(command))
    assert taken == [Reset()]


def test_a_page_of_another_site_is_refused_with_403(page: Page) -> None:
    with pytest.raises(InvalidStatus) as caught, look(page, origin="https://evil.example"):
        pass
    assert caught.value.response.status_code == 403
    with look(page, origin=page.url.rstrip("/")) as viewer:
        next_of(viewer, "state")


def test_with_a_token_of_the_environment_the_url_holds_it(page_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of()
    monkeypatch.setenv("PVC_LIVE_TOKEN", TOKEN)
    guarded = page_of()
    assert "token" not in page.url and guarded.url.endswith(f"/?token={TOKEN}")
    bare = guarded.url.partition("?")[0]
    assert [status_of(guarded.url), status_of(bare), status_of(bare + "metrics")] == [200, 401, 401]
    assert status_of(bare + "metrics", authorization=f"Bearer {TOKEN}") == 200
    with look(guarded) as viewer, pytest.raises(ConnectionClosed) as caught:
        viewer.recv(timeout=10)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 4401
    with look(guarded, additional_headers={"authorization": f"Bearer {TOKEN}"}) as viewer:
        next_of(viewer, "state")


def test_beyond_this_machine_a_token_is_made(page_of: Make) -> None:
    page = page_of(host="0.0.0.0")
    token = page.url.partition("?token=")[2]
    port = page.url.split(":")[2].partition("/")[0]
    assert len(token) >= 40
    assert status_of(f"http://127.0.0.1:{port}/") == 401 and status_of(f"http://127.0.0.1:{port}/?token={token}") == 200


def test_a_taken_port_is_reported_with_another(page_of: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BackendUnavailable, match=f"port {port} on 127.0.0.1 is in use") as caught:
            page_of(port=port)
    assert caught.value.exit_code == 4 and "--port" in caught.value.fix


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.9", "a..b"])
def test_a_host_that_is_not_ours_is_reported(host: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"--host {host}"):
        bind(host, 0)


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BackendUnavailable, match="needs the package uvicorn") as caught:
        require_packages()
    assert caught.value.fix == "pip install 'pvc-streaming-export[live]'"


def test_what_breaks_in_an_endpoint_shows_no_traceback(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(page.health, "report", broken)
    try:
        urllib.request.urlopen(page.url + "healthz", timeout=10)
    except HTTPError as error:
        assert error.code == 500 and error.read() == b"Internal Server Error"
        error.close()


def test_a_text_that_is_no_unicode_ends_no_connection(page: Page) -> None:
    with look(page) as viewer:
        next_of(viewer, "state")
        page.happened(told.event("trouble", "caf\udce9.mp4"), told.captured())  # a file name that Linux allows
        assert next_of(viewer, "event")["text"] == "caf\udce9.mp4"


WITHOUT = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("starlette", "uvicorn", "websockets", "prometheus_client", "anyio"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import apps.web
for module in pkgutil.walk_packages(apps.web.__path__, "apps.web."):
    importlib.import_module(module.name)
from apps.web.server import require_packages
require_packages()
"""


def test_every_module_imports_on_a_device_without_the_packages() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert "BackendUnavailable: --web needs the package starlette" in found.stderr, found.stderr
