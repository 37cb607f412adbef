"""Videos sent by clients: sampling a few frames, spread over the duration, from a file in memory.

Note: FFmpeg opens playlists and other formats that refer to further files or addresses. So only self-contained formats
are accepted, recognised by their first bytes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from engines.errors import BackendUnavailable, MediaError
from engines.video import VideoInfo, VideoReader, probe_video
from engines.video.source import open_source

from .limits import Limits
from .pictures import encode_frame

MOST_FPS = 60.0
"""Highest rate for a video of the longest allowed duration; a video with more frames than that is refused."""
EXPECTED = "a complete MP4, MOV, WebM, Matroska or AVI file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Frames to take from a video. fps: frames per second; num_frames: at most; None: the default of the limits."""

    fps: float | None = None
    num_frames: int | None = None


def frames_of_video(video: bytes, taken: Taken, limits: Limits) -> tuple[bytes, ...]:
    """The sampled frames, losslessly encoded, oldest first. Raises MediaError, and BackendUnavailable without PyAV."""
    if not _holds_its_video(video):
        raise MediaError("the video's format is not supported", expected=EXPECTED)
    with tempfile.TemporaryDirectory(prefix="pvc-serve-") as folder:
        path = Path(folder) / "video"
        path.write_bytes(video)
        try:
            _check_size(path, limits)
            times_s = times_of(probe_video(path), taken, limits)
            with VideoReader(path) as reader:
                return tuple(encode_frame(frame.bgr) for frame in reader.shown_at(times_s))
        except MediaError as error:
            raise MediaError(error.what.replace(str(path), "the video"), expected=EXPECTED) from error
        except (BackendUnavailable, MemoryError):
            raise
        except Exception as error:  # for a hostile file, a decoder may raise almost anything
            raise MediaError("the video is damaged", expected=EXPECTED) from error


def times_of(info: VideoInfo, taken: Taken, limits: Limits) -> list[float]:
    """Times of the frames to take, at least one. Raises MediaError if the video is too long."""
    if info.span_s > limits.video_s or info.num_frames > limits.video_s * MOST_FPS:
        raise MediaError(
            f"the video has {info.num_frames} frames in {info.span_s:.0f} s", expected=f"at most {limits.video_s:g} s",
            fix="shorten it, or open a session and send its frames",
        )  # fmt: skip
    most = limits.default_frames if taken.num_frames is None else taken.num_frames
    fps = limits.video_fps if taken.fps is None else taken.fps
    wanted = round(info.span_s * fps) if taken.num_frames is None or taken.fps is not None else most
    return info.sample_times(max(1, min(wanted, most, info.num_frames)))


def _check_size(path: Path, limits: Limits) -> None:
    """Check the size in the header, before decoding. Raises MediaError."""
    opened = open_source(path)
    with opened.container:
        width, height = opened.stream.codec_context.width, opened.stream.codec_context.height
    if width * height > limits.picture_pixels:
        raise MediaError(f"the video has {width} x {height} pixels", expected=f"at most {limits.picture_pixels}")


def _holds_its_video(video: bytes) -> bool:
    is_mp4 = video[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    return is_mp4 or video.startswith(b"\x1a\x45\xdf\xa3") or (video.startswith(b"RIFF") and video[8:12] == b"AVI ")
