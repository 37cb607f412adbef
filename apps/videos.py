"""A file or a network stream as a device: frames with their timestamps, from the reader of `pvc-export run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engines.errors import MediaError
from engines.terminal import did_you_mean
from engines.video import Damage, DecodedFrame, VideoReader

from .addresses import Address
from .devices import RETRY_PAUSES_S, Wait, came_back
from .synthetic import SYNTHETIC, Shown


class VideoDevice:
    """A video that ends and waits for its reader, or a network stream that reconnects after a loss."""

    def __init__(
        self,
        address: Address,
        *,
        wait: Wait,
        fps: float | None = None,
        pauses_s: Sequence[float] = RETRY_PAUSES_S,
        opener: Callable[[Address, float | None], VideoReader] | None = None,
    ) -> None:
        """Open it and read the first frame. `fps` is for raw streams; `pauses_s` as in CaptureDevice.

        Raises MediaError, and BackendUnavailable without PyAV.
        """
        if address.kind == "file":
            _check_spelling(address)
        self._address, self._wait, self._pauses_s, self._fps = address, wait, tuple(pauses_s), fps
        self._opener = opener or open_reader
        self.name, self.notice, self.num_reconnects = address.name, "", 0
        self._num_read, self._started_s = 0, 0.0
        self._first: Shown | None = None
        self._open()

    @property
    def damage(self) -> Damage | None:
        return self._reader.damage

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self._reader.codec

    def read(self) -> Shown | None:
        shown, self._first = self._first, None
        if shown is None:
            try:
                shown = self._next()
            except MediaError:
                if self.waits:
                    raise
        if shown is None and self.waits:
            self.notice = f"{self.name}: {self.damage}" if self.damage else ""
            return None
        if shown is None:
            shown = came_back(self, self._reopened, wait=self._wait, pauses_s=self._pauses_s, num_read=self._num_read)
        self._num_read += 1
        return shown

    def close(self) -> None:
        self._reader.close()

    def _open(self) -> None:
        self._reader = self._opener(self._address, self._fps)
        try:
            self.fps, self.waits = self._reader.smooth_fps, self._reader.has_end
            self._frames = self._reader.decoded()
            first = next(self._frames)
        except BaseException:
            self._reader.close()
            raise
        self._started_s = first.time_s
        self._first = _shown(first, 0.0 if self.waits else None)

    def _next(self) -> Shown | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        # A live stream uses the clock's time, which continues while the stream is lost.
        return _shown(frame, frame.time_s - self._started_s if self.waits else None)

    def _reopened(self) -> Shown | None:
        """The first frame after reopening; None if the stream is not back."""
        self._reader.close()
        try:
            self._open()
        except MediaError:
            return None
        shown, self._first = self._first, None
        return shown


def _shown(frame: DecodedFrame, time_s: float | None) -> Shown:
    return Shown(lambda: frame.picture().bgr, time_s=time_s)


def open_reader(address: Address, fps: float | None) -> VideoReader:
    return VideoReader(address.target, fps=fps)


def _check_spelling(address: Address) -> None:
    path = Path(address.target)
    if not path.exists() and did_you_mean(address.target, [SYNTHETIC], cutoff=0.7):
        raise MediaError(f"{path} does not exist", expected="a video file", fix=f"did you mean --source {SYNTHETIC}?")
