"""A browser's camera as a device: pictures that somebody's page sends, one page at a time.

Note: a page may send anything. What is no JPEG, too large or too fast is refused before it is decoded, and what does
not decode whole is refused as well.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition

import numpy as np
from PIL import Image

from engines.synthetic import Frame

from .devices import Wait
from .synthetic import Shown

PATIENCE_S = 0.2  # without a picture, until it is looked whether anybody still wants one
LATE_S = 3.0  # without a picture, until that is said


class Refused(ValueError):
    """A picture or a request that is not taken; the message is for whoever sent it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of the pictures that a page may send. longest_side in pixels."""

    max_bytes: int = 512 * 1024
    longest_side: int = 1920
    fps: float = 15.0


class BrowserCamera:
    """Where pages put their pictures, and a BrowserDevice takes the newest. Any thread may call.

    changed  is called when another page, or none, sends: on the thread that brought it about
    """

    def __init__(self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits or Limits(), clock
        self.changed: Callable[[], None] = lambda: None
        self._condition = Condition()
        self._owner: int | None = None
        self._newest: Frame | None = None
        self._taken_at = float("-inf")
        self._num_open = 0

    @property
    def owner(self) -> int | None:
        """The viewer whose camera it is now."""
        return self._owner

    @property
    def is_watched(self) -> bool:
        """A session has it as its source."""
        return self._num_open > 0

    def claim(self, viewer: int) -> None:
        """From now on this viewer sends. Raises Refused while another does."""
        with self._condition:
            if self._owner not in (None, viewer):
                raise Refused("another viewer's camera is in use")
            self._owner = viewer
        self.changed()

    def release(self, viewer: int) -> None:
        """It sends no more; of any other viewer this changes nothing."""
        with self._condition:
            if self._owner != viewer:
                return
            self._owner = self._newest = None
        self.changed()

    def put(self, viewer: int, jpeg: bytes) -> None:
        """The newest picture. Raises Refused for one that is not taken, and says why."""
        with self._condition:
            if self._owner != viewer:
                raise Refused("this camera is not the one that is watched")
            now = self._clock()
            if now - self._taken_at < 0.5 / self.limits.fps:  # a burst of two is no harm
                raise Refused(f"pictures come faster than {self.limits.fps:g} per second")
            self._taken_at = now
        frame = decode_jpeg(jpeg, self.limits)
        with self._condition:
            if self._owner == viewer:
                self._newest = frame
                self._condition.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """A picture that was not taken before; None if none came in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._newest is not None, timeout_s)
            newest, self._newest = self._newest, None
            return newest

    def opened(self) -> None:
        with self._condition:
            self._num_open += 1
        self.changed()

    def closed(self) -> None:
        """When the last device is closed, whoever sends may stop."""
        with self._condition:
            self._num_open -= 1
            if self._num_open == 0:
                self._owner = self._newest = None
        self.changed()


class BrowserDevice:
    """A Device that waits for pages without an end: a page that closes is a notice, and no loss."""

    waits, damage = False, None
    fps: float | None = None

    def __init__(self, camera: BrowserCamera, *, wait: Wait, name: str) -> None:
        self.name, self.notice, self.num_reconnects = name, "", 0
        self._camera, self._wait = camera, wait
        self._is_open, self._num_read = True, 0
        camera.opened()

    def read(self) -> Shown | None:
        waited_s = 0.0
        while True:
            frame = self._camera.take(PATIENCE_S)
            if frame is not None:
                self.num_reconnects += bool(self.notice) and self._num_read > 0
                self._num_read, self.notice = self._num_read + 1, ""
                return Shown(frame)
            if self._wait(0.0):
                return None
            waited_s += PATIENCE_S
            if self._camera.owner is None:
                self.notice = f"{self.name}: no page sends its camera"
            elif waited_s >= LATE_S:
                self.notice = f"{self.name}: no picture comes from the page"

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._camera.closed()


def decode_jpeg(jpeg: bytes, limits: Limits) -> Frame:
    """A JPEG as (H, W, 3) uint8 BGR. Raises Refused for what is none, is damaged, or is larger than the limits."""
    if len(jpeg) > limits.max_bytes:
        raise Refused(f"the picture has {len(jpeg)} bytes; at most {limits.max_bytes} are taken")
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise Refused("the picture is no JPEG")
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if max(picture.size) > limits.longest_side:  # known from the header: nothing was decoded yet
                size = f"{picture.width} x {picture.height}"
                raise Refused(f"the picture has {size} pixels; at most {limits.longest_side} are taken along each side")
            rgb = np.asarray(picture.convert("RGB"))
    except Refused:
        raise
    except Exception as error:  # of a hostile file, Pillow raises about anything
        raise Refused("the picture is a damaged JPEG") from error
    return np.ascontiguousarray(rgb[..., ::-1])
