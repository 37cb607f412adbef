"""What delivers frames, one at a time, when asked: here a camera or a pipeline, by OpenCV; videos are in videos.py.

Note: a live device that stops delivering is opened again with growing pauses before it counts as lost; one that does
not open at the start is an error at once, as that is more often a typing error than a camera that is on its way.
OpenCV is imported inside the functions, and opened by a factory, so that tests need neither a camera nor OpenCV.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from engines.errors import BackendUnavailable, MediaError
from engines.synthetic import Frame
from engines.video import Damage, is_url, without_password

from .synthetic import SYNTHETIC, Shown

RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
FPS = 5  # cv2.CAP_PROP_FPS
Wait = Callable[[float], bool]
"""Sleeps so many seconds; true as soon as nobody wants frames any more."""


class Capture(Protocol):
    """The part of cv2.VideoCapture that is used here."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def read(self) -> tuple[bool, Frame | None]: ...
    def get(self, prop: int) -> float: ...
    def release(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where frames come from. `name` is for people and reports: a URL's password is not in it."""

    kind: Literal["synthetic", "camera", "url", "pipeline", "file"]
    target: str
    name: str

    @property
    def is_live(self) -> bool:
        """It goes on whether or not anybody looks."""
        return self.kind in ("camera", "url", "pipeline")

    @property
    def may_wait(self) -> bool:
        """It may be a video that waits for a model; of an http address only opening it tells."""
        return not self.is_live or self.target.startswith(("http://", "https://"))


class Device(Protocol):
    """What delivers frames: a CaptureDevice, a VideoDevice, a PictureDevice or a SyntheticDevice.

    fps     as stated, None if not; of a variable rate the highest
    waits   it delivers when asked, so whoever reads sets the pace
    notice  what a person should know of it now, else empty
    """

    name: str
    fps: float | None
    waits: bool
    notice: str
    num_reconnects: int

    @property
    def damage(self) -> Damage | None:
        """What it should have shown so far and did not; None if nothing, or if it does not know."""

    def read(self) -> Shown | None:
        """The next frame, the caller's own; None at the end. Raises MediaError when lost."""

    def close(self) -> None: ...


def parse_address(text: str) -> Address:
    """'synthetic', a camera's number or /dev/ path, a URL, a GStreamer pipeline (it holds ' ! '), else a file
    or pictures."""
    text = text.strip()
    if text == SYNTHETIC:
        return Address(kind="synthetic", target=text, name=SYNTHETIC)
    if re.fullmatch(r"\d{1,3}", text):
        return Address(kind="camera", target=text, name=f"camera {int(text)}")
    if text.startswith("/dev/"):
        return Address(kind="camera", target=text, name=f"camera {text}")
    if " ! " in text:
        return Address(kind="pipeline", target=text, name=without_password(text))
    if is_url(text):
        return Address(kind="url", target=text, name=without_password(text))
    return Address(kind="file", target=text.removeprefix("file://"), name=text.removeprefix("file://"))


class CaptureDevice:
    """A cv2.VideoCapture that survives the loss of its camera."""

    waits, damage = False, None

    def __init__(
        self,
        address: Address,
        *,
        wait: Wait,
        factory: Callable[[Address], Capture] | None = None,
        pauses_s: Sequence[float] = RETRY_PAUSES_S,
    ) -> None:
        """Open it, and prove that it delivers. `pauses_s` are slept between attempts to get it back when it is lost.

        Raises MediaError, and BackendUnavailable without OpenCV.
        """
        self._address, self._wait, self._pauses_s = address, wait, tuple(pauses_s)
        self._factory = factory or open_capture
        self.name, self.notice, self.num_reconnects = address.name, "", 0
        self._num_read = 0
        self._capture = self._factory(address)
        try:
            if not self._capture.isOpened():
                raise MediaError(f"{self.name} cannot be opened", **_advice(address))
            self.fps = _rate(self._capture.get(FPS))
            self._first = self._try_read()
            if self._first is None:
                raise MediaError(f"{self.name} opens but gives no frame", **_advice(address))
        except BaseException:
            self._capture.release()
            raise

    def read(self) -> Shown | None:
        frame, self._first = self._first, None
        if frame is None:
            frame = self._try_read()
        shown = None if frame is None else Shown(frame)
        if shown is None:
            shown = came_back(self, self._reopened, wait=self._wait, pauses_s=self._pauses_s, num_read=self._num_read)
        self._num_read += 1
        return shown

    def close(self) -> None:
        self._capture.release()

    def _try_read(self) -> Frame | None:
        ok, frame = self._capture.read()
        return frame if ok and frame is not None and frame.size else None

    def _reopened(self) -> Shown | None:
        """The first frame of a device that is back; None if it is not."""
        self._capture = self._factory(self._address)
        frame = self._try_read() if self._capture.isOpened() else None
        return None if frame is None else Shown(frame)


def came_back(
    device: Device, reopened: Callable[[], Shown | None], *, wait: Wait, pauses_s: Sequence[float], num_read: int
) -> Shown | None:
    """The first frame of a device that was lost after num_read frames; None if nobody waits for it any more.

    Raises MediaError when it stays away.
    """
    for attempt, pause_s in enumerate(pauses_s, start=1):
        device.notice = f"{device.name} was lost: trying to get it back, {attempt} of {len(pauses_s)}"
        device.close()  # before the pause: a camera that is still held cannot come back under its number
        if wait(pause_s):
            return None
        if (shown := reopened()) is not None:
            device.notice = ""
            device.num_reconnects += 1
            return shown
    raise MediaError(
        f"{device.name} was lost after {num_read} frames, and did not come back in {len(pauses_s)} attempts over "
        f"{sum(pauses_s):.0f} s",
        cause="it was unplugged, or its power or network is gone",
        fix="check that, then start pvc-live again",
    )


def open_capture(address: Address) -> Capture:
    """cv2.VideoCapture, set up for the present: one buffered frame, and no wait without an end."""
    cv2 = import_cv2()
    if address.kind == "pipeline":
        capture: Any = cv2.VideoCapture(address.target, cv2.CAP_GSTREAMER)
    else:
        capture = cv2.VideoCapture(address.target if address.target.startswith("/dev/") else int(address.target))
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    opened: Capture = capture
    return opened


def import_cv2() -> Any:
    """OpenCV, with its warnings off: what goes wrong is said by us. Raises BackendUnavailable."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise BackendUnavailable(
            f"OpenCV, which cameras and the window need, cannot be imported here: {error}",
            fix="pip install opencv-python; on a machine without a screen, opencv-python-headless",
        ) from error


def _advice(address: Address) -> dict[str, str]:
    """What was expected, the likely cause and the next step, for an error."""
    if address.kind == "camera":
        cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        expected = f"a camera that is connected and free; cameras of this machine: {cameras}"
        cause = "it has another number, another program is using it, or your user may not read it"
        fix = "ls -l /dev/video*; without a camera: --source synthetic, or a video file"
    else:
        expected = "a GStreamer pipeline that ends in appsink, and an OpenCV with GStreamer"
        cause = "the pipeline is wrong, or this OpenCV is pip's, which has no GStreamer; JetPack's has it"
        fix = "try the pipeline alone, with fakesink for appsink: gst-launch-1.0 PIPELINE"
    return {"expected": expected, "cause": cause, "fix": fix}


def _rate(fps: float) -> float | None:
    """Cameras answer 0, -1 or nan where they do not know."""
    return fps if math.isfinite(fps) and 0.01 <= fps <= 1000 else None
