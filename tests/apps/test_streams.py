"""Network streams: which decoder is chosen, and what happens if it fails."""

from __future__ import annotations

from typing import Any

import pytest

from apps import streams
from apps.addresses import Address, parse_address
from apps.devices import Device
from apps.streams import has_hardware_decoder, open_stream
from engines.errors import BackendUnavailable, MediaError

from .fakes import FakeCapture, FakeFactory, FakeVideo, picture
from .test_opencv import FakeCv2

URL = "rtsp://me:hunter2@cam/live"


class Opened:
    """Record what was opened, closed and printed, in order."""

    def __init__(self, *, codec: str = "h264") -> None:
        self.events: list[str] = []
        self.codec = codec

    def video(self, address: Address, **_: Any) -> Any:
        self.events.append("PyAV")
        video: Any = FakeVideo([0.0])
        video.codec, video.close = self.codec, lambda: self.events.append("closed")
        return video

    def stream(self, *captures: FakeCapture, url: str = URL, has_decoder: bool = True) -> Device:
        factory = FakeFactory(*captures)

        def capture(address: Address) -> FakeCapture:
            self.events.append(address.target)
            return factory(address)

        return open_stream(
            parse_address(url), wait=lambda seconds: False, fps=None, pauses_s=(0.0,), factory=capture,
            say=self.events.append, opener=self.video, has_decoder=lambda: has_decoder,
        )  # fmt: skip


@pytest.mark.parametrize(("codec", "depay"), [("h264", "rtph264depay"), ("hevc", "rtph265depay")])
def test_a_jetson_decodes_rtsp_in_hardware_once_the_first_reader_has_let_go(codec: str, depay: str) -> None:
    opened = Opened(codec=codec)
    device = opened.stream(FakeCapture([picture(7)]))
    assert opened.events[:2] == ["PyAV", "closed"] and len(opened.events) == 3
    assert f'{URL}" latency=0' in opened.events[2] and f"{depay} ! " in opened.events[2]
    shown = device.read()
    assert shown is not None and shown.bgr.mean() == 56 and not device.waits
    assert device.name == "rtsp://me:***@cam/live (nvv4l2decoder)"


@pytest.mark.parametrize(
    ("url", "codec", "has_decoder"),
    [(URL, "h264", False), (URL, "mjpeg", True), ("http://cam/live.ts", "h264", True)],
    ids=["no decoder", "another codec", "no RTSP"],
)
def test_everything_else_is_decoded_by_pyav(url: str, codec: str, has_decoder: bool) -> None:
    opened = Opened(codec=codec)
    assert opened.stream(url=url, has_decoder=has_decoder).name == "clip.mp4" and opened.events == ["PyAV"]


@pytest.mark.parametrize("capture", [FakeCapture(opens=False), FakeCapture()], ids=["closed", "dark"])
def test_a_decoder_that_shows_nothing_is_reported_and_pyav_takes_over(capture: FakeCapture) -> None:
    opened = Opened()
    assert opened.stream(capture).name == "clip.mp4" and capture.is_released
    said = "rtsp://me:***@cam/live: nvv4l2decoder delivers no frame, so the CPU decodes this stream"
    assert opened.events[3:] == [said, "PyAV"]


def test_a_wrong_address_is_pyav_s_error_and_the_decoder_is_not_tried() -> None:
    def refused(address: Address, **_: Any) -> Any:
        raise MediaError(f"{address.name} cannot be opened: Server returned 401 Unauthorized")

    opened = Opened()
    opened.video = refused  # type: ignore[method-assign]
    with pytest.raises(MediaError, match=r"rtsp://me:\*\*\*@cam/live cannot be opened: .*401"):
        opened.stream()
    assert opened.events == []


@pytest.mark.parametrize(
    ("element", "gstreamer", "has"),
    [(True, "YES (1.20.3)", True), (True, "NO", False), (False, "YES (1.20.3)", False), (None, "YES (1.20.3)", False)],
)
def test_the_hardware_decodes_where_gstreamer_and_opencv_both_can(
    element: bool | None, gstreamer: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "has_element", lambda name: element)
    monkeypatch.setattr(streams, "import_cv2", lambda: FakeCv2(gstreamer=gstreamer))
    assert has_hardware_decoder() is has


def test_a_device_without_opencv_has_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise BackendUnavailable("no OpenCV")

    monkeypatch.setattr(streams, "has_element", lambda name: True)
    monkeypatch.setattr(streams, "import_cv2", missing)
    assert not has_hardware_decoder()
