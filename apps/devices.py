"""Devices that deliver frames one at a time: here cameras and pipelines, through OpenCV; videos are in videos.py.

Note: a live device that stops delivering is reopened with growing pauses before it counts as lost. One that does not
open at the start is an error immediately, since that is more often a typing error than a camera about to appear.
A factory creates OpenCV's capture, so that tests need neither a camera nor OpenCV.
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
"""Sleeps for the given seconds; returns true as soon as no more frames are wanted."""


class Device(Protocol):
    """Delivers frames: a CaptureDevice, VideoDevice, PictureDevice or SyntheticDevice.

    fps     the stated rate, None if not stated; the highest if it varies
    waits   it delivers on request, so the reader sets the pace
    notice  its present condition for the user, or empty
    """

    name: str
    fps: float | None
    waits: bool
    notice: str
    num_reconnects: int

    @property
    def damage(self) -> Damage | None:
        """The frames missing so far; None if there are none or the device cannot tell."""

    def read(self) -> Shown | None:
        """The next frame, which the caller owns; None at the end. Raises MediaError when lost."""

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
        """Open it and read the first frame. `pauses_s` are the waits between attempts to reopen it when it is lost.

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
                raise MediaError(f"{self.name} opens but delivers no frame", **_advice(address))
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
        """The first frame after reopening; None if the device is not back."""
        self._capture = self._factory(self._address)
        frame = self._try_read() if self._capture.isOpened() else None
        return None if frame is None else Shown(frame)


def came_back(
    device: Device, reopened: Callable[[], Shown | None], *, wait: Wait, pauses_s: Sequence[float], num_read: int
) -> Shown | None:
    """Reopen a device that was lost after num_read frames and return its first frame; None if no more are wanted.

    Raises MediaError when it does not come back.
    """
    for attempt, pause_s in enumerate(pauses_s, start=1):
        device.notice = f"{device.name} was lost: reconnecting, attempt {attempt} of {len(pauses_s)}"
        device.close()  # before the pause: a camera that is still open cannot come back under its number
        if wait(pause_s):
            return None
        if (shown := reopened()) is not None:
            device.notice = ""
            device.num_reconnects += 1
            return shown
    raise MediaError(
        f"{device.name} was lost after {num_read} frames, and {len(pauses_s)} attempts over {sum(pauses_s):.0f} s to "
        "reconnect failed",
        cause="it was unplugged, or lost its power or network",
        fix="check its cable, power and network, then start pvc-live again",
    )


def _advice(address: Address) -> dict[str, str]:
    """The expected, cause and fix of an error, by kind of source."""
    if address.kind == "camera":
        cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        expected = f"a camera that is connected and free; cameras on this machine: {cameras}"
        cause = "it has another number, another program is using it, or your user may not read it"
        fix = "ls -l /dev/video*; without a camera: --source synthetic, or a video file"
    elif address.kind == "csi":
        expected = "a free CSI sensor with this number and mode, and a running nvargus-daemon, which serves it"
        cause = "the daemon hangs, or another program holds the sensor; or the connector is not configured for it, "
        cause += "which JetPack 6 and newer require for an IMX219 or IMX477; or its cable is loose"
        fix = "sudo systemctl restart nvargus-daemon; if that does not help, choose the sensor in sudo "
        fix += "/opt/nvidia/jetson-io/jetson-io.py and restart; then test it alone: gst-launch-1.0 nvarguscamerasrc "
        fix += "num-buffers=30 ! fakesink"
    else:
        expected = "a GStreamer pipeline that ends in appsink"
        cause = "the pipeline is wrong, or one of its elements is not installed"
        fix = "run the pipeline alone, with fakesink instead of appsink: gst-launch-1.0 PIPELINE"
    return {"expected": expected, "cause": cause, "fix": fix}


def _rate(fps: float) -> float | None:
    """The stated rate, or None: cameras report 0, -1 or nan when they do not know it."""
    return fps if math.isfinite(fps) and 0.01 <= fps <= 1000 else None
