"""Requests from the page, and those that are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from apps.addresses import parse_address
from apps.browser import Refused
from apps.listeners import Ask, Commands, Pause, Reset, SetQuestion, Switch, TakeSnapshot
from apps.web.hub import Hub
from apps.web.orders import Bucket, Camera, Reader

from . import told
from .conftest import SOCKET, Clock


def wait_for(socket: WebSocketTestSession, kind: str) -> Any:
    """Return the value of the next message of this kind, skipping others. Raises if the socket is closed."""
    while True:
        message = socket.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"])
        if message.get("text") is not None:
            found, value = told.read(message["text"])
            assert found != "beat", f"nothing was sent for seconds, and no {kind}"
            if found == kind:
                return value


# -- orders


@pytest.mark.parametrize(
    ("order", "command"),
    [
        ({"do": "ask", "question": " What  is it?\n"}, Ask(question="What is it?")),
        ({"do": "question", "question": "Who?"}, SetQuestion(question="Who?")),
        ({"do": "pause", "paused": True}, Pause(paused=True)),
        ({"do": "pause", "paused": False}, Pause(paused=False)),
        ({"do": "reset"}, Reset()),
        ({"do": "snapshot"}, TakeSnapshot()),
        ({"do": "switch", "source": "synthetic"}, Switch(address=parse_address("synthetic"))),
        ({"do": "switch", "source": "0"}, Switch(address=parse_address("0"))),
        ({"do": "switch", "source": "/dev/video2"}, Switch(address=parse_address("/dev/video2"))),
        ({"do": "switch", "source": "rtsp://u:p@host/x"}, Switch(address=parse_address("rtsp://u:p@host/x"))),
        ({"do": "camera", "on": True}, Camera(on=True)),
    ],
    ids=lambda value: value.get("do") if isinstance(value, dict) else None,
)
def test_an_order_is_a_command(order: dict[str, Any], command: object) -> None:
    assert Reader(files=None).read(json.dumps(order)) == command


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "one JSON object"), ("[1]", "one JSON object"), ("{", "one JSON object"), ("[" * 4000, "one JSON object"),
        ("{}", "unknown"), ('{"do": "rm"}', "unknown"), ('{"do": ["ask"]}', "unknown"),
        ('{"do": "ask"}', "empty"), ('{"do": "ask", "question": "  "}', "empty"),
        ('{"do": "ask", "question": 5}', "empty"), ('{"do": "ask", "question": "\\ud800"}', "valid text"),
        (json.dumps({"do": "ask", "question": "x" * 1001}), "at most 1000"),
        ('{"do": "pause", "paused": 1}', "true or false"), (" " * 5000, "at most 4096"),
        ('{"do": "switch", "source": ""}', "a source must be a text"), ('{"do": "switch"}', "a source must be a text"),
        ('{"do": "switch", "source": "csi:x"}', "not a CSI camera"),
        ('{"do": "switch", "source": "filesrc location=/etc/passwd ! filesink location=/x"}', "only on the command"),
        ('{"do": "switch", "source": "/etc/passwd"}', "command line"),
        ('{"do": "switch", "source": "file:///etc/passwd"}', "command line"),
        ('{"do": "switch", "source": "/dev/sda"}', "/dev/video"),
        ('{"do": "switch", "source": "/dev/../etc/passwd"}', "/dev/video"),
        ('{"do": "switch", "source": "concat://a|b"}', "must begin with one of"),
    ],
)  # fmt: skip
def test_what_is_no_order_is_refused_in_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        Reader(files=None).read(text)


def test_the_page_may_come_back_to_what_the_command_line_gave() -> None:
    reader = Reader(files=None, given="v4l2src ! videoconvert ! appsink")
    order = json.dumps({"do": "switch", "source": "v4l2src ! videoconvert ! appsink"})
    assert isinstance(reader.read(order), Switch)


def test_files_are_those_of_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    reader = Reader(files=folder)
    found = reader.read('{"do": "switch", "source": "a.mp4"}')
    assert isinstance(found, Switch) and found.address.target == str(folder / "a.mp4")
    for name in ("../secret.mp4", "link.mp4", "none.mp4", str(tmp_path / "secret.mp4"), "file://../secret.mp4"):
        with pytest.raises(Refused, match="in the folder of --web-files"):
            reader.read(json.dumps({"do": "switch", "source": name}))


def test_a_bucket_lets_a_burst_through_and_then_its_rate(clock: Clock) -> None:
    bucket = Bucket(2.0, 3, clock=clock)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]
    clock.now += 1.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


# -- over the socket


def test_an_order_reaches_the_session(client: TestClient, commands: Commands) -> None:
    with client.websocket_connect(SOCKET) as socket:
        wait_for(socket, "state")
        socket.send_json({"do": "ask", "question": "Who is there?"})
        socket.send_json({"do": "nonsense"})
        assert wait_for(socket, "refused") == 'this value of "do" is unknown'
    assert commands.take() == Ask(question="Who is there?") and commands.take() is None


def test_a_flood_of_orders_is_refused_and_what_was_taken_is_bounded(client: TestClient, commands: Commands) -> None:
    with client.websocket_connect(SOCKET) as socket:
        wait_for(socket, "state")
        for _ in range(100):
            socket.send_json({"do": "reset"})
        assert wait_for(socket, "refused") == "too many messages in a short time"
    taken = 0
    while commands.take() is not None:
        taken += 1
    assert 20 <= taken <= 30


def test_orders_beyond_what_a_session_does_are_refused(client: TestClient, commands: Commands) -> None:
    while commands.put(Reset()):
        pass
    with client.websocket_connect(SOCKET) as socket:
        wait_for(socket, "state")
        socket.send_json({"do": "reset"})
        assert wait_for(socket, "refused") == "too many requests are waiting"


def test_a_page_that_does_not_stop_is_shut_out(client: TestClient) -> None:
    with client.websocket_connect(SOCKET) as socket:
        wait_for(socket, "state")
        for _ in range(300):
            socket.send_text("nonsense")
        with pytest.raises(WebSocketDisconnect) as caught:
            wait_for(socket, "never")
    assert caught.value.code == 4408


def test_no_more_viewers_than_are_allowed_and_a_place_is_free_again(client: TestClient, hub: Hub) -> None:
    with client.websocket_connect(SOCKET) as first:
        assert wait_for(first, "state")["viewers"] == 1
        with client.websocket_connect(SOCKET) as second:
            assert wait_for(second, "state")["viewers"] == 2
            assert wait_for(first, "viewers") == 2
            with client.websocket_connect(SOCKET) as third, pytest.raises(WebSocketDisconnect) as caught:
                third.receive_json()
            assert caught.value.code == 4429
        assert wait_for(first, "viewers") == 1
        with client.websocket_connect(SOCKET) as third:
            assert wait_for(third, "state")["viewers"] == 2
    assert until_empty(hub)


def until_empty(hub: Hub) -> bool:
    end = time.monotonic() + 5
    while hub.num_viewers and time.monotonic() < end:
        time.sleep(0.01)
    return hub.num_viewers == 0


# -- the browser's camera


def test_a_pages_camera_becomes_the_source_and_its_pictures_arrive(
    client: TestClient, hub: Hub, commands: Commands
) -> None:
    with client.websocket_connect(SOCKET) as socket:
        wait_for(socket, "state")
        socket.send_json({"do": "camera", "on": True})
        assert wait_for(socket, "camera") == "you"
        command = commands.take()
        assert isinstance(command, Switch) and command.address.kind == "browser"
        socket.send_bytes(told.jpeg(value=11))
        frame = hub.camera.take(5.0)
        assert frame is not None and frame.shape == (48, 64, 3) and round(frame.mean() / 8) == 11
        socket.send_json({"do": "camera", "on": False})
        assert wait_for(socket, "camera") == "nobody"


def test_one_camera_at_a_time(client: TestClient, hub: Hub) -> None:
    with client.websocket_connect(SOCKET) as first, client.websocket_connect(SOCKET) as second:
        first.send_json({"do": "camera", "on": True})
        assert wait_for(first, "camera") == "you" and wait_for(second, "camera") == "other"
        second.send_json({"do": "camera", "on": True})
        assert wait_for(second, "refused") == "another viewer's camera is in use"
        second.send_bytes(told.jpeg())
        assert wait_for(second, "refused") == "this page's camera is not the one in use"
        first.close()
        assert wait_for(second, "camera") == "nobody"
        second.send_json({"do": "camera", "on": True})
        assert wait_for(second, "camera") == "you"


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"GIF89a" + bytes(50), "not a JPEG"), (b"", "not a JPEG"), (b"\xff\xd8\xff" + bytes(50), "damaged"),
        (told.jpeg()[:400], "damaged"), (told.jpeg() + bytes(600_000), "bytes"), (told.jpeg(width=2000), "pixels"),
    ],
    ids=["gif", "empty", "rubbish", "cut short", "too many bytes", "too many pixels"],
)  # fmt: skip
def test_a_picture_that_is_not_taken_is_reported_to_its_sender(client: TestClient, picture: bytes, reason: str) -> None:
    with client.websocket_connect(SOCKET) as socket:
        socket.send_json({"do": "camera", "on": True})
        wait_for(socket, "camera")
        socket.send_bytes(picture)
        assert reason in wait_for(socket, "refused")
