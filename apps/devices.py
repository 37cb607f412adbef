"""What delivers frames: a camera, a network stream, a pipeline or a file. One at a time, when asked.

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
from engines.terminal import did_you_mean
from engines.video import NOT_WHOLE, WHOLE_VIDEO, check_is_file, no_frame_rate

from .synthetic import SYNTHETIC, Shown

RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
TIMEOUT_MS = 5000  # of a network stream, for opening and for each frame
FPS, FRAME_COUNT = 5, 7  # cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT
TEXT_SUFFIXES = frozenset((".txt", ".asc", ".nfo", ".diz", ".ans", ".ice", ".vt"))
"""FFmpeg draws such a file as if on a terminal, and OpenCV hands that out as video."""
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


class Device(Protocol):
    """What delivers frames: a CaptureDevice, a PictureDevice or a SyntheticDevice.

    fps     as stated, None if not
    waits   it delivers when asked, so whoever reads sets the pace
    notice  what a person should know of it now, else empty
    """

    name: str
    fps: float | None
    waits: bool
    notice: str
    num_reconnects: int

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
        return Address(kind="pipeline", target=text, name=_without_password(text))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) and not text.startswith("file://"):
        return Address(kind="url", target=text, name=_without_password(text))
    return Address(kind="file", target=text.removeprefix("file://"), name=text.removeprefix("file://"))


class CaptureDevice:
    """A cv2.VideoCapture that survives the loss of its camera."""

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
        if address.kind == "file":
            _check_video_file(address)
        self._address, self._wait, self._pauses_s = address, wait, tuple(pauses_s)
        self._factory = factory or open_capture
        self.name, self.notice, self.num_reconnects = address.name, "", 0
        self._num_read = 0
        self._capture = self._factory(address)
        try:
            if not self._capture.isOpened():
                raise MediaError(f"{self.name} cannot be opened", **_advice(address))
            self.fps = _rate(self._capture.get(FPS))
            self._num_frames = _count(self._capture.get(FRAME_COUNT))
            # A video file on a web server has a length, and is read like one on a disk.
            self.waits = not address.is_live or (address.kind == "url" and self._num_frames > 0)
            if self.waits and self.fps is None:
                raise no_frame_rate(self.name)
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
        if frame is None:
            if self.waits:
                self._note_early_end()
                return None
            frame = self._reconnect()
        self._num_read += 1
        return None if frame is None else Shown(frame)

    def close(self) -> None:
        self._capture.release()

    def _try_read(self) -> Frame | None:
        ok, frame = self._capture.read()
        return frame if ok and frame is not None and frame.size else None

    def _reconnect(self) -> Frame | None:
        """The first frame of the device that came back; None if nobody waits for it any more."""
        for attempt, pause_s in enumerate(self._pauses_s, start=1):
            self.notice = f"{self.name} was lost: trying to get it back, {attempt} of {len(self._pauses_s)}"
            self._capture.release()  # before the pause: a camera that is still held cannot come back under its number
            if self._wait(pause_s):
                return None
            self._capture = self._factory(self._address)
            if self._capture.isOpened() and (frame := self._try_read()) is not None:
                self.notice = ""
                self.num_reconnects += 1
                return frame
        raise MediaError(
            f"{self.name} was lost after {self._num_read} frames, and did not come back in {len(self._pauses_s)} "
            f"attempts over {sum(self._pauses_s):.0f} s",
            cause="it was unplugged, or its power or network is gone",
            fix="check that, then start pvc-live again",
        )

    def _note_early_end(self) -> None:
        # One second is allowed for: headers also count frames that an edit list hides.
        if self._num_frames - self._num_read > (self.fps or 0):
            self.notice = (
                f"{self.name} ended after {self._num_read} of the {self._num_frames} frames that its header states: "
                "likely it was cut short"
            )


def open_capture(address: Address) -> Capture:
    """cv2.VideoCapture, set up for the present: one buffered frame, and no wait without an end."""
    cv2 = import_cv2()
    if address.kind == "url":
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
        capture: Any = cv2.VideoCapture(address.target, cv2.CAP_FFMPEG, limits)
    elif address.kind == "pipeline":
        capture = cv2.VideoCapture(address.target, cv2.CAP_GSTREAMER)
    elif address.kind == "file":
        # Resolved, as FFmpeg takes a name such as 10:30.mp4 for a protocol.
        capture = cv2.VideoCapture(str(Path(address.target).resolve()))
    else:
        capture = cv2.VideoCapture(address.target if address.target.startswith("/dev/") else int(address.target))
    if address.is_live:
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
            f"OpenCV, which cameras and videos need, cannot be imported here: {error}",
            fix="pip install opencv-python; on a machine without a screen, opencv-python-headless",
        ) from error


def _check_video_file(address: Address) -> None:
    path = Path(address.target)
    if not path.exists() and did_you_mean(address.target, [SYNTHETIC], cutoff=0.7):
        raise MediaError(f"{path} does not exist", expected="a video file", fix=f"did you mean --source {SYNTHETIC}?")
    check_is_file(path)
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path} may not be read", expected="a file that is yours to read", fix=f"ls -l {path}")
    if path.suffix.lower() in TEXT_SUFFIXES:
        raise MediaError(
            f"{path} is text by its suffix", expected="a video file", fix=f"ffprobe {path}, or try another file"
        )


def _advice(address: Address) -> dict[str, str]:
    """What was expected, the likely cause and the next step, for an error."""
    if address.kind == "camera":
        cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        expected = f"a camera that is connected and free; cameras of this machine: {cameras}"
        cause = "it has another number, another program is using it, or your user may not read it"
        fix = "ls -l /dev/video*; without a camera: --source synthetic, or a video file"
    elif address.kind == "url":
        expected = "a video stream that OpenCV can decode"
        cause = "the address, port, user or password is wrong, the camera is off, or the network blocks it"
        fix = f"ffprobe {address.name}"
    elif address.kind == "pipeline":
        expected = "a GStreamer pipeline that ends in appsink, and an OpenCV with GStreamer"
        cause = "the pipeline is wrong, or this OpenCV is pip's, which has no GStreamer; JetPack's has it"
        fix = "try the pipeline alone, with fakesink for appsink: gst-launch-1.0 PIPELINE"
    else:
        expected, cause, fix = WHOLE_VIDEO, NOT_WHOLE, f"ffprobe {address.name}, or try another file"
    return {"expected": expected, "cause": cause, "fix": fix}


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)


def _rate(fps: float) -> float | None:
    """Cameras answer 0, -1 or nan where they do not know."""
    return fps if math.isfinite(fps) and 0.01 <= fps <= 1000 else None


def _count(num_frames: float) -> int:
    """0 where it is unknown: FFmpeg then answers with a huge negative number, some cameras with -1."""
    return int(num_frames) if math.isfinite(num_frames) and 0 < num_frames < 1e9 else 0
