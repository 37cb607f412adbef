"""Reader for every video, a file or an address: frames in display order, by index, or by time.

Note: a damaged video is read as far as possible; `damage` lists what is missing, for the caller to report.
Frames are (H, W, 3) uint8 BGR, as picture.py makes them. A frame index counts displayed frames, from 0.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MediaError

from .damage import Damage
from .packets import Packets
from .picture import Deinterlacer, display_matrix, to_bgr
from .source import check_is_file, import_av, is_url, no_frame_rate

MAX_LATE = 16  # frames that H.264 and HEVC may delay to put them in order
MAX_RATE = 60.0  # above it, FFmpeg's guess is the timestamps' clock rate


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoFrame:
    """One decoded frame. bgr: (H, W, 3) uint8, owned by the caller. time_s: the file's timestamp."""

    frame_index: int
    time_s: float
    bgr: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedFrame:
    """A frame before colour conversion, which costs more than decoding. `facts` is the frame from the decoder."""

    frame_index: int
    time_s: float
    facts: Any
    pixels: Any

    def picture(self) -> VideoFrame:
        bgr = to_bgr(self.pixels, display_matrix(self.facts))
        return VideoFrame(frame_index=self.frame_index, time_s=self.time_s, bgr=bgr)


class VideoReader:
    """One pass over a video: call `frames`, `decoded`, `at` or `shown_at` once; then `damage` describes what was wrong.

    name        of the source, without a password
    codec       FFmpeg's name of the codec
    fps         average frames per second, as stated; None if not stated
    smooth_fps  a constant rate that shows every frame; for a variable rate the highest, if FFmpeg found one
    has_end     false for a live stream
    """

    def __init__(self, source: str | Path, *, fps: float | None = None) -> None:
        """`fps` is for raw streams. Raises MediaError as open_source does, BackendUnavailable without PyAV."""
        self._packets = Packets(source, fps=fps)
        opened = self._packets.opened
        self.name, self.fps, self.has_end = opened.name, opened.fps, self._packets.has_end
        self.codec = self._packets.tally.codec
        # Read now: on a closed container, PyAV would crash.
        guessed = 0.0 if opened.is_raw else float(opened.stream.guessed_rate or 0)
        self.smooth_fps = max(self.fps, guessed) if self.fps and guessed <= MAX_RATE else self.fps

    @property
    def damage(self) -> Damage | None:
        """Damage in what was read so far; None if there is none."""
        return self._packets.tally.damage()

    def frames(self) -> Iterator[VideoFrame]:
        """Yield all frames. Raises MediaError if there is none, and if a network stream breaks off."""
        for shown in self.decoded():
            yield shown.picture()

    def at(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """Yield the frames at non-decreasing indices, repeating a frame for a repeated index, then stop reading.

        Raises MediaError as `frames` does, and for an index past the end.
        """
        if not indices:
            return
        repeats, num_shown = Counter(indices), 0
        for shown in self.decoded():
            num_shown += 1
            # A new array per repeat, so that no two frames share memory.
            for _ in range(repeats[shown.frame_index]):
                yield shown.picture()
            if shown.frame_index == indices[-1]:
                return
        raise MediaError(
            f"{self.name} has no frame {indices[-1]}: the file ends after {num_shown} frames (0 to {num_shown - 1})",
            cause="the indices belong to another video, or this one is damaged",
            fix=f"ffprobe {self.name}",
        )

    def shown_at(self, times_s: Sequence[float]) -> Iterator[VideoFrame]:
        """Yield the frame displayed at each time, in non-decreasing order: the newest one by then, or the first frame.

        Reads to the end, so that `damage` covers the whole video. Raises what `frames` raises.
        """
        waiting, before = list(reversed(times_s)), None
        for shown in self.decoded():
            while before is not None and waiting and waiting[-1] < shown.time_s:
                yield before.picture()
                waiting.pop()
            before = shown
        while waiting and before is not None:
            yield before.picture()
            waiting.pop()

    def times(self) -> Iterator[float]:
        """The times of all frames, without decoding pictures to BGR. Raises what `frames` raises."""
        for shown in self.decoded():
            yield shown.time_s

    def close(self) -> None:
        self._packets.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decoded(self) -> Iterator[DecodedFrame]:
        """Yield all frames before colour conversion, at non-decreasing times.

        For callers that drop some. Raises what `frames` raises.
        """
        if self.fps is None and self._packets.opened.is_raw:
            raise no_frame_rate(self.name)
        deinterlacer, index = Deinterlacer(), 0
        waiting: list[float] = []

        def timed(pairs: list[tuple[Any, Any]]) -> Iterator[DecodedFrame]:
            nonlocal index
            for facts, pixels in pairs:
                yield DecodedFrame(frame_index=index, time_s=waiting.pop(0), facts=facts, pixels=pixels)
                index += 1

        for frame, time_s in self._timed():
            waiting.append(time_s)
            yield from timed(deinterlacer.push(frame))
        yield from timed(deinterlacer.flush())
        if index == 0:
            raise self._packets.no_frame()

    def _timed(self) -> Iterator[tuple[Any, float]]:
        """Decoded frames and their times, which never decrease."""
        last_s, shift_s, num_late = -math.inf, 0.0, 0
        for number, frame in enumerate(self._decoded_frames()):
            time_s = self._time_s(frame, number, last_s - shift_s) + shift_s
            # A decoder that lost a reference outputs a few frames in a wrong order. More than a few mean that the clock
            # was set back; and in a live stream every frame is current.
            if time_s < last_s and self.has_end and num_late < MAX_LATE:
                num_late += 1
                self._packets.tally.num_late += 1
                continue
            if time_s < last_s:
                shift_s += last_s + 1 / (self.fps or 25) - time_s
                time_s = last_s + 1 / (self.fps or 25)
            last_s, num_late = time_s, 0
            yield frame, time_s

    def _time_s(self, frame: Any, number: int, last_s: float) -> float:
        opened, period_s = self._packets.opened, 1 / (self.fps or 25)
        if opened.is_raw:
            return number * period_s
        if self._packets.is_avi and self._packets.decoding_times:
            return heapq.heappop(self._packets.decoding_times)
        if frame.pts is None:
            return last_s + period_s if number else 0.0
        return float(frame.pts * opened.stream.time_base)

    def _decoded_frames(self) -> Iterator[Any]:
        for packet in self._packets:
            yield from self._packets.decode(packet)
        yield from self._packets.decode(None)
        self._packets.tally.is_complete = True


def read_video(
    source: str | Path, *, indices: Sequence[int] | None = None, fps: float | None = None
) -> Iterator[VideoFrame]:
    """Yield frames of a video in order: all, or those at `indices`; a repeated index repeats the frame.

    Decodes from the start and stops after the last index. Invalid indices (negative or decreasing) and a path that is
    not a file raise MediaError immediately; undecodable data, or an index past the end, raise it when reading gets
    there. Raises BackendUnavailable without PyAV.
    """
    import_av()
    if not is_url(source):
        check_is_file(Path(source))
    wanted = None if indices is None else [int(index) for index in indices]
    if wanted is not None and (any(index < 0 for index in wanted) or wanted != sorted(wanted)):
        raise MediaError(
            f"the frame indices {_shorten(wanted)} cannot be read from {source}, which is decoded forwards only",
            expected="indices of 0 or more that never decrease",
            fix="sort the indices",
        )
    return _read(source, wanted, fps)


def _read(source: str | Path, wanted: list[int] | None, fps: float | None) -> Iterator[VideoFrame]:
    with VideoReader(source, fps=fps) as reader:
        yield from reader.frames() if wanted is None else reader.at(wanted)


def _shorten(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{str(numbers[:8])[:-1]}, ...]"
