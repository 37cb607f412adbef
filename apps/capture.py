"""Frames for a model that may be slower than the camera.

Note: the newest frame wins. A thread reads as fast as the source delivers and keeps one frame, so that a slow model
sees the present and never a growing backlog; missed frames are counted. A file is played by its timestamps, like a
camera, unless every frame is requested: then it waits for the model, nothing is dropped, and results repeat exactly.
The synthetic source plays at its own speed and also waits for the model: a question is about a whole scene, and a
model that missed part of the scene could not be graded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Condition, Event, Thread
from typing import Protocol

from engines.errors import MediaError
from engines.picture_sequences import is_picture_sequence
from engines.synthetic import Frame

from .addresses import Address
from .browser import BrowserCamera, BrowserDevice
from .devices import RETRY_PAUSES_S, CaptureDevice, Device
from .opencv import Capture
from .pictures import PictureDevice
from .streams import open_stream
from .synthetic import KnownScene, Shown, SyntheticDevice
from .videos import VideoDevice

STALL_S = 40.0  # longer than the 30 s OpenCV waits for a pipeline's frame, so that a reconnect is still possible


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Captured:
    """One frame: bgr (H, W, 3) uint8, owned by whoever holds it.

    index        counts the source's frames from 0; skipped numbers were dropped
    time_s       on the source's timeline: a file's timestamps, a camera's clock time
    captured_at  time.monotonic() when it was read; latency counts from here
    scene        the scene it belongs to; known only for the synthetic source
    """

    bgr: Frame
    index: int
    time_s: float
    captured_at: float
    scene: KnownScene | None = None


class Source(Protocol):
    """Frames, newest or next. `ended`: the last one was taken. `waits`: no frame is lost between two takes."""

    device: Device
    ended: bool
    waits: bool

    def take(self, timeout_s: float) -> Captured | None:
        """The next frame not taken yet; None if none arrived in time, or at the end. Raises MediaError when lost."""

    def close(self) -> None: ...


def open_source(
    address: Address,
    *,
    every_frame: bool = False,
    fps: float | None = None,
    factory: Callable[[Address], Capture] | None = None,
    pauses_s: Sequence[float] = RETRY_PAUSES_S,
    seed: int = 0,
    question: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    browser: BrowserCamera | None = None,
) -> Source:
    """Open a source and check that it delivers. Raises as CaptureDevice, VideoDevice, PictureDevice, SyntheticDevice.

    every_frame     for videos that end, pictures and the synthetic source; MediaError if the source turns out live
    fps             for raw streams, a folder of pictures, or a file name pattern
    seed, question  for the synthetic source
    say             receives notices about how the source was opened
    browser         where a page puts its camera's pictures; MediaError for 'browser' without a page
    """
    closing = Event()
    device: Device
    if address.kind == "synthetic":
        device = SyntheticDevice(seed=seed, question=question)
    elif address.kind == "browser":
        device = BrowserDevice(_page_of(browser), wait=closing.wait, name=address.name)
    elif address.kind == "file" and is_picture_sequence(address.target):
        device = PictureDevice(address, fps=fps)
    elif address.kind == "file":
        device = VideoDevice(address, wait=closing.wait, fps=fps, pauses_s=pauses_s)
    elif address.kind == "url":
        device = open_stream(address, wait=closing.wait, fps=fps, pauses_s=pauses_s, factory=factory, say=say)
    else:
        device = CaptureDevice(address, wait=closing.wait, factory=factory, pauses_s=pauses_s)
    if every_frame and not device.waits:
        device.close()
        raise MediaError(
            f"{device.name} is a live stream and does not wait for the model",
            expected="a video that ends, for --every-frame",
            fix="leave out --every-frame",
        )
    if every_frame or address.kind == "synthetic":
        return EveryFrame(device, paced=not every_frame)
    return NewestFrame(device, closing)


def _page_of(browser: BrowserCamera | None) -> BrowserCamera:
    if browser is None:
        raise MediaError(
            "--source browser needs a web page that sends its camera, and this session has no page",
            expected="a session with --web",
            fix="--web --source browser",
        )
    return browser


class EveryFrame:
    """Reads on request and drops nothing, for devices that wait. `paced`: never faster than the device's rate."""

    waits = True

    def __init__(self, device: Device, *, paced: bool) -> None:
        assert device.waits
        self.device, self.ended, self._num_taken = device, False, 0
        self._paced, self._period_s = paced, 1 / (device.fps or 1)
        self._due_at = 0.0  # by time.monotonic()
        self._hold_s, self._held_s = 0.0, 0.0  # hold time of the newest frame, and of all before it

    def take(self, timeout_s: float) -> Captured | None:
        if self._paced and not self._wait(timeout_s):
            return None
        started = time.monotonic()
        shown = None if self.ended else self.device.read()
        if shown is None:
            self.ended = True
            return None
        index = self._num_taken
        time_s = index * self._period_s + self._held_s if shown.time_s is None else shown.time_s
        self._num_taken += 1
        self._hold_s = 0.0 if shown.scene is None else shown.scene.hold_s
        self._held_s += self._hold_s
        self._due_at = started + self._period_s
        return Captured(bgr=shown.bgr, scene=shown.scene, index=index, time_s=time_s, captured_at=time.monotonic())

    def _wait(self, timeout_s: float) -> bool:
        """Wait until the next frame is due, at most timeout_s. Returns whether it is due."""
        now = time.monotonic()
        # The hold starts only now, after the frame was processed: a slow answer must stay readable too.
        self._due_at = max(self._due_at, now + self._hold_s) if self._hold_s else self._due_at
        self._hold_s = 0.0
        time.sleep(min(max(self._due_at - now, 0.0), timeout_s))
        return self._due_at - now <= timeout_s

    def close(self) -> None:
        self.device.close()


class NewestFrame:
    """A reader thread that keeps only the newest frame.

    A camera is read from the start, so that its buffers hold nothing old; a device that waits starts with `take`.
    """

    waits = False

    def __init__(self, device: Device, closing: Event) -> None:
        self.device, self.ended = device, False
        self._closing = closing
        self._changed = Condition()
        self._newest: tuple[Shown, int, float, float] | None = None  # with index, time_s and captured_at
        self._finished = False
        self._error: BaseException | None = None
        self._heard_at = time.monotonic()
        self._thread = Thread(target=self._read, name="camera", daemon=True)
        if not device.waits:
            self._thread.start()

    def take(self, timeout_s: float) -> Captured | None:
        if self._thread.ident is None:
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._finished, timeout_s)
            newest, self._newest = self._newest, None
            if newest is None and self._error is not None:
                raise self._error
            self.ended = newest is None and self._finished
            silent_s = time.monotonic() - self._heard_at
        if newest is not None:
            shown, index, time_s, captured_at = newest
            return Captured(bgr=shown.bgr, scene=shown.scene, index=index, time_s=time_s, captured_at=captured_at)
        if silent_s > STALL_S and not self.ended and not self.device.notice:
            raise MediaError(
                f"{self.device.name} has delivered no frame for {silent_s:.0f} s, and reported no error",
                cause="its driver or connection hangs",
                fix="unplug or restart it, then start pvc-live again",
            )
        return None

    def close(self) -> None:
        self._closing.set()
        if self._thread.ident is not None:
            # A hanging read is left until the process ends: releasing the camera during a read would crash.
            self._thread.join(timeout=2.0)
        else:
            self.device.close()

    def _read(self) -> None:
        try:
            self._read_all()
        except BaseException as error:  # raised again in `take`
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify()
            self.device.close()

    def _read_all(self) -> None:
        started = time.monotonic()
        for index in count():
            shown = self.device.read()
            if shown is None or self._closing.is_set():
                return
            # A video's frame is shown when it is due; a camera's is due on arrival.
            ahead_s = 0.0 if shown.time_s is None else started + shown.time_s - time.monotonic()
            if self._closing.wait(max(ahead_s, 0.0)):
                return
            now = time.monotonic()
            time_s = now - started if shown.time_s is None else shown.time_s
            with self._changed:
                self._newest = shown, index, time_s, now
                self._heard_at = now
                self._changed.notify()
