"""A browser's camera as a device: pictures sent by a page, one page at a time.

Note: a page may send anything. Data that is not a JPEG, is too large or arrives too fast is refused before decoding;
a picture that does not decode completely is refused too.
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

PATIENCE_S = 0.2  # without a picture, before checking whether one is still wanted
LATE_S = 3.0  # without a picture, before a notice is shown


class Refused(ValueError):
    """A picture or request was refused; the message is for its sender."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the pictures a page may send. longest_side is in pixels."""

    max_bytes: int = 512 * 1024
    longest_side: int = 1920
    fps: float = 15.0


class BrowserCamera:
    """Holds the newest picture between the page that sends it and the BrowserDevice that takes it. Thread-safe.

    changed  called when the sending page changes or stops, on the thread that caused it
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
        """The viewer whose camera is in use."""
        return self._owner

    @property
    def is_watched(self) -> bool:
        """True while a session uses it as its source."""
        return self._num_open > 0

    def claim(self, viewer: int) -> None:
        """Make this viewer the sender. Raises Refused while another viewer is."""
        with self._condition:
            if self._owner not in (None, viewer):
                raise Refused("another viewer's camera is in use")
            self._owner = viewer
        self.changed()

    def release(self, viewer: int) -> None:
        """Stop this viewer's sending; does nothing for any other viewer."""
        with self._condition:
            if self._owner != viewer:
                return
            self._owner = self._newest = None
        self.changed()

    def put(self, viewer: int, jpeg: bytes) -> None:
        """Store the newest picture. Raises Refused, with the reason, for one that is not accepted."""
        with self._condition:
            if self._owner != viewer:
                raise Refused("this page's camera is not the one in use")
            now = self._clock()
            if now - self._taken_at < 0.5 / self.limits.fps:  # a burst of two is harmless
                raise Refused(f"pictures arrive faster than {self.limits.fps:g} per second")
            self._taken_at = now
        frame = decode_jpeg(jpeg, self.limits)
        with self._condition:
            if self._owner == viewer:
                self._newest = frame
                self._condition.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """The next picture not taken yet; None if none arrived in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._newest is not None, timeout_s)
            newest, self._newest = self._newest, None
            return newest

    def opened(self) -> None:
        with self._condition:
            self._num_open += 1
        self.changed()

    def closed(self) -> None:
        """Note a closed device; after the last one, the sender is released."""
        with self._condition:
            self._num_open -= 1
            if self._num_open == 0:
                self._owner = self._newest = None
        self.changed()


class BrowserDevice:
    """A Device that waits for pages indefinitely: a closed page is a notice, not a lost source."""

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
                self.notice = f"{self.name}: no page is sending its camera"
            elif waited_s >= LATE_S:
                self.notice = f"{self.name}: no pictures are arriving from the page"

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._camera.closed()


def decode_jpeg(jpeg: bytes, limits: Limits) -> Frame:
    """Decode a JPEG to (H, W, 3) uint8 BGR. Raises Refused if it is not a JPEG, damaged, or over the limits."""
    if len(jpeg) > limits.max_bytes:
        raise Refused(f"the picture has {len(jpeg)} bytes; the limit is {limits.max_bytes}")
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise Refused("the picture is not a JPEG")
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if max(picture.size) > limits.longest_side:  # known from the header: nothing is decoded yet
                size = f"{picture.width} x {picture.height}"
                raise Refused(f"the picture has {size} pixels; the limit is {limits.longest_side} along each side")
            rgb = np.asarray(picture.convert("RGB"))
    except Refused:
        raise
    except Exception as error:  # for a hostile file, Pillow may raise almost anything
        raise Refused("the picture is a damaged JPEG") from error
    return np.ascontiguousarray(rgb[..., ::-1])
