"""One reader for every video that is a file or an address: frames in display order, by index, or by time.

Note: a damaged video is read as far as it goes. What is missing is in `damage`, for whoever reads to say.
Frames are (H, W, 3) uint8 BGR, as picture.py makes them. A frame index counts the frames that are shown, from 0.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MediaError
from engines.preprocess import segment_indices

from .damage import Damage, Tally, hides_frame, middle_times
from .picture import Deinterlacer, display_matrix, to_bgr
from .source import NOT_WHOLE, Opened, check_is_file, import_av, is_url, no_frame_rate, no_video, open_source

CUT_AT_ONCE = "a recording that was stopped at once or cut short"
MAX_JUMP_S = 10.0
"""Where timestamps may jump (MPEG-TS), more is another recording behind the first. FFmpeg's dts_delta_threshold."""
TIMESTAMPS_JUMP = 0x0200  # AVFMT_TS_DISCONT
STATED_DURATION = ("matroska", "mov", "avi", "flv", "asf")
"""Formats whose header says how long they are; of others FFmpeg estimates it."""
MAX_RATE = 60.0  # above it, FFmpeg's guess is the clock of the timestamps


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video holds.

    width, height  pixels of the frames as read_video yields them, upright
    num_frames     counted packets, not the header's number: that is absent in mkv, webm and ts, and counts frames
                   an edit list hides. A recording cut before its first key frame is decoded to count what it shows
    fps            average frames per second
    duration_s     as the file states it, else num_frames / fps
    start_s        time of the first frame, by the file's timestamps
    span_s         seconds from the first frame to the end of the last
    """

    path: str | Path
    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    start_s: float = field(default=0.0, compare=False)
    span_s: float = field(default=0.0, compare=False)

    def sample_times(self, num_segments: int) -> list[float]:
        """One time near the middle of each of num_segments equal parts of the video, for VideoReader.shown_at.

        At a constant frame rate they show the frames of segment_indices, which is InternVL2's rule; at a variable one
        the parts are equal in time and not in frames.
        """
        indices = segment_indices(self.num_frames, num_segments)
        return middle_times(self.start_s, self.span_s, self.num_frames, indices)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoFrame:
    """One decoded frame. bgr: (H, W, 3) uint8, owned by whoever holds it. time_s: the file's own timestamp."""

    frame_index: int
    time_s: float
    bgr: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """A frame before its pixels are converted, which costs more than to decode it. `facts` is the decoder's own."""

    frame_index: int
    time_s: float
    facts: Any
    pixels: Any

    def picture(self) -> VideoFrame:
        bgr = to_bgr(self.pixels, display_matrix(self.facts))
        return VideoFrame(frame_index=self.frame_index, time_s=self.time_s, bgr=bgr)


class VideoReader:
    """One pass over a video. `frames`, `at` or `shown_at` may be called once; then `damage` says what was wrong.

    name     of the source, without a password
    fps      average frames per second, as stated; None if not
    has_end  false for a live stream
    """

    def __init__(self, source: str | Path, *, fps: float | None = None) -> None:
        """`fps` is for raw streams. Raises MediaError as open_source does, BackendUnavailable without PyAV."""
        self._opened: Opened = open_source(source, fps=fps)
        self.name, self.fps, self._is_url = self._opened.name, self._opened.fps, is_url(source)
        container, stream = self._opened.container, self._opened.stream
        self.has_end = not self._is_url or bool(container.duration)
        self._tally = Tally(codec=stream.codec_context.codec.name)
        if container.format.name.startswith(STATED_DURATION) and container.duration:
            self._tally.stated_end_s = container.duration / 1e6
        if container.format.name.startswith("mov") and len(stream.index_entries):
            self._tally.num_indexed = len(stream.index_entries)
        elif stream.frames:
            self._tally.num_stated = stream.frames
        # AVI has no display times, and its packets' times are in decoding order.
        self._is_unordered = container.format.name == "avi"

    @property
    def smooth_fps(self) -> float | None:
        """A constant rate that shows every frame: of a variable one the highest, where FFmpeg found one."""
        guessed = float(self._opened.stream.guessed_rate or 0)
        return max(self.fps, guessed) if self.fps and guessed <= MAX_RATE else self.fps

    @property
    def damage(self) -> Damage | None:
        """What was wrong with what was read so far; None if nothing."""
        return self._tally.damage()

    def frames(self) -> Iterator[VideoFrame]:
        """All frames. Raises MediaError if there is none, and for a network stream that breaks off."""
        for shown in self._shown():
            yield shown.picture()

    def at(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames at indices that never decrease, one that repeats as often as it is given; then no more is read.

        Raises MediaError as `frames` does, and for an index past the end.
        """
        if not indices:
            return
        repeats, num_shown = Counter(indices), 0
        for shown in self._shown():
            num_shown += 1
            # A fresh array per repeat, so that no two frames share memory.
            for _ in range(repeats[shown.frame_index]):
                yield shown.picture()
            if shown.frame_index == indices[-1]:
                return
        raise MediaError(
            f"frame {indices[-1]} of {self.name} was asked for and the file ends after {num_shown} frames (0 to "
            f"{num_shown - 1})",
            cause="the indices are of another video, or this one is damaged",
            fix=f"ffprobe {self.name}",
        )

    def shown_at(self, times_s: Sequence[float]) -> Iterator[VideoFrame]:
        """What is on the screen at times that never decrease: the newest frame up to each, or the first one.

        Reads to the end, so that `damage` is of the whole video. Raises as `frames` does.
        """
        waiting, before = list(reversed(times_s)), None
        for shown in self._shown():
            while before is not None and waiting and waiting[-1] < shown.time_s:
                yield before.picture()
                waiting.pop()
            before = shown
        while waiting and before is not None:
            yield before.picture()
            waiting.pop()

    def probe(self) -> VideoInfo:
        """Facts, in a pass that decodes only as far as the first frame."""
        first_frame: Any = None
        starts_whole: bool | None = None
        for packet in self._packets():
            starts_whole = packet.is_keyframe if starts_whole is None else starts_whole
            if first_frame is None:
                first_frame = next(iter(self._decode(packet)), None)
        if first_frame is None:
            first_frame = next(iter(self._flush()), None)
        if first_frame is None:
            raise self._nothing()
        if self.fps is None:
            raise no_frame_rate(self.name)
        tally, stream = self._tally, self._opened.stream
        num_frames, period_s = tally.num_packets, 1 / self.fps
        times_s = sorted(tally.times_s)
        span_s = times_s[-1] - times_s[0] + (tally.period_s() or self._last_s or period_s)
        duration_s = num_frames / self.fps
        if not self._opened.is_raw and (stream.duration or self._opened.container.duration):
            stated = stream.duration and stream.duration * stream.time_base
            duration_s = float(stated or self._opened.container.duration / 1e6)
        height, width, _ = to_bgr(first_frame).shape
        info = VideoInfo(
            path=self.name if self._is_url else Path(self.name), width=width, height=height, num_frames=num_frames,
            fps=self.fps, duration_s=duration_s, start_s=times_s[0], span_s=span_s,
        )  # fmt: skip
        self.starts_whole = bool(starts_whole)
        return info

    def close(self) -> None:
        self._opened.container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shown(self) -> Iterator[_Shown]:
        """Progressive frames in order, each at a time that is not before the one it follows."""
        if self.fps is None and self._opened.is_raw:
            raise no_frame_rate(self.name)
        deinterlacer, index = Deinterlacer(), 0
        waiting: list[float] = []
        last_s, clock = -math.inf, self._clock()

        def timed(pairs: list[tuple[Any, Any]]) -> Iterator[_Shown]:
            nonlocal index
            for facts, pixels in pairs:
                yield _Shown(frame_index=index, time_s=waiting.pop(0), facts=facts, pixels=pixels)
                index += 1

        for frame in self._decoded():
            time_s = clock(frame, last_s)
            if time_s < last_s:  # a decoder that lost a reference hands out frames in a wrong order
                self._tally.num_late += 1
                continue
            last_s = time_s
            waiting.append(time_s)
            yield from timed(deinterlacer.push(frame))
        yield from timed(deinterlacer.flush())
        if index == 0:
            raise self._nothing()

    def _clock(self) -> Any:
        """A function of a decoded frame and the time of the one before it."""
        period_s = 1 / self.fps if self.fps else 0.04
        num = -1

        def clock(frame: Any, last_s: float) -> float:
            nonlocal num
            num += 1
            if self._opened.is_raw:
                return num * period_s
            if self._is_unordered and self._decoding_times:
                return heapq.heappop(self._decoding_times)
            if frame.pts is None:
                return max(last_s, -period_s) + period_s
            return float(frame.pts * self._opened.stream.time_base)

        return clock

    def _decoded(self) -> Iterator[Any]:
        for packet in self._packets():
            yield from self._count(self._decode(packet))
        yield from self._count(self._flush())

    def _count(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            self._tally.num_decoded += 1
            self._tally.num_faulty += bool(frame.is_corrupt)
            self._tally.has_fields |= bool(frame.interlaced_frame)
            yield frame

    def _decode(self, packet: Any) -> list[Any]:
        av = import_av()
        try:
            return list(packet.decode())
        except av.error.FFmpegError as error:
            self._tally.complain(error.strerror)
            return []

    def _flush(self) -> list[Any]:
        av = import_av()
        try:
            return list(self._opened.stream.codec_context.decode(None))
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            self._tally.complain(error.strerror)
            return []

    def _packets(self) -> Iterator[Any]:
        """The video's packets, counted; jumps of the timestamps are taken out. Sound is only asked when it ends."""
        tally, stream = self._tally, self._opened.stream
        may_jump = bool(int(self._opened.container.format.flags) & TIMESTAMPS_JUMP)
        self._decoding_times: list[float] = []
        self._last_s, self._shift, self._previous_dts = 0.0, 0, None
        for packet in self._demuxed():
            if not packet.size:
                continue
            base = float(packet.time_base)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                tally.end_s = max(tally.end_s, (stamp + (packet.duration or 0)) * base)
            if packet.stream_index != stream.index:
                continue
            if may_jump:
                self._take_out_jump(packet)
            self._note(packet, base)
            yield packet

    def _note(self, packet: Any, base: float) -> None:
        tally = self._tally
        if packet.is_corrupt:
            tally.complain("a packet is incomplete")
        if packet.is_discard:  # hidden by an edit list
            tally.num_hidden += 1
            return
        if hides_frame(tally.codec, packet):
            return
        stamp = packet.dts if packet.pts is None or self._is_unordered else packet.pts
        time_s = tally.num_packets / (self.fps or 25) if self._opened.is_raw or stamp is None else stamp * base
        tally.num_packets += 1
        if self._is_unordered:
            heapq.heappush(self._decoding_times, time_s)
        if self.has_end:  # an endless stream must not grow
            if not tally.times_s or time_s >= max(tally.times_s[-1], time_s):
                self._last_s = (packet.duration or 0) * base
            tally.times_s.append(time_s)

    def _take_out_jump(self, packet: Any) -> None:
        if packet.dts is None:
            return
        dts = packet.dts + self._shift
        previous = self._previous_dts
        limit = MAX_JUMP_S / float(packet.time_base)
        # Decoding times only grow, so a step back is a new beginning, however small.
        if previous is not None and not previous <= dts <= previous + limit:
            self._shift += previous + (packet.duration or 0) - dts
            dts = packet.dts + self._shift
        self._previous_dts = dts
        if self._shift:
            packet.dts = dts
            packet.pts = None if packet.pts is None else packet.pts + self._shift

    def _demuxed(self) -> Iterator[Any]:
        av = import_av()
        try:
            yield from self._opened.container.demux()
        except av.error.FFmpegError as error:
            if not self.has_end:
                raise MediaError(
                    f"{self.name} broke off: {error.strerror}",
                    expected="a packet every few seconds",
                    cause="its power or network is gone",
                    fix=f"ffprobe {self.name}",
                ) from error
            self._tally.complain(error.strerror)

    def _nothing(self) -> MediaError:
        if self._tally.complaint:
            return no_video(self.name, f"cannot be read as a video: {self._tally.complaint}", cause=NOT_WHOLE)
        return no_video(self.name, "holds no frame that can be decoded", cause=CUT_AT_ONCE)


def probe_video(source: str | Path, *, fps: float | None = None) -> VideoInfo:
    """Facts of a video file, or of one at an address. Reads all of it but decodes only its first frame.

    Raises MediaError if it cannot be read as a video, BackendUnavailable without PyAV.
    """
    with VideoReader(source, fps=fps) as reader:
        info = reader.probe()
        starts_whole = reader.starts_whole
    if starts_whole:
        return info
    # A dashcam's segment: the frames before its first key frame cannot be decoded.
    with VideoReader(source, fps=fps) as reader:
        times_s = [shown.time_s for shown in reader._shown()]
    period_s = 1 / info.fps
    return VideoInfo(
        path=info.path, width=info.width, height=info.height, num_frames=len(times_s), fps=info.fps,
        duration_s=info.duration_s, start_s=times_s[0], span_s=times_s[-1] - times_s[0] + period_s,
    )  # fmt: skip


def read_video(
    source: str | Path, *, indices: Sequence[int] | None = None, fps: float | None = None
) -> Iterator[VideoFrame]:
    """Frames of a video in order: all of them, or those at `indices`, an index that repeats as often as it is given.

    Decodes from the start and stops after the last index. Bad indices (negative or decreasing) and a path that is
    no file raise MediaError at once; what cannot be decoded, or an index past its end, when the reading gets there.
    Raises BackendUnavailable without PyAV.
    """
    import_av()
    if not is_url(source):
        check_is_file(Path(source))
    wanted = None if indices is None else [int(index) for index in indices]
    if wanted is not None and (any(index < 0 for index in wanted) or wanted != sorted(wanted)):
        raise MediaError(
            f"the frame indices {_shorten(wanted)} cannot be read from {source}, which is decoded forwards",
            expected="0 or more, never decreasing",
            fix="sort the indices",
        )
    return _read(source, wanted, fps)


def _read(source: str | Path, wanted: list[int] | None, fps: float | None) -> Iterator[VideoFrame]:
    with VideoReader(source, fps=fps) as reader:
        yield from reader.frames() if wanted is None else reader.at(wanted)


def _shorten(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{str(numbers[:8])[:-1]}, ...]"
