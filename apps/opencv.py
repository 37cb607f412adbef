"""OpenCV, which reads cameras and pipelines and shows the window, and what of it is missing here.

OpenCV is imported inside the functions, so that a device without it still has its videos.
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
    """The part of cv2.VideoCapture that is used here."""

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
    """cv2.VideoCapture, set up for the present: one buffered frame, and no wait without an end.

    Raises BackendUnavailable for what this OpenCV or this GStreamer lacks, MediaError for a camera that has only raw
    Bayer data. That it does not open is for the caller to see.
    """
    cv2 = cv2 or import_cv2()
    if address.kind == "camera":
        return _open_camera(cv2, address, formats)
    if not has_gstreamer(cv2):
        raise _without_gstreamer(cv2, address)
    if address.kind == "csi" and has(CSI_SOURCE) is False:
        raise BackendUnavailable(
            f"{address.name} needs GStreamer's {CSI_SOURCE}, and there is none here",
            expected="a Jetson with JetPack's multimedia packages",
            cause="this is another machine; or a container without them; or a Jetson whose nvidia-l4t-gstreamer was "
            "left out",
            fix="on a Jetson: sudo apt install nvidia-l4t-gstreamer nvidia-l4t-camera; with a USB camera: --source 0",
        )
    # Nothing is set: OpenCV stops a running pipeline for each property, and a sensor may not start a second time.
    opened: Capture = cv2.VideoCapture(address.target, cv2.CAP_GSTREAMER)
    return opened


def has_gstreamer(cv2: Any) -> bool:
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None


def import_cv2() -> Any:
    """OpenCV, with its warnings off: what goes wrong is said by us. Raises BackendUnavailable."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        fix = "pip install opencv-python; on a machine without a screen, opencv-python-headless"
        if JETSON.exists():
            fix = (
                f"{SYSTEMS_OPENCV}; if NumPy is named above, pip install 'numpy<2': JetPack 6's OpenCV is built for it"
            )
        raise BackendUnavailable(
            f"OpenCV, which cameras and the window need, cannot be imported here: {error}", fix=fix
        ) from error


def _open_camera(cv2: Any, address: Address, formats: Callable[[str], tuple[str, ...]]) -> Capture:
    is_path = address.target.startswith("/dev/")
    offered = formats(address.target if is_path else f"/dev/video{int(address.target)}")
    if is_raw(offered):
        raise MediaError(
            f"{address.name} gives raw Bayer data ({', '.join(offered)}), and no pictures",
            expected="a camera with MJPG, YUYV or the like",
            cause="it is a CSI sensor, whose data the Jetson's image processor has to develop first",
            fix="on a Jetson: --source csi:0; elsewhere a pipeline with GStreamer's bayer2rgb",
        )
    target = address.target if is_path else int(address.target)
    # YUYV fills USB 2 at 5 frames per second of 1080p. V4L2 by name, as no other backend of OpenCV takes the request.
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
        f"{address.name} needs an OpenCV with GStreamer, and this one has none: {which}, version {cv2.__version__}",
        expected="GStreamer: YES in cv2.getBuildInformation(), as NVIDIA's libopencv-python has it",
        cause="pip's OpenCV is built without GStreamer, and hides the system's where both are installed"
        if pips
        else "it was built so",
        fix=f"pip uninstall {' '.join(pips)}; then {SYSTEMS_OPENCV}" if pips else SYSTEMS_OPENCV,
    )


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
