"""What delivers frames, one at a time, when asked: here a camera or a pipeline, by OpenCV; videos are in videos.py.

Note: a live device that stops delivering is opened again with growing pauses before it counts as lost; one that does
not open at the start is an error at once, as that is more often a typing error than a camera that is on its way.
OpenCV's capture is made by a factory, so that tests need neither a camera nor OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from engines.errors import MediaError
from engines.synthetic import Frame
from engines.video import Damage

from .addresses import Address
from .opencv import Capture, open_capture
from .synthetic import Shown

RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
FPS = 5  # cv2.CAP_PROP_FPS
Wait = Callable[[float], bool]
"""Sleeps so many seconds; true as soon as nobody wants frames any more."""


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


def _advice(address: Address) -> dict[str, str]:
    """What was expected, the likely cause and the next step, for an error."""
    if address.kind == "camera":
        cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        expected = f"a camera that is connected and free; cameras of this machine: {cameras}"
        cause = "it has another number, another program is using it, or your user may not read it"
        fix = "ls -l /dev/video*; without a camera: --source synthetic, or a video file"
    elif address.kind == "csi":
        expected = "a CSI sensor of this number and mode, free, and nvargus-daemon, which serves it"
        cause = "the daemon hangs or another program holds the sensor; or the connector is not configured for it, as "
        cause += "JetPack 6 and newer require of an IMX219 or IMX477; or its cable is loose"
        fix = "sudo systemctl restart nvargus-daemon; if that is not it, choose the sensor in sudo "
        fix += "/opt/nvidia/jetson-io/jetson-io.py, and restart; then alone: gst-launch-1.0 nvarguscamerasrc "
        fix += "num-buffers=30 ! fakesink"
    else:
        expected = "a GStreamer pipeline that ends in appsink"
        cause = "the pipeline is wrong, or an element of it is not installed"
        fix = "try the pipeline alone, with fakesink for appsink: gst-launch-1.0 PIPELINE"
    return {"expected": expected, "cause": cause, "fix": fix}


def _rate(fps: float) -> float | None:
    """Cameras answer 0, -1 or nan where they do not know."""
    return fps if math.isfinite(fps) and 0.01 <= fps <= 1000 else None
