"""Devices: how an address is read, how a lost camera comes back or is given up, and what a bad source is told."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from apps.devices import FPS, Address, CaptureDevice, open_capture, parse_address
from apps.synthetic import Shown
from engines.errors import BackendUnavailable, MediaError
from engines.synthetic import render_clip
from engines.video import write_video

from .fakes import FakeCapture, FakeFactory, picture

CAMERA = parse_address("0")


def keep_waiting(seconds: float) -> bool:
    return False


def device(
    *captures: FakeCapture, address: Address = CAMERA, pauses_s: tuple[float, ...] = (1.0, 2.0)
) -> CaptureDevice:
    return CaptureDevice(address, wait=keep_waiting, factory=FakeFactory(*captures), pauses_s=pauses_s)


def value(shown: Shown | None) -> int:
    assert shown is not None
    return round(float(shown.bgr.mean()) / 8)


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("synthetic", "synthetic", "synthetic"),
        ("0", "camera", "0"),
        (" 12 ", "camera", "12"),
        ("/dev/v4l/by-id/cam", "camera", "/dev/v4l/by-id/cam"),
        ("rtsp://10.0.0.2/live", "url", "rtsp://10.0.0.2/live"),
        ("file:///data/a.mp4", "file", "/data/a.mp4"),
        ("nvarguscamerasrc ! appsink", "pipeline", "nvarguscamerasrc ! appsink"),
        ("clip 1.mp4", "file", "clip 1.mp4"),
        ("10:30.mp4", "file", "10:30.mp4"),
        ("99999999999", "file", "99999999999"),
    ],
)
def test_an_address_is_what_it_looks_like(text: str, kind: str, target: str) -> None:
    address = parse_address(text)
    assert (address.kind, address.target) == (kind, target)
    assert address.is_live == (kind in ("camera", "url", "pipeline"))


@pytest.mark.parametrize(
    "text",
    ["rtsp://me:hunter2@10.0.0.2/live", "rtsp://:hunter2@10.0.0.2", "rtspsrc location=rtsp://me:hunter2@cam ! appsink"],
)
def test_a_password_is_used_but_never_shown(text: str) -> None:
    address = parse_address(text)
    assert "hunter2" in address.target and "hunter2" not in address.name
    with pytest.raises(MediaError) as caught:
        device(FakeCapture(opens=False), address=address)
    assert "hunter2" not in str(caught.value) and ":***@" in str(caught.value)


def test_a_lost_camera_comes_back_and_no_frame_is_invented() -> None:
    first, absent, second = FakeCapture([picture(1), picture(2)]), FakeCapture(opens=False), FakeCapture([picture(9)])
    camera = device(first, absent, second)
    assert [value(camera.read()) for _ in range(3)] == [1, 2, 9]
    assert camera.num_reconnects == 1 and camera.notice == ""
    assert first.is_released


@pytest.mark.parametrize("failure", [None, np.zeros((0, 0, 3), np.uint8)], ids=["no frame", "empty frame"])
def test_a_read_without_a_picture_counts_as_lost(failure: np.ndarray | None) -> None:
    camera = device(FakeCapture([picture(1), failure]), FakeCapture([picture(3)]))
    assert [value(camera.read()) for _ in range(2)] == [1, 3]


def test_a_camera_that_opens_but_stays_dark_is_not_back() -> None:
    camera = device(FakeCapture([picture(1)]), FakeCapture(), FakeCapture([picture(4)]))
    assert [value(camera.read()) for _ in range(2)] == [1, 4]


def test_a_camera_that_stays_away_is_given_up_by_name() -> None:
    pauses: list[float] = []
    factory = FakeFactory(FakeCapture([picture(1), picture(2)]), FakeCapture(opens=False), FakeCapture(opens=False))
    camera = CaptureDevice(
        CAMERA, wait=lambda seconds: bool(pauses.append(seconds)), factory=factory, pauses_s=(0.5, 4.0)
    )
    camera.read(), camera.read()
    with pytest.raises(MediaError, match=r"camera 0 was lost after 2 frames.*2 attempts over 4 s") as caught:
        camera.read()
    assert "unplugged" in caught.value.cause and "pvc-live" in caught.value.fix
    assert pauses == [0.5, 4.0] and "2 of 2" in camera.notice


def test_nobody_waits_for_a_camera_when_the_session_ends() -> None:
    factory = FakeFactory(FakeCapture([picture(1)]))
    camera = CaptureDevice(CAMERA, wait=lambda seconds: True, factory=factory, pauses_s=(99.0,))
    camera.read()
    assert camera.read() is None and factory.num_opened == 1


@pytest.mark.parametrize(
    ("text", "expected", "cause", "fix"),
    [
        ("7", "cameras of this machine", "another program", "--source synthetic"),
        ("rtsp://cam/1", "a video stream", "user or password", "ffprobe"),
        ("v4l2src ! appsink", "ends in appsink, and an OpenCV with GStreamer", "GStreamer", "gst-launch-1.0"),
    ],
)
def test_what_does_not_open_at_first_is_an_error_at_once(text: str, expected: str, cause: str, fix: str) -> None:
    capture = FakeCapture(opens=False)
    with pytest.raises(MediaError) as caught:
        device(capture, address=parse_address(text))
    error, name = caught.value, f"camera {text}" if text == "7" else text
    assert error.what == f"{name} cannot be opened" and capture.is_released
    assert expected in error.expected and cause in error.cause and fix in error.fix


def test_a_camera_that_opens_but_gives_nothing_is_an_error_at_once() -> None:
    with pytest.raises(MediaError, match="camera 0 opens but gives no frame"):
        device(FakeCapture())


def test_a_video_on_a_web_server_ends_and_a_stream_does_not() -> None:
    address = parse_address("https://server/clip.mp4")
    video = device(FakeCapture([picture(1)], num_frames=1), address=address)
    assert video.waits and value(video.read()) == 1 and video.read() is None
    stream = device(FakeCapture([picture(1)], num_frames=-9e18), FakeCapture([picture(2)]), address=address)
    assert not stream.waits and [value(stream.read()), value(stream.read())] == [1, 2]


def test_a_file_without_a_rate_cannot_be_paced() -> None:
    with pytest.raises(MediaError, match=r"clip\.mp4 states no frame rate") as caught:
        device(FakeCapture([picture(1)], fps=0.0, num_frames=9), address=parse_address("https://server/clip.mp4"))
    assert "ffmpeg" in caught.value.fix


def test_a_file_that_may_not_be_read_is_called_so(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(MediaError, match="may not be read") as caught:
        CaptureDevice(parse_address(str(clip)), wait=keep_waiting)
    assert "ls -l" in caught.value.fix


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 90000.0])
def test_a_camera_may_not_know_its_rate(fps: float) -> None:
    assert device(FakeCapture([picture(1)], fps=fps)).fps is None


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "10:30.mp4"
    write_video(path, (picture(index) for index in range(12)), fps=12.0)
    return path


def test_a_file_is_read_to_its_end(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)  # relative: FFmpeg would take "10" for a protocol
    file = CaptureDevice(parse_address(clip.name), wait=keep_waiting)
    assert file.waits and file.fps == pytest.approx(12.0)
    assert [value(file.read()) for _ in range(12)] == list(range(12))
    assert file.read() is None and file.notice == ""
    file.close()


def test_a_file_that_ends_early_says_so(clip: Path) -> None:
    def cut_short(address: Address) -> FakeCapture:
        return FakeCapture([picture(1)] * 5, fps=open_capture(address).get(FPS), num_frames=40)

    file = CaptureDevice(parse_address(str(clip)), wait=keep_waiting, factory=cut_short)
    while file.read() is not None:
        pass
    assert "ended after 5 of the 40 frames" in file.notice


def make_text(path: Path) -> None:
    path.write_text("not a video " * 100)


def make_cut(path: Path) -> None:
    write_video(path, [picture(1)] * 30, fps=30)
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("none.mp4", lambda path: None, "does not exist"),
        ("folder.mp4", Path.mkdir, "is not a file"),
        ("empty.mp4", Path.touch, "is empty"),
        ("text.mp4", make_text, "cannot be opened"),
        ("captions.txt", make_text, "is text by its suffix"),
        ("cut.mp4", make_cut, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path, name: str, make: object, what: str) -> None:
    assert callable(make)
    make(tmp_path / name)
    with pytest.raises(MediaError) as caught:
        CaptureDevice(parse_address(str(tmp_path / name)), wait=keep_waiting)
    error = caught.value
    assert f"{name} {what}" in error.what and "video file" in error.expected and error.fix
    assert what != "cannot be opened" or ("complete" in error.expected and "cut short" in error.cause)


def test_a_misspelt_synthetic_gets_a_hint() -> None:
    with pytest.raises(MediaError) as caught:
        CaptureDevice(parse_address("sinthetic"), wait=keep_waiting)
    assert caught.value.fix == "did you mean --source synthetic?"


def test_without_opencv_the_message_says_how_to_install_it(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendUnavailable) as caught:
        CaptureDevice(parse_address(str(clip)), wait=keep_waiting)
    assert "pip install opencv-python" in caught.value.fix


def test_an_endless_clip_begins_like_any_other() -> None:
    endless = list(islice(render_clip(None, seed=4, width=40, height=30), 5))
    assert all(np.array_equal(*pair) for pair in zip(endless, render_clip(5, seed=4, width=40, height=30), strict=True))
    assert not np.array_equal(endless[0], endless[1])
