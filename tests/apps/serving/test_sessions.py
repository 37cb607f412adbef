"""Streams with memory, used by a camera's program and by a person."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from apps.serving.limits import Limits
from engines.many.handle import Busy

from .conftest import MakeClient, Parts
from .fakes import MODEL, FakeService, picture
from .test_chat import error_of, events_of

SESSIONS = "/v1/streaming/sessions"
PNG = {"content-type": "image/png"}


@pytest.fixture
def door(client: TestClient) -> str:
    assert client.post(SESSIONS, json={"id": "door"}).status_code == 200
    return f"{SESSIONS}/door"


def test_a_session_is_opened_by_a_name_or_gets_one_and_is_found_again(client: TestClient) -> None:
    told = client.post(SESSIONS).json()
    assert told["object"] == "streaming.session" and told["model"] == MODEL and told["num_frames"] == 0
    assert client.post(SESSIONS, json={}).json()["id"] != told["id"]
    assert client.post(SESSIONS, json={"id": "door"}).json()["id"] == "door"
    client.post(f"{SESSIONS}/door/frame", content=picture(), headers=PNG)
    again = client.post(SESSIONS, json={"id": "door"})
    assert again.json()["num_frames"] == 1 and again.headers["pvc-frames"] == "1"


def test_a_frame_is_a_picture_and_its_index_comes_by_query_or_header(
    client: TestClient, service: FakeService, door: str
) -> None:
    told = client.post(f"{door}/frame", content=picture(), headers=PNG).json()
    assert told["frame_index"] == 0 and told["num_frames"] == 1 and told["object"] == "streaming.frame"
    assert not (told["is_repeated"] or told["is_dropped"] or told["gap"])
    client.post(f"{door}/frame?frame_index=1", content=picture(kind="JPEG"), headers={"content-type": "image/jpeg"})
    headers = {"content-type": "application/octet-stream", "X-Frame-Index": "5"}
    told = client.post(f"{door}/frame", content=picture(kind="JPEG"), headers=headers).json()
    assert told["gap"] == 3
    assert [index for _, index in service.pushed] == [None, 1, 5]


@pytest.mark.parametrize("index", ["-1", "1.5", "x", "", str(2**53), "1" * 30])
def test_what_is_no_index_is_refused(client: TestClient, door: str, index: str) -> None:
    response = client.post(f"{door}/frame?frame_index={index}", content=picture(), headers=PNG)
    assert response.status_code == 400 and error_of(response)["param"] == "frame_index"


def test_two_indices_that_differ_are_refused(client: TestClient, door: str) -> None:
    for query, header in (("?frame_index=1", "2"), ("?frame_index=1&frame_index=3", "1")):
        response = client.post(f"{door}/frame{query}", content=picture(), headers=PNG | {"X-Frame-Index": header})
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "image/jpeg", 400), (b"hello", "image/jpeg", 400), (picture(), "text/plain", 415),
        (picture(), "application/json", 415), (picture()[:20], "image/png", 400),
        (picture(size=(9000, 4000)), "image/png", 400),
    ],
    ids=["empty", "no picture", "text", "json", "cut", "too many pixels"],
)  # fmt: skip
def test_what_is_no_frame_is_refused_and_the_session_does_not_hear_of_it(
    client: TestClient, service: FakeService, door: str, body: bytes, kind: str, status: int
) -> None:
    response = client.post(f"{door}/frame", content=body, headers={"content-type": kind})
    assert response.status_code == status and error_of(response) and service.pushed == []


def test_a_session_is_asked_whole_and_streamed(client: TestClient, service: FakeService, door: str) -> None:
    client.post(f"{door}/frame", content=picture(), headers=PNG)
    told = client.post(f"{door}/ask", json={"question": "What is it?", "max_tokens": 7, "keep": True}).json()
    assert told["text"] == "It is red." and told["finish_reason"] == "stop" and told["session_id"] == "door"
    assert told["usage"]["num_frames"] == 1
    *chunks, done = events_of(client.post(f"{door}/ask", json={"question": "And now?", "stream": True}).text)
    assert done == "[DONE]" and "".join(chunk["text"] for chunk in chunks) == "It is red."
    assert chunks[-1]["usage"]["completion_tokens"] == 3 and chunks[-1]["finish_reason"] == "stop"
    (_, first), (_, second) = service.asked
    assert first.keep and first.max_new_tokens == 7 and first.question == "What is it?" and not second.keep


@pytest.mark.parametrize(
    "asked", [{}, {"question": " "}, {"question": 3}, {"question": "x", "n": 1}, {"question": "x", "keep": 1}, [], "x"]
)
def test_a_question_that_is_none_is_refused(client: TestClient, door: str, asked: Any) -> None:
    assert error_of(client.post(f"{door}/ask", json=asked))["type"] == "invalid_request_error"


def test_a_session_that_is_closed_is_not_found_any_more(client: TestClient, door: str) -> None:
    assert client.delete(door).json() == {"id": "door", "object": "streaming.session", "deleted": True}
    for response in (
        client.delete(door),
        client.post(f"{door}/frame", content=picture(), headers=PNG),
        client.post(f"{door}/ask", json={"question": "x"}),
    ):
        assert response.status_code == 404 and error_of(response)["code"] == "session_not_found"


@pytest.mark.parametrize("session_id", ["-x", "a b", "%2e%2e", "x" * 129])
def test_what_is_no_id_is_refused(client: TestClient, session_id: str) -> None:
    assert client.post(SESSIONS, json={"id": session_id}).status_code == 400
    assert client.delete(f"{SESSIONS}/{session_id}").status_code in (400, 404)


def test_a_session_too_many_is_told_when_to_come_again(client: TestClient, service: FakeService) -> None:
    async def full(session_id: str | None = None) -> Any:
        raise Busy("8 sessions are open", retry_after_s=5.0)

    service.open = full  # type: ignore[method-assign]
    response = client.post(SESSIONS)
    assert response.status_code == 429 and response.headers["retry-after"] == "5"


def test_a_frame_has_fewer_bytes_than_a_request(client_of: MakeClient, parts: Parts) -> None:
    parts.limits = Limits(picture_bytes=1000)
    client = client_of(parts)
    client.post(SESSIONS, json={"id": "door"})
    response = client.post(f"{SESSIONS}/door/frame", content=b"x" * 1001, headers=PNG)
    assert response.status_code == 413 and response.headers["connection"] == "close"


def test_frames_are_counted_by_what_became_of_them(client: TestClient, parts: Parts, door: str) -> None:
    client.post(f"{door}/frame?frame_index=0", content=picture(), headers=PNG)
    client.post(f"{door}/frame?frame_index=4", content=picture(), headers=PNG)
    text = client.get("/metrics").text
    assert 'pvc_frames_total{outcome="pushed"} 2.0' in text and 'pvc_frames_total{outcome="missing"} 3.0' in text
    route = f'pvc_requests_total{{route="{SESSIONS}/{{session_id}}/frame",status="200"}} 2.0'
    assert route in text, text
