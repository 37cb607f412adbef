"""OpenCV, used for cameras, pipelines and the window, with errors for what is missing on this machine.

OpenCV is imported inside the functions, so that a device without it can still play videos.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from engines.errors import BackendUnavailable, MediaError
from engines.synthetic import Frame

from .addresses import Address
from .gstreamer import CSI_SOURCE, has_element
from .v4l2 import MJPG, is_raw, pixel_formats

PIPS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
JETSON = Path("/etc/nv_tegra_release")
SYSTEMS_OPENCV = "sudo apt install libopencv-python, in a venv made with --system-site-packages"


class Capture(Protocol):
    """The part of cv2.VideoCapture used here."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def read(self) -> tuple[bool, Frame | None]: ...
    def get(self, prop: int) -> float: ...
    def release(self) -> None: ...


def open_capture(
    address: Address,
    *,
    cv2: Any = None,
    formats: Callable[[str], tuple[str, ...]] = pixel_formats,
    has: Callable[[str], bool | None] = has_element,
) -> Capture:
    """Open a cv2.VideoCapture for live use: one buffered frame, and bounded waits.

    Raises BackendUnavailable if OpenCV or GStreamer lacks a feature, MediaError for a camera with only raw Bayer data.
    The caller checks whether it opened.
    """
    cv2 = cv2 or import_cv2()
    if address.kind == "camera":
        return _open_camera(cv2, address, formats)
    if not has_gstreamer(cv2):
        raise _without_gstreamer(cv2, address)
    if address.kind == "csi" and has(CSI_SOURCE) is False:
        raise BackendUnavailable(
            f"{address.name} needs GStreamer's {CSI_SOURCE}, which is not installed here",
            expected="a Jetson with JetPack's multimedia packages",
            cause="this machine is not a Jetson; or it is a container without those packages; or nvidia-l4t-gstreamer "
            "is not installed",
            fix="on a Jetson: sudo apt install nvidia-l4t-gstreamer nvidia-l4t-camera; with a USB camera: --source 0",
        )
    # Set no properties: for each one OpenCV stops a running pipeline, and a sensor may not start a second time.
    opened: Capture = cv2.VideoCapture(address.target, cv2.CAP_GSTREAMER)
    return opened


def has_gstreamer(cv2: Any) -> bool:
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None


def import_cv2() -> Any:
    """Import OpenCV with its warnings off, since we report errors. Raises BackendUnavailable."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        fix = "pip install opencv-python; on a machine without a screen, opencv-python-headless"
        if JETSON.exists():
            fix = (
                f"{SYSTEMS_OPENCV}; if the error is about NumPy: pip install 'numpy<2', which JetPack 6's OpenCV needs"
            )
        raise BackendUnavailable(
            f"OpenCV, needed for cameras and the window, cannot be imported: {error}", fix=fix
        ) from error


def _open_camera(cv2: Any, address: Address, formats: Callable[[str], tuple[str, ...]]) -> Capture:
    is_path = address.target.startswith("/dev/")
    offered = formats(address.target if is_path else f"/dev/video{int(address.target)}")
    if is_raw(offered):
        raise MediaError(
            f"{address.name} delivers only raw Bayer data ({', '.join(offered)}), not pictures",
            expected="a camera with MJPG, YUYV or a similar format",
            cause="it is a CSI sensor, whose data the Jetson's image processor must convert first",
            fix="on a Jetson: --source csi:0; elsewhere: a pipeline with GStreamer's bayer2rgb",
        )
    target = address.target if is_path else int(address.target)
    # YUYV at 1080p fills USB 2 at 5 frames per second. V4L2 by name: no other OpenCV backend accepts the request.
    is_jpeg = MJPG in offered
    capture: Any = cv2.VideoCapture(target, cv2.CAP_V4L2 if is_jpeg else cv2.CAP_ANY)
    if is_jpeg:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*MJPG))
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    opened: Capture = capture
    return opened


def _without_gstreamer(cv2: Any, address: Address) -> BackendUnavailable:
    pips = [name for name in PIPS if _is_installed(name)]
    which = f"pip's {' and '.join(pips)}" if pips else str(cv2.__file__)
    return BackendUnavailable(
        f"{address.name} needs an OpenCV with GStreamer; {which}, version {cv2.__version__}, has none",
        expected="GStreamer: YES in cv2.getBuildInformation(), as in NVIDIA's libopencv-python",
        cause="pip's OpenCV is built without GStreamer, and hides the system's OpenCV if both are installed"
        if pips
        else "it was built without GStreamer",
        fix=f"pip uninstall {' '.join(pips)}; then {SYSTEMS_OPENCV}" if pips else SYSTEMS_OPENCV,
    )


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
