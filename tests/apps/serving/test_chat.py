"""Chat requests as OpenAI's clients send them: answers, the fields that are read, and those refused by name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from apps.serving.limits import Limits
from apps.serving.service import Said, Sampling
from engines.errors import NonFiniteError, StreamFull
from engines.many.handle import Busy
from engines.synthetic import render_clip
from engines.video import write_video

from .conftest import MakeClient, Parts
from .fakes import MODEL, FakeService, chat, data_url, image, jpegs, picture, says, text, user

URL = "/v1/chat/completions"


def error_of(response: Any) -> dict[str, Any]:
    told = response.json()
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = told["error"]
    return found


def events_of(body: str) -> list[Any]:
    lines = [line for line in body.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    texts = [line.removeprefix("data: ") for line in lines]
    return [told if told == "[DONE]" else json.loads(told) for told in texts]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_as_clients_look_for_them(client: TestClient) -> None:
    told = client.get("/v1/models").json()
    (model,) = told["data"]
    assert told["object"] == "list" and model["id"] == MODEL and model["object"] == "model"
    assert client.get(f"/v1/models/{MODEL}").json() == model
    assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_an_answer_is_whole(client: TestClient) -> None:
    told = client.post(URL, json=chat()).json()
    assert told["object"] == "chat.completion" and told["model"] == MODEL and told["id"].startswith("chatcmpl-")
    (choice,) = told["choices"]
    assert choice["message"]["content"] == "It is red." and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    assert told["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "num_frames": 0}


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_streamed_answer_comes_in_chunks_and_ends(client: TestClient, *, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    response = client.post(URL, json=chat(stream=True, **options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events_of(response.text)
    assert done == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    usage = chunks.pop() if wants_usage else None
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "It is red."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert usage is None or (usage["choices"] == [] and usage["usage"]["total_tokens"] == 13)
    assert all(chunk.get("usage", "left out") == (None if wants_usage else "left out") for chunk in chunks)


def test_what_goes_wrong_before_the_first_token_has_its_status_streamed_or_not(
    client: TestClient, service: FakeService
) -> None:
    for stream in (False, True):
        service.raises = Busy("16 questions wait", retry_after_s=1.5)
        response = client.post(URL, json=chat(stream=stream))
        assert response.status_code == 429 and error_of(response)["code"] == "busy"
        assert response.headers["retry-after"] == "2" and response.headers["retry-after-ms"] == "1500"
        service.raises = StreamFull("too long")
        assert error_of(client.post(URL, json=chat(stream=stream)))["code"] == "context_length_exceeded"


def test_what_goes_wrong_later_is_an_event_and_not_the_end_of_an_answer(
    client: TestClient, service: FakeService
) -> None:
    service.raises_later = StreamFull("too long")
    *_, last = events_of(client.post(URL, json=chat(stream=True)).text)
    assert last["error"]["code"] == "context_length_exceeded"


def test_a_defect_of_ours_is_logged_and_tells_a_client_nothing(
    client_of: MakeClient, parts: Parts, service: FakeService
) -> None:
    service.raises = KeyError("/secret/path")
    response = client_of(parts).post(URL, json=chat())
    assert response.status_code == 500 and "secret" not in response.text
    assert "/secret/path" in parts.log[0]


def test_a_model_that_breaks_down_says_so(client_of: MakeClient, parts: Parts, service: FakeService) -> None:
    service.raises = NonFiniteError("NaN")
    assert error_of(client_of(parts).post(URL, json=chat()))["code"] == "model_failed"


# -- request contents --------------------------------------------------------------------------------------------------


def test_how_it_is_answered_is_read(client: TestClient, service: FakeService) -> None:
    client.post(URL, json=chat(max_tokens=9, temperature=0.7, top_p=0.5, seed=-3, stop=["a", "b"]))
    client.post(URL, json=chat(max_completion_tokens=5, max_tokens=9, stop="x"))
    client.post(URL, json=chat())
    first, second, third = (wanted for _, wanted in service.asked)
    assert first.max_new_tokens == 9 and first.stop == ("a", "b")
    assert first.sampling == Sampling(temperature=0.7, top_p=0.5, seed=-3)
    assert second.max_new_tokens == 5 and second.stop == ("x",)
    assert third.sampling == Sampling() and third.stop == () and third.max_new_tokens == Limits().default_tokens


def test_pictures_stay_with_their_message_and_are_sent_as_they_came(client: TestClient, service: FakeService) -> None:
    first, second = picture(1), picture(2, kind="JPEG")
    client.post(
        URL,
        json=chat(
            says("system", "Be brief."), user(text("Here:"), image(first)), says("assistant", "A red one."),
            user(image(second, detail="high"), text("And"), text("here?")),
        ),
    )  # fmt: skip
    ((frames, wanted),) = service.asked
    assert frames == () and wanted.question == "And\nhere?" and wanted.images == (second,)
    assert wanted.earlier == (Said(question="Be brief.\nHere:", answer="A red one.", images=(first,)),)


def test_a_list_of_jpegs_is_a_video_and_its_frames_come_first(client: TestClient, service: FakeService) -> None:
    frames = [picture(shade, kind="JPEG") for shade in range(3)]
    response = client.post(
        URL, json=chat(user(text("What happens?"), jpegs(*frames)), says("assistant", "x"), user("?"))
    )
    assert response.headers["pvc-frames"] == "3"
    ((pushed, wanted),) = service.asked
    assert list(pushed) == frames and wanted.images == () and wanted.earlier[0].images == ()


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    """A clip of three seconds, 30 frames."""
    write_video(tmp_path / "clip.mp4", render_clip(30, seed=1, width=64, height=48), fps=10.0)
    return (tmp_path / "clip.mp4").read_bytes()


@pytest.mark.parametrize(
    ("asked", "num_frames"),
    [(None, 6), ({"fps": 1.0}, 3), ({"num_frames": 4}, 4), ({"num_frames": 100}, 30), ({"num_frames": 2, "fps": 5}, 2)],
)
def test_a_video_is_looked_at_at_two_frames_a_second_or_as_it_is_asked_for(
    client: TestClient, service: FakeService, clip: bytes, asked: Any, num_frames: int
) -> None:
    part = {"type": "video_url", "video_url": {"url": data_url(clip, "video/mp4")}}
    kwargs = {} if asked is None else {"media_io_kwargs": {"video": asked}}
    response = client.post(URL, json=chat(user(part, text("What happens?")), **kwargs))
    assert response.status_code == 200, response.text
    ((frames, _),) = service.asked
    assert len(frames) == num_frames and len(set(frames)) >= num_frames - 1  # of all, InternVL2's rule takes one twice
    assert Image.open(io.BytesIO(frames[0])).size == (64, 48)


def test_labels_and_defaults_are_harmless(client: TestClient) -> None:
    harmless = {
        "n": 1, "user": "me", "tools": [], "tool_choice": "auto", "logprobs": False, "functions": [],
        "response_format": {"type": "text"},
        "frequency_penalty": 0, "presence_penalty": 0.0, "store": False, "logit_bias": {}, "top_logprobs": None,
        "modalities": ["text"], "metadata": {}, "parallel_tool_calls": True, "service_tier": "auto", "audio": None,
    }  # fmt: skip
    assert client.post(URL, json=chat(**harmless)).status_code == 200


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2}, {"tools": [{"type": "function"}]}, {"logprobs": True}, {"response_format": {"type": "json_object"}},
        {"audio": {"voice": "x"}}, {"frequency_penalty": 0.5}, {"logit_bias": {"1": 2}}, {"store": True},
        {"modalities": ["text", "audio"]}, {"temperature": 2.5}, {"temperature": "hot"}, {"temperature": True},
        {"top_p": 0}, {"top_p": 1.5}, {"max_tokens": 0}, {"max_tokens": 10**9}, {"max_tokens": 1.5}, {"seed": 2**64},
        {"stop": ["a"] * 5}, {"stop": ""}, {"stop": [1]}, {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"n": True}, {"logprobs": 0}, {"messages": []}, {"messages": "hi"}, {"messages": None}, {"user": 3},
        {"media_io_kwargs": {"video": {"num_frames": 0}}}, {"media_io_kwargs": {"audio": {}}},
        {"reasoning_effort": "low"},
        {"functions": [{}]}, {"web_search_options": {}}, {"max_completion_tokens": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_done_is_refused_by_its_name(
    client: TestClient, service: FakeService, field: dict[str, Any]
) -> None:
    response = client.post(URL, json=chat() | field)
    error = error_of(response)
    (name,) = field
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"].startswith(name) and name in error["message"] and service.asked == []


def test_a_name_that_is_written_wrong_is_told_the_right_one(client: TestClient) -> None:
    error = error_of(client.post(URL, json=chat(temprature=1)))
    assert error["code"] == "unknown_parameter" and "Did you mean 'temperature'?" in error["message"]


@pytest.mark.parametrize(
    "body", ['{"\\ud800": 1}', '{"model": "\\ud800"}', '{"stop": ["\\ud800"]}', '{"user": "\\udfff"}']
)
def test_half_of_a_character_is_refused_in_whole_ones(client: TestClient, body: str) -> None:
    merged = json.dumps(chat())[:-1] + ", " + body[1:]
    response = client.post(URL, content=merged, headers=JSON)
    assert response.status_code in (200, 400) and response.json()
    assert response.status_code == 400 or "stop" in body


def test_another_model_is_not_found(client: TestClient) -> None:
    response = client.post(URL, json=chat() | {"model": "gpt-4o"})
    assert response.status_code == 404 and error_of(response)["code"] == "model_not_found" and MODEL in response.text


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (says("tool", "x"), "messages[0].role"), (says("nobody", "x"), "messages[0].role"),
        (says("assistant", "x"), "messages[0].role"), (says("user", "  "), "messages[0].content"),
        (user({"type": "input_audio"}), "messages[0].content[0].type"),
        (user({"type": "file"}), "messages[0].content[0].type"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": "x", "extra": 1}), "messages[0].content[0].extra"),
        ({"role": "user"}, "messages[0].content"), ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": "\ud800"}, "messages[0].content"), (7, "messages[0]"),
        ({"role": "user", "content": "x", "name": "Bo"}, "messages[0].name"),
        ({"role": "system", "content": [image()]}, "messages[0].content[0].type"),
        (user(image(detail="low")), "messages[0].content[0].image_url.detail"),
        (user({"type": "image_url", "image_url": "data:..."}), "messages[0].content[0].image_url"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_message_that_cannot_be_read_is_named(client: TestClient, message: Any, param: str) -> None:
    response = client.post(URL, content=json.dumps(chat() | {"messages": [message]}), headers=JSON)
    assert response.status_code == 400 and error_of(response)["param"] == param


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("url", "code", "says_what"),
    [
        ("http://example.org/cat.jpg", "invalid_url", "a URL to fetch, which is not supported"),
        ("https://169.254.169.254/latest", "invalid_url", "a URL to fetch, which is not supported"),
        ("file:///etc/passwd", "invalid_url", "a URL to fetch, which is not supported"),
        ("cat.jpg", "invalid_url", "not a data URL"),
        ("data:image/png,abc", "invalid_url", "base64"),
        ("data:image/png;base64,%%%", "invalid_base64", "base64"),
        ("data:text/plain;base64,aGk=", None, "expected image/jpeg"),
        ("data:image/png;base64,", "invalid_media", "is empty"),
        ("data:image/png;base64,aGk=", "invalid_media", "is not a picture"),
    ],
)
def test_a_picture_that_cannot_be_had_is_refused(client: TestClient, url: str, code: str, says_what: str) -> None:
    error = error_of(client.post(URL, json=chat(user({"type": "image_url", "image_url": {"url": url}}))))
    assert error["code"] == code and says_what in error["message"]
    assert error["param"] == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "playlist", [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile x\n", b""]
)
def test_a_video_that_could_name_other_files_is_not_opened(client: TestClient, playlist: bytes) -> None:
    part = {"type": "video_url", "video_url": {"url": data_url(playlist, "video/mp4")}}
    assert "format is not supported" in error_of(client.post(URL, json=chat(user(part))))["message"]


def test_a_damaged_video_is_refused_and_no_path_of_ours_is_told(client: TestClient, clip: bytes) -> None:
    for damaged in (clip[:200], clip[:8] + bytes(500)):
        part = {"type": "video_url", "video_url": {"url": data_url(damaged, "video/mp4")}}
        message = error_of(client.post(URL, json=chat(user(part))))["message"]
        assert "the video" in message and "/tmp" not in message and "pvc-serve-" not in message


def test_more_than_one_video_and_one_after_an_answer_are_refused(client: TestClient) -> None:
    video = jpegs(picture())
    assert "more than one video" in error_of(client.post(URL, json=chat(user(video, video))))["message"]
    later = client.post(URL, json=chat(user("hi"), says("assistant", "hi"), user(video)))
    assert "the video comes after an answer" in error_of(later)["message"]


# -- a session named by its header -------------------------------------------------------------------------------------


def test_with_a_session_each_picture_is_its_next_frame_and_the_reply_says_how_many(
    client: TestClient, service: FakeService
) -> None:
    header = {"X-Session-Id": "cam-1"}
    for number in (1, 2):
        response = client.post(URL, json=chat(user(text("Now?"), image(picture(number)))), headers=header)
        assert response.headers["pvc-frames"] == str(number) and response.status_code == 200
    assert service.sessions == {"cam-1": [picture(1), picture(2)]}
    assert [asked for asked, _ in service.asked] == ["cam-1"] * 2 and service.asked[0][1].images == ()


def test_what_earlier_messages_showed_is_in_the_session_already_and_what_they_said_is_not(
    client: TestClient, service: FakeService
) -> None:
    history = [user(text("a"), image(picture(1))), says("assistant", "b"), user(text("c"), image(picture(2)))]
    header = {"X-Session-Id": "cam-1"}
    client.post(URL, json=chat(*history), headers=header)
    assert service.sessions["cam-1"] == [picture(1), picture(2)]  # a new session, so both are pushed
    client.post(URL, json=chat(*history, says("assistant", "d"), user(image(picture(3)))), headers=header)
    assert service.sessions["cam-1"] == [picture(1), picture(2), picture(3)]
    assert service.asked[0][1].earlier == (Said(question="a", answer="b"),)
    assert service.asked[1][1].earlier == (Said(question="a", answer="b"), Said(question="c", answer="d"))


def test_a_frames_index_goes_with_a_chat_too(client: TestClient, service: FakeService) -> None:
    headers = {"X-Session-Id": "cam-1", "X-Frame-Index": "7"}
    client.post(URL, json=chat(user(jpegs(picture(1), picture(2)))), headers=headers)
    assert service.pushed == [("cam-1", 7), ("cam-1", 8)]


@pytest.mark.parametrize("headers", [{"X-Frame-Index": "0"}, {"X-Frame-Index": "-1", "X-Session-Id": "cam-1"}])
def test_an_index_that_cannot_be_or_has_no_session_is_refused(
    client: TestClient, service: FakeService, headers: dict[str, str]
) -> None:
    assert client.post(URL, json=chat(), headers=headers).status_code == 400
    assert service.asked == [] and service.sessions == {}


@pytest.mark.parametrize("session_id", ["", "a/b", "..", "x" * 200, "a b"])
def test_what_is_no_id_of_a_session_is_refused(client: TestClient, session_id: str) -> None:
    response = client.post(URL, json=chat(), headers={"X-Session-Id": session_id})
    assert response.status_code == 400 and error_of(response)["param"] == "X-Session-Id"
