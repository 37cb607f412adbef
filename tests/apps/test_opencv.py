"""Opening each kind of camera with OpenCV, and the errors if OpenCV or GStreamer lacks something."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from apps import opencv
from apps.addresses import parse_address
from apps.opencv import has_gstreamer, import_cv2, open_capture
from engines.errors import BackendUnavailable, MediaError


class FakeCv2:
    """A fake cv2 that records what was opened and which properties were set."""

    CAP_ANY, CAP_V4L2, CAP_GSTREAMER = 0, 200, 1800
    CAP_PROP_FOURCC, CAP_PROP_BUFFERSIZE = 6, 38
    __file__, __version__ = "/usr/lib/python3/dist-packages/cv2.so", "4.8.0"

    def __init__(self, *, gstreamer: str = "YES (1.20.3)") -> None:
        self.gstreamer, self.opened, self.was_set = gstreamer, [], {}

    def getBuildInformation(self) -> str:  # noqa: N802
        return f"  Video I/O:\n    FFMPEG:   YES\n    GStreamer:                   {self.gstreamer}\n    v4l:  NO\n"

    def VideoCapture(self, target: object, backend: int) -> Any:  # noqa: N802
        self.opened.append((target, backend))
        return self

    def VideoWriter_fourcc(self, *letters: str) -> str:  # noqa: N802
        return "".join(letters)

    def set(self, prop: int, value: object) -> None:
        self.was_set[prop] = value


def opened(text: str, cv2: FakeCv2, *, formats: tuple[str, ...] = (), has: bool | None = True) -> None:
    open_capture(parse_address(text), cv2=cv2, formats=lambda path: formats, has=lambda element: has)


@pytest.mark.parametrize("has", [True, None], ids=["installed", "unknown"])
def test_a_csi_camera_is_opened_by_gstreamer_and_nothing_is_set(has: bool | None) -> None:
    """Setting a property would stop the pipeline and restart it."""
    cv2 = FakeCv2()
    opened("csi:0", cv2, has=has)
    assert cv2.opened == [(parse_address("csi:0").target, cv2.CAP_GSTREAMER)] and cv2.was_set == {}


def test_a_pipeline_is_opened_as_it_is() -> None:
    cv2 = FakeCv2()
    opened("v4l2src ! appsink", cv2, has=False)
    assert cv2.opened == [("v4l2src ! appsink", cv2.CAP_GSTREAMER)] and cv2.was_set == {}


@pytest.mark.parametrize("text", ["csi:0", "v4l2src ! appsink"])
def test_pip_s_opencv_is_named_before_it_is_tried(text: str) -> None:
    """With the real OpenCV that runs the tests."""
    cv2 = pytest.importorskip("cv2")
    if has_gstreamer(cv2):
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(BackendUnavailable) as caught:
        open_capture(parse_address(text))
    error = caught.value
    assert "needs an OpenCV with GStreamer; pip's opencv-python" in error.what
    assert "pip's OpenCV is built without GStreamer" in error.cause and "GStreamer: YES" in error.expected
    assert error.fix.startswith("pip uninstall opencv-python") and "apt install libopencv-python" in error.fix


def test_an_opencv_of_another_origin_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(opencv, "version", missing)
    cv2 = FakeCv2(gstreamer="NO")
    with pytest.raises(BackendUnavailable) as caught:
        opened("csi:0", cv2)
    assert cv2.opened == [] and "; /usr/lib/python3/dist-packages/cv2.so, version 4.8.0, has none" in caught.value.what
    assert "pip" not in caught.value.cause + caught.value.fix


def test_gstreamer_without_the_jetson_s_source_is_no_jetson() -> None:
    cv2 = FakeCv2()
    with pytest.raises(BackendUnavailable) as caught:
        opened("csi:0", cv2, has=False)
    assert cv2.opened == [] and "nvarguscamerasrc, which is not installed" in caught.value.what
    assert "not a Jetson" in caught.value.cause and "nvidia-l4t-gstreamer" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "target", "path"),
    [("2", 2, "/dev/video2"), ("/dev/v4l/by-id/cam", "/dev/v4l/by-id/cam", "/dev/v4l/by-id/cam")],
)
def test_a_usb_camera_is_asked_for_mjpg_by_v4l2(text: str, target: object, path: str) -> None:
    cv2, asked = FakeCv2(gstreamer="NO"), []

    def formats(path: str) -> tuple[str, ...]:
        asked.append(path)
        return ("YUYV", "MJPG")

    open_capture(parse_address(text), cv2=cv2, formats=formats)
    assert asked == [path] and cv2.opened == [(target, cv2.CAP_V4L2)]
    assert cv2.was_set == {cv2.CAP_PROP_FOURCC: "MJPG", cv2.CAP_PROP_BUFFERSIZE: 1}


@pytest.mark.parametrize("formats", [(), ("YUYV",), ("RG10", "NV12")], ids=["unknown", "no MJPG", "Bayer and pictures"])
def test_a_camera_without_mjpg_is_opened_as_ever(formats: tuple[str, ...]) -> None:
    cv2 = FakeCv2()
    opened("0", cv2, formats=formats)
    assert cv2.opened == [(0, cv2.CAP_ANY)] and cv2.was_set == {cv2.CAP_PROP_BUFFERSIZE: 1}


def test_a_raw_sensor_is_explained_and_not_opened() -> None:
    cv2 = FakeCv2()
    with pytest.raises(MediaError) as caught:
        opened("0", cv2, formats=("RG10", "RG12"))
    error = caught.value
    assert cv2.opened == [] and error.what == "camera 0 delivers only raw Bayer data (RG10, RG12), not pictures"
    assert "CSI sensor" in error.cause and "--source csi:0" in error.fix


def test_on_a_jetson_pip_s_opencv_is_not_advised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(opencv, "JETSON", tmp_path)
    with pytest.raises(BackendUnavailable) as caught:
        import_cv2()
    assert "apt install libopencv-python" in caught.value.fix and "pip install opencv" not in caught.value.fix
