"""Facts about a video, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.preprocess import segment_indices

from .packets import Packets
from .picture import to_bgr
from .reader import VideoReader
from .source import is_url, no_frame_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """Facts about a video.

    width, height  pixels of the frames as read_video yields them, upright
    num_frames     counted packets. The header's number is absent in mkv, webm and ts, and includes frames that an edit
                   list hides. A recording that starts before its first key frame is decoded to count its frames
    fps            average frames per second
    duration_s     as the file states it, otherwise num_frames / fps
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

        At a constant frame rate these show the frames of segment_indices, which is InternVL2's rule. At a variable rate
        the parts are equal in time, not in number of frames. Raises what segment_indices raises.
        """
        # The middle of a frame's share of the span, since timestamps are rounded.
        share_s = self.span_s / self.num_frames
        return [self.start_s + (index + 0.5) * share_s for index in segment_indices(self.num_frames, num_segments)]


def probe_video(source: str | Path, *, fps: float | None = None) -> VideoInfo:
    """Facts about a video file or address. Reads all of it but decodes only its first frame.

    `fps` is for raw streams. Raises MediaError if it cannot be read as a video, BackendUnavailable without PyAV.
    """
    first_frame: Any = None
    starts_whole: bool | None = None
    with Packets(source, fps=fps) as packets:
        for packet in packets:
            starts_whole = packet.is_keyframe if starts_whole is None else starts_whole
            if first_frame is None:
                first_frame = next(iter(packets.decode(packet)), None)
        if first_frame is None:
            first_frame = next(iter(packets.decode(None)), None)
        if first_frame is None:
            raise packets.no_frame()
        info = _described(packets, source, first_frame)
    return info if starts_whole else _counted_by_decoding(info, source, fps)


def _described(packets: Packets, source: str | Path, first_frame: Any) -> VideoInfo:
    opened, tally = packets.opened, packets.tally
    if opened.fps is None:
        raise no_frame_rate(opened.name)
    duration_s = tally.num_packets / opened.fps
    if opened.stream.duration and not opened.is_raw:
        duration_s = float(opened.stream.duration * opened.stream.time_base)
    elif opened.container.duration and not opened.is_raw:
        duration_s = opened.container.duration / 1e6
    start_s = min(tally.times_s)
    height, width, _ = to_bgr(first_frame).shape
    return VideoInfo(
        path=opened.name if is_url(source) else Path(source),
        width=width,
        height=height,
        num_frames=tally.num_packets,
        fps=opened.fps,
        duration_s=duration_s,
        start_s=start_s,
        span_s=max(tally.times_s) - start_s + (tally.period_s() or packets.last_s or 1 / opened.fps),
    )


def _counted_by_decoding(info: VideoInfo, source: str | Path, fps: float | None) -> VideoInfo:
    """Count by decoding, for example a dashcam's segment: frames before its first key frame cannot be decoded."""
    with VideoReader(source, fps=fps) as reader:
        times_s = list(reader.times())
    span_s = times_s[-1] - times_s[0] + 1 / info.fps
    return replace(info, num_frames=len(times_s), start_s=times_s[0], span_s=span_s)
