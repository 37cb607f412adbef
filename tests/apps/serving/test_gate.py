"""Access to the server: who may send requests, how many, and what happens at shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from apps.serving.errors import Refused
from apps.serving.limits import MIB, MOST_CLIENTS, Bodies, Limits, Rates

from .conftest import TOKEN, MakeClient, Parts
from .fakes import FakeService, chat, image, jpegs, picture, says, user
from .test_chat import URL, error_of

PATHS = (
    ("GET", "/v1/models"), ("POST", URL), ("POST", "/v1/streaming/sessions"), ("GET", "/metrics"),
    ("GET", "/openapi.json"), ("DELETE", "/v1/streaming/sessions/x"), ("POST", "/v1/streaming/sessions/x/frame"),
    ("POST", "/v1/streaming/sessions/x/ask"), ("GET", "/nowhere"), ("GET", "/v1/models/x"),
)  # fmt: skip


# -- who may send requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_without_the_token_nothing_is_told(
    client_of: MakeClient, parts: Parts, service: FakeService, method: str, path: str
) -> None:
    parts.token = TOKEN
    client = client_of(parts)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"cookie": f"pvc_live_8000={TOKEN}"},
    ):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    known = client.request(method, path, headers={"authorization": f"Bearer {TOKEN}"})
    assert known.status_code != 401 and service.asked == []


def test_health_needs_no_token(client_of: MakeClient, parts: Parts) -> None:
    parts.token = TOKEN
    assert client_of(parts).get("/healthz").json() == {"ok": True}


def test_an_answer_needs_the_token_and_then_comes(client_of: MakeClient, parts: Parts) -> None:
    parts.token = TOKEN
    client = client_of(parts)
    assert client.post(URL, json=chat(), headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "192.168.1.5:8000"])
def test_a_host_name_that_is_not_served_is_refused(client: TestClient, host: str) -> None:
    response = client.post(URL, json=chat(), headers={"host": host})
    assert response.status_code == 403 and error_of(response)["code"] == "wrong_host"


def test_a_page_of_another_site_is_refused(client: TestClient, service: FakeService) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:9999"):
        response = client.post(URL, json=chat(), headers={"origin": origin})
        assert response.status_code == 403 and error_of(response)["code"] == "wrong_origin"
    assert service.asked == []
    assert client.post(URL, json=chat(), headers={"origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_may_send_without_asking_is_no_request(client: TestClient, kind: str) -> None:
    response = client.post(URL, content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415 and error_of(response)["code"] == "unsupported_media_type"


def test_there_is_no_websocket(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
        pass


def test_paths_and_methods_that_are_not_there_are_told_in_the_same_form(client: TestClient) -> None:
    missing, wrong = client.get("/v1/embeddings"), client.get(URL)
    assert missing.status_code == 404 and error_of(missing)["type"] == "not_found_error"
    assert wrong.status_code == 405 and error_of(wrong) and wrong.headers["allow"] == "POST"
    assert client.get("/v1/models/").status_code == 404


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(body_bytes=2000)
    client, body = client_of(parts), b" " * 2001

    def in_parts() -> Iterator[bytes]:
        yield body[:1500]
        yield body[1500:]

    for content in (body, in_parts()):
        response = client.post(URL, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413 and error_of(response)["code"] == "too_large"
        assert response.headers["connection"] == "close"
    assert client.post(URL, json=chat()).status_code == 200


@pytest.mark.parametrize("length", ["-5", "abc", "1e3"])
def test_a_length_that_is_none_is_refused(client: TestClient, length: str) -> None:
    headers = {"content-type": "application/json", "content-length": length}
    assert client.post(URL, content=b"{}", headers=headers).status_code in (400, 413)


def test_bodies_of_all_requests_together_are_bounded_and_given_back(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(all_bodies_bytes=1000)
    client = client_of(parts)
    response = client.post(URL, json=chat(user("x" * 1000)))
    assert response.status_code == 429 and "retry-after" in response.headers
    for _ in range(20):
        assert client.post(URL, json=chat()).status_code == 200
    assert "pvc_body_bytes 0.0" in client.get("/metrics").text


def test_a_picture_has_so_many_pixels_by_its_header(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(picture_pixels=100 * 100)
    client = client_of(parts)
    assert client.post(URL, json=chat(user(image(picture(size=(100, 100)))))).status_code == 200
    error = error_of(client.post(URL, json=chat(user(image(picture(size=(101, 100)))))))
    assert error["code"] == "invalid_media" and "101 x 100 pixels" in error["message"]


def test_a_bomb_is_refused_before_it_is_decoded(client: TestClient) -> None:
    bomb = picture(size=(20000, 20000))
    assert len(bomb) < 4 * MIB
    assert "pixels" in error_of(client.post(URL, json=chat(user(image(bomb)))))["message"]


def test_pictures_frames_messages_and_texts_are_counted(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(pictures=2, video_frames=3, messages=4, text_chars=100)
    client = client_of(parts)
    for messages, what in (
        ([user(image(), image(), image())], "more than 2 pictures"),
        ([user(jpegs(*[picture()] * 4))], "3 or fewer"),
        ([says("user", "x")] * 5, "the limit is 4"),
        ([says("user", "x" * 101)], "more than 100 characters"),
    ):
        response = client.post(URL, json=chat(*messages))
        assert response.status_code == 400 and what in error_of(response)["message"]


def test_a_client_that_asks_too_often_is_told_to_wait(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(rate=0.01, burst=3)
    client = client_of(parts)
    statuses = [client.post(URL, json=chat()).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    response = client.get("/v1/models")
    assert error_of(response)["code"] == "rate_limit_exceeded" and response.headers["retry-after"] == "100"
    assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200


def test_each_client_has_a_rate_of_its_own_and_old_ones_are_forgotten() -> None:
    now = [0.0]
    rates = Rates(Limits(rate=1.0, burst=1), clock=lambda: now[0])
    rates.take("a")
    rates.take("b")
    with pytest.raises(Refused):
        rates.take("a")
    now[0] = 1.0
    rates.take("a")
    for number in range(MOST_CLIENTS + 10):
        rates.take(str(number))
    assert len(rates._buckets) == MOST_CLIENTS


def test_bytes_that_were_given_back_can_be_taken_again() -> None:
    bodies = Bodies(Limits(all_bodies_bytes=10))
    bodies.take(10)
    with pytest.raises(Refused):
        bodies.take(1)
    bodies.give_back(10)
    bodies.take(10)


@pytest.mark.parametrize("name", ["rate", "body_bytes", "video_fps"])
def test_a_limit_of_nothing_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


# -- shutdown and metrics ----------------------------------------------------------------------------------------------


def test_a_server_that_ends_refuses_new_work_and_finishes_what_runs(
    client_of: MakeClient, parts: Parts, service: FakeService
) -> None:
    client = client_of(parts)
    assert client.portal is not None
    service.pause = client.portal.call(asyncio.Event)
    answers = []
    running = threading.Thread(target=lambda: answers.append(client.post(URL, json=chat())))
    running.start()
    while service.num_begun == 0:
        pass
    parts.work.refuse_more()
    refused = client.post(URL, json=chat())
    assert refused.status_code == 503 and error_of(refused)["code"] == "shutting_down"
    assert "retry-after" in refused.headers and client.get("/healthz").status_code == 503
    assert not parts.work.wait(0.05)
    client.portal.call(service.pause.set)
    assert parts.work.wait(5.0)
    running.join()
    assert answers[0].json()["choices"][0]["message"]["content"] == "It is red."


def test_what_prometheus_scrapes_has_requests_answers_and_refusals(client: TestClient) -> None:
    client.post(URL, json=chat())
    client.post(URL, json=chat(n=2))
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        f'pvc_requests_total{{route="{URL}",status="200"}} 1.0',
        f'pvc_requests_total{{route="{URL}",status="400"}} 1.0',
        'pvc_requests_total{route="other",status="404"} 1.0', "pvc_answer_tokens_total 3.0",
        "pvc_time_to_first_token_seconds_count 1.0", "pvc_answer_seconds_count 1.0", "pvc_requests_running 0.0",
        'pvc_refusals_total{code="unsupported_parameter"} 1.0',
    ):  # fmt: skip
        assert line in text, line
    assert "pvc_resident_memory_bytes" in text
