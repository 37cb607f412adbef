"""Devices: how a lost camera is reopened or given up, and the errors for a bad source."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import pytest

from apps.addresses import Address, parse_address
from apps.devices import CaptureDevice
from apps.synthetic import Shown
from engines.errors import BackendUnavailable, MediaError
from engines.synthetic import render_clip

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
        ("7", "cameras on this machine", "another program", "--source synthetic"),
        ("v4l2src ! appsink", "ends in appsink", "the pipeline is wrong", "gst-launch-1.0"),
        ("csi:1", "nvargus-daemon", "not configured", "sudo systemctl restart nvargus-daemon"),
        ("csi:1", "with this number and mode", "IMX219", "sudo /opt/nvidia/jetson-io/jetson-io.py"),
    ],
)
def test_what_does_not_open_at_first_is_an_error_at_once(text: str, expected: str, cause: str, fix: str) -> None:
    capture = FakeCapture(opens=False)
    with pytest.raises(MediaError) as caught:
        device(capture, address=parse_address(text))
    error, name = caught.value, {"7": "camera 7", "csi:1": "CSI camera 1"}.get(text, text)
    assert error.what == f"{name} cannot be opened" and capture.is_released
    assert expected in error.expected and cause in error.cause and fix in error.fix


def test_a_camera_that_opens_but_gives_nothing_is_an_error_at_once() -> None:
    with pytest.raises(MediaError, match="camera 0 opens but delivers no frame"):
        device(FakeCapture())


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 90000.0])
def test_a_camera_may_not_know_its_rate(fps: float) -> None:
    assert device(FakeCapture([picture(1)], fps=fps)).fps is None


def test_without_opencv_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendUnavailable) as caught:
        CaptureDevice(CAMERA, wait=keep_waiting)
    assert "pip install opencv-python" in caught.value.fix


def test_an_endless_clip_begins_like_any_other() -> None:
    endless = list(islice(render_clip(None, seed=4, width=40, height=30), 5))
    assert all(np.array_equal(*pair) for pair in zip(endless, render_clip(5, seed=4, width=40, height=30), strict=True))
    assert not np.array_equal(endless[0], endless[1])
