"""JPEG compression of the newest frame, once for all viewers, on a separate thread at a limited rate."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from threading import Condition, Thread

from PIL import Image

from engines.synthetic import Frame


class Pictures:
    """Compresses frames. `offer` never waits. While `is_wanted` is false, nothing is compressed."""

    def __init__(
        self, deliver: Callable[[bytes], None], is_wanted: Callable[[], bool], *, fps: float, width: int, quality: int
    ) -> None:
        """deliver is called on the thread, with a JPEG at most `width` pixels wide."""
        self._deliver, self._is_wanted = deliver, is_wanted
        self._period_s, self._width, self._quality = 1 / fps, width, quality
        self._changed = Condition()
        self._newest: Frame | None = None
        self._is_news = self._closing = False
        self.num_compressed = 0
        self._thread = Thread(target=self._run, name="page-pictures", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame) -> None:
        """Offer a frame (H, W, 3) uint8 BGR, which must not be modified afterwards."""
        with self._changed:
            self._newest, self._is_news = frame, True
            self._changed.notify()

    def again(self) -> None:
        """Deliver the newest frame again, for a viewer that just joined."""
        with self._changed:
            self._is_news = self._newest is not None
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._is_news and self._is_wanted()))
                if self._closing:
                    return
                frame, self._is_news = self._newest, False
            assert frame is not None
            started = time.monotonic()
            self._deliver(to_jpeg(frame, width=self._width, quality=self._quality))
            self.num_compressed += 1
            with self._changed:
                rest_s = started + self._period_s - time.monotonic()
                self._changed.wait_for(lambda: self._closing, max(rest_s, 0.0))


def to_jpeg(frame: Frame, *, width: int, quality: int) -> bytes:
    """Compress a frame (H, W, 3) uint8 BGR; scaled down if its longer side exceeds `width`."""
    picture = Image.fromarray(frame[..., ::-1])
    largest = max(picture.size)
    if largest > width:
        size = (max(1, picture.width * width // largest), max(1, picture.height * width // largest))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()
