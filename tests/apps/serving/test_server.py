"""The server on its own port: clients that disconnect, are slow, or never finish a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.serving.limits import Limits
from apps.serving.local import LocalLimits, LocalService
from engines.many.scheduler import OneByOne, Scheduler

from ...engines.exact import exact_bundle
from .conftest import TOKEN, Parts, served
from .fakes import FakeService, chat, image, picture, user
from .local.streams import PICTURES
from .test_chat import URL

STREAMED = chat(stream=True)


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def connected(port: int, *, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        yield connection


def head(body_length: int, path: str = URL, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {body_length}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def request_of(body: Any) -> bytes:
    content = json.dumps(body).encode()
    return head(len(content)) + content


def all_of(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def pausing(service: FakeService) -> FakeService:
    service.pause = asyncio.Event()
    return service


# -- clients that disconnect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_answer(parts: Parts, pausing: FakeService, *, stream: bool) -> None:
    with served(parts) as port:
        with connected(port) as connection:
            connection.sendall(request_of(chat(stream=stream)))
            assert until(lambda: pausing.num_begun == 1)
            if stream:
                assert b"200 OK" in _read_until(connection, b'"It "')
            assert pausing.ended == []
        assert until(lambda: pausing.ended == ["cut"])
        assert until(lambda: parts.work.num_running == 0)
    assert parts.log == []


def _read_until(connection: socket.socket, text: bytes) -> bytes:
    found = b""
    while text not in found:
        part = connection.recv(4096)
        assert part, found
        found += part
    return found


def test_a_client_that_goes_frees_the_stream_that_answered_it(tmp_path: Path, parts: Parts) -> None:
    """With real streams: 12 clients disconnect in the middle of an answer, and there are only two streams."""
    scheduler = Scheduler(OneByOne(bundle=exact_bundle(tmp_path)), max_streams=3)
    parts.service = LocalService(scheduler, limits=LocalLimits(sessions=1, answers=2, waiting=4))
    model = parts.service.model_id
    asked = chat(user(image(PICTURES[0])), stream=True, max_tokens=60, temperature=2.0, seed=1) | {"model": model}
    with served(parts) as port:
        for _ in range(12):
            with connected(port) as connection:
                connection.sendall(request_of(asked))
                connection.recv(10)
        answer = httpx.post(f"http://127.0.0.1:{port}{URL}", json=asked | {"stream": False}, timeout=20)
        assert answer.status_code == 200
        assert until(lambda: parts.work.num_running == 0)
        assert until(lambda: sum(handle.num_waiting for handle in scheduler.handles) == 0)
    scheduler.close()
    assert parts.log == []


# -- slow clients ------------------------------------------------------------------------------------------------------


def test_a_body_that_comes_too_slowly_is_cut(parts: Parts, service: FakeService) -> None:
    parts.limits = Limits(body_s=0.3)
    with served(parts) as port, connected(port) as connection:
        connection.sendall(head(1000) + b"{")
        told = all_of(connection)  # reads to the end: the server closes the connection
        assert b" 408 " in told and b'"code": "timeout"' in told
        assert service.asked == [] and until(lambda: parts.work.num_running == 0)


def test_a_head_that_never_ends_is_cut(parts: Parts) -> None:
    with served(parts, head_s=0.3) as port:
        for beginning in (b"", b"GET /v1/mod"):
            with connected(port) as connection:
                connection.sendall(beginning)
                started = time.monotonic()
                assert all_of(connection) == b"" and time.monotonic() - started < 5
        with connected(port) as connection:  # also for a second request, however slowly it trickles in
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(4096)
            with contextlib.suppress(OSError):
                for _ in range(30):
                    connection.sendall(b"G")
                    time.sleep(0.05)
                raise AssertionError("the server did not close the connection")


def test_an_answer_that_takes_long_is_not_cut(parts: Parts, pausing: FakeService) -> None:
    with served(parts, head_s=0.2) as port:
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"http://127.0.0.1:{port}{URL}", json=chat(), timeout=20))
        )
        asking.start()
        assert until(lambda: pausing.num_begun == 1)
        time.sleep(0.5)
        assert pausing.pause is not None
        pausing.pause._loop.call_soon_threadsafe(pausing.pause.set)  # type: ignore[attr-defined]
        asking.join()
        assert answers[0].status_code == 200


def test_a_client_that_reads_nothing_does_not_hold_a_stream(parts: Parts, service: FakeService) -> None:
    service.words = ("x" * 1_000_000,) * 64
    parts.limits = Limits(send_s=0.3)
    with served(parts, unread_s=0.5) as port, connected(port) as connection:
        connection.sendall(request_of(STREAMED))
        assert until(lambda: service.ended == ["cut"]) and until(lambda: parts.work.num_running == 0)
        assert until(lambda: len(parts.connections) == 0)
    assert parts.log == []


def test_what_is_no_http_does_no_harm(parts: Parts) -> None:
    with served(parts) as port:
        for nonsense in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 100, b"POST / HTTP/9.9\r\n\r\n"):
            with connected(port) as connection:
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                all_of(connection)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


# -- the whole server --------------------------------------------------------------------------------------------------


def test_over_a_port_it_is_answered_as_in_the_process(parts: Parts) -> None:
    parts.token = TOKEN
    with served(parts) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert client.post(URL, json=chat()).json()["choices"][0]["message"]["content"] == "It is red."
        with client.stream("POST", URL, json=STREAMED) as response:
            assert list(response.iter_lines())[-2] == "data: [DONE]"
        client.post("/v1/streaming/sessions", json={"id": "door"})
        frame = client.post(
            "/v1/streaming/sessions/door/frame", content=picture(), headers={"content-type": "image/png"}
        )
        assert frame.json()["num_frames"] == 1
