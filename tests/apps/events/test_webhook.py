"""A webhook whose server responds, fails, refuses, hangs, or does not exist."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from apps.events.delivery import Delivery, NotDelivered
from apps.events.webhook import Webhook, check_webhook
from engines.errors import BackendUnavailable

from .fakes import WebServer, event, wait_until

Serve = Callable[..., WebServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[WebServer] = []

    def start(*codes: int) -> WebServer:
        servers.append(WebServer(*codes))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_an_event_is_posted_as_json(serve: Serve) -> None:
    server, sent = serve(200), event("Brände", kind="alert", alert="brände", frame=7)
    Webhook(server.url).send(sent)
    assert json.loads(server.bodies[0]) == sent.to_json() and server.methods == ["POST"]
    assert server.headers[0]["Content-Type"] == "application/json" and "Authorization" not in server.headers[0]


def test_the_authorization_goes_into_its_header_and_into_no_message(serve: Serve) -> None:
    server = serve(404)
    webhook = Webhook(server.url, authorization="Bearer abc")
    with pytest.raises(NotDelivered) as caught:
        webhook.send(event())
    assert server.headers[0]["Authorization"] == "Bearer abc"
    assert "abc" not in f"{caught.value} {webhook.name}" and "secret" not in f"{caught.value} {webhook.name}"


@pytest.mark.parametrize("code", [500, 503, 408, 429])
def test_an_answer_that_may_pass_is_tried_again(serve: Serve, code: int) -> None:
    server, said = serve(code, 200), list[str]()
    delivery = Delivery(Webhook(server.url), trouble=said.append, pauses_s=(0.01,))
    delivery.offer(event("one"))
    wait_until(lambda: delivery.num_delivered)
    delivery.close()
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]
    assert f"the server replied {code}" in said[0] and said[0].endswith("retrying") and "working again" in said[1]


@pytest.mark.parametrize("code", [400, 401, 404, 302])
def test_a_refusal_is_not_tried_again_and_an_address_elsewhere_is_not_followed(serve: Serve, code: int) -> None:
    server, said = serve(code), list[str]()
    delivery = Delivery(Webhook(server.url), trouble=said.append, pauses_s=(0.01,))
    delivery.offer(event("one"))
    wait_until(lambda: delivery.num_refused)
    delivery.close()
    assert (
        len(server.bodies) == 1
        and f"the server replied {code}" in said[0]
        and said[0].endswith("the event is discarded")
    )


def test_a_server_that_hangs_is_given_up_after_the_timeout_and_tried_again(serve: Serve) -> None:
    server, said = serve(0, 200), list[str]()
    delivery = Delivery(Webhook(server.url, timeout_s=0.1), trouble=said.append, pauses_s=(0.01,))
    delivery.offer(event("one"))
    wait_until(lambda: delivery.num_delivered)
    delivery.close()
    assert len(server.bodies) == 2 and "no reply: timed out" in said[0]


def test_a_server_that_hangs_does_not_hold_up_the_session_or_its_end(serve: Serve) -> None:
    server, said = serve(0), list[str]()
    delivery, started = Delivery(Webhook(server.url), trouble=said.append), time.perf_counter()
    for _ in range(50):
        delivery.offer(event())
    assert time.perf_counter() - started < 1.0
    assert delivery.close(0.1) == 50 and time.perf_counter() - started < 1.0


def test_a_server_that_is_not_there_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
    with pytest.raises(NotDelivered, match="no connection: .*refused") as caught:
        Webhook(url).send(event())
    assert not caught.value.is_final


def test_a_server_that_does_not_speak_http_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = Thread(target=speak)
        thread.start()
        with pytest.raises(NotDelivered, match="no reply") as caught:
            Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=2.0).send(event())
        thread.join()
    assert not caught.value.is_final


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "file:///etc/passwd", "host/x", "http://", "http://host:x/", "http://a b/", "http://h/\r\nX: y"],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--webhook is not an http"):
        check_webhook(url)


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="PVC_WEBHOOK_AUTHORIZATION") as caught:
        check_webhook("https://me:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_an_authorization_that_would_add_a_header_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="PVC_WEBHOOK_AUTHORIZATION"):
        Webhook("https://host/x", authorization="Bearer a\r\nX-Other: b")
