"""A camera that does what a test says: delivers, fails, vanishes, comes back."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event

import numpy as np

from apps.devices import FPS, FRAME_COUNT, Address
from engines.synthetic import Frame


def picture(value: int, *, height: int = 48, width: int = 64) -> Frame:
    """Grey 8 * value, so that a frame's mean says which one it is."""
    return np.full((height, width, 3), 8 * value, np.uint8)


class FakeCapture:
    """cv2.VideoCapture's methods over a list of frames, None being a read that fails. It fails for good at its end.

    With `gate`, a read behind the last frame sets `is_empty` and waits for the gate to open.
    """

    def __init__(
        self,
        frames: Iterable[Frame | None] = (),
        *,
        opens: bool = True,
        fps: float = 30.0,
        num_frames: float = -1.0,
        gate: Event | None = None,
    ) -> None:
        self.frames, self.opens, self.properties = list(frames), opens, {FPS: fps, FRAME_COUNT: num_frames}
        self.gate, self.is_empty, self.is_released = gate, Event(), False

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def read(self) -> tuple[bool, Frame | None]:
        assert not self.is_released
        if not self.frames:
            self.is_empty.set()
            if self.gate is not None:
                assert self.gate.wait(20)
            return False, None
        frame = self.frames.pop(0)
        return frame is not None, frame

    def get(self, prop: int) -> float:
        return self.properties[prop]

    def release(self) -> None:
        self.is_released = True


class FakeFactory:
    """Hands out one capture for each opening, in order."""

    def __init__(self, *captures: FakeCapture) -> None:
        self.captures, self.num_opened = captures, 0

    def __call__(self, address: Address) -> FakeCapture:
        self.num_opened += 1
        return self.captures[self.num_opened - 1]
