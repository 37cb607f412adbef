"""The packets of a source's video stream: counted, put on one timeline and decoded, tolerating damaged ones."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.errors import MediaError

from .damage import Tally, hides_frame
from .source import NOT_WHOLE, import_av, is_url, no_video, open_source

CUT_AT_ONCE = "the recording was stopped immediately or is truncated"
MAX_JUMP_S = 10.0
"""In formats whose timestamps may jump (MPEG-TS), a larger jump is a new recording. FFmpeg's dts_delta_threshold."""
TIMESTAMPS_JUMP = 0x0200  # AVFMT_TS_DISCONT
STATED_DURATION = ("matroska", "mov", "avi", "flv", "asf")
"""Formats whose header states the duration; for others FFmpeg estimates it."""


class Packets:
    """An open source. Iterate once; `tally` counts on the way.

    has_end         false for a live stream
    decoding_times  for AVI, which has no display times: a heap; each decoded frame takes the smallest
    last_s          how long the last frame is shown; 0 if unknown
    """

    def __init__(self, source: str | Path, *, fps: float | None = None) -> None:
        """`fps` is for raw streams. Raises what open_source raises."""
        self.opened = open_source(source, fps=fps)
        container, stream = self.opened.container, self.opened.stream
        self.has_end = not is_url(source) or bool(container.duration)
        self.tally = Tally(codec=stream.codec_context.codec.name)
        if container.format.name.startswith(STATED_DURATION) and container.duration:
            self.tally.stated_end_s = container.duration / 1e6
        if container.format.name.startswith("mov") and len(stream.index_entries):
            self.tally.num_indexed = len(stream.index_entries)
        elif stream.frames:
            self.tally.num_stated = stream.frames
        self.is_avi = container.format.name == "avi"
        self.decoding_times: list[float] = []
        self.last_s = 0.0
        self._may_jump = bool(int(container.format.flags) & TIMESTAMPS_JUMP)
        self._shift, self._previous_dts = 0, None

    def __iter__(self) -> Iterator[Any]:
        """Yield non-empty packets. Raises MediaError if a live stream breaks off."""
        tally = self.tally
        # Sound packets too: they show where the file ends.
        for packet in self._demuxed():
            if not packet.size:
                continue
            base = float(packet.time_base)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                tally.end_s = max(tally.end_s, (stamp + (packet.duration or 0)) * base)
            if packet.stream_index == self.opened.stream.index:
                if self._may_jump:
                    self._take_out_jump(packet)
                self._count(packet, base)
                yield packet

    def decode(self, packet: Any) -> list[Any]:
        """The frames a packet completes, or for None the remaining ones; empty if the decoder rejects the packet."""
        av = import_av()
        try:
            frames = list(self.opened.stream.codec_context.decode(packet) if packet is None else packet.decode())
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            self.tally.complain(error.strerror)
            return []
        for frame in frames:
            self.tally.num_decoded += 1
            self.tally.num_faulty += bool(frame.is_corrupt)
            self.tally.has_fields |= bool(frame.interlaced_frame)
        return frames

    def no_frame(self) -> MediaError:
        """The error for a source of which nothing could be decoded."""
        name = self.opened.name
        if self.tally.complaint:
            return no_video(name, f"cannot be read as a video: {self.tally.complaint}", cause=NOT_WHOLE)
        return no_video(name, "contains no frame that can be decoded", cause=CUT_AT_ONCE)

    def close(self) -> None:
        self.opened.container.close()

    def __enter__(self) -> Packets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _demuxed(self) -> Iterator[Any]:
        av = import_av()
        try:
            yield from self.opened.container.demux()
        except av.error.FFmpegError as error:
            if not self.has_end:
                raise MediaError(
                    f"{self.opened.name} broke off: {error.strerror}",
                    expected="a packet every few seconds",
                    cause="the camera lost its power or network",
                    fix=f"ffprobe {self.opened.name}",
                ) from error
            self.tally.complain(error.strerror)

    def _count(self, packet: Any, base: float) -> None:
        tally = self.tally
        if packet.is_corrupt:
            tally.doubt = "a packet is incomplete"
        if packet.is_discard:  # hidden by an edit list
            tally.num_hidden += 1
            return
        if hides_frame(tally.codec, packet):
            return
        stamp = packet.dts if packet.pts is None or self.is_avi else packet.pts
        is_counted = self.opened.is_raw or stamp is None
        time_s = tally.num_packets / (self.opened.fps or 25) if is_counted else stamp * base
        tally.num_packets += 1
        if self.is_avi:
            heapq.heappush(self.decoding_times, time_s)
        if self.has_end:  # for a live stream the list would grow without end
            if time_s >= tally.last_time_s:
                tally.last_time_s, self.last_s = time_s, (packet.duration or 0) * base
            tally.times_s.append(time_s)

    def _take_out_jump(self, packet: Any) -> None:
        if packet.dts is None:
            return
        dts, previous = packet.dts + self._shift, self._previous_dts
        # Decoding times only increase, so any step back, however small, starts another recording.
        if previous is not None and not previous <= dts <= previous + MAX_JUMP_S / float(packet.time_base):
            self._shift += previous + (packet.duration or 0) - dts
            dts = packet.dts + self._shift
        self._previous_dts = dts
        if self._shift:
            packet.pts = None if packet.pts is None else packet.pts + self._shift
            packet.dts = dts
