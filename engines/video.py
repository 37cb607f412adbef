"""Video files in and out, through PyAV: probe, read by frame index, write whole or frame by frame.

Note: PyAV is imported inside the functions, so this module can be imported without it; and a file
that is cut short is refused even if its first frames decode, because sampling a shorter video picks
other frames without a word.
Frames are (H, W, 3) uint8 BGR, upright: a quarter-turn rotation in the file's metadata is applied
(mirroring and other angles are not). A frame index counts decoded frames in display order from 0.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BackendUnavailable, FrameError, MediaError
from engines.preprocess import check_frame

WHOLE_VIDEO = "a complete video file"
NOT_WHOLE = "it is another kind of file, is damaged, or was cut short"
CUT_AT_ONCE = "a recording that was stopped at once or cut short"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file holds.

    width, height  pixels of the frames as read_video yields them, after rotation
    num_frames     counted packets, not the header's number: that is absent in mkv, webm and ts, and counts frames
                   an edit list hides. A recording cut before its first key frame is decoded to count what it shows
    fps            average frames per second
    duration_s     as the file states it, else num_frames / fps
    """

    path: Path
    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoFrame:
    """One decoded frame. bgr: (H, W, 3) uint8, owned by whoever holds it. time_s: the file's own timestamp."""

    frame_index: int
    time_s: float
    bgr: NDArray[np.uint8]


def probe_video(path: str | Path) -> VideoInfo:
    """Facts of a video file. Reads the whole file but decodes only its first frame.

    Raises MediaError if the file cannot be read as a video, BackendUnavailable without PyAV.
    """
    path = Path(path)
    first_frame: Any = None
    num_frames = 0
    starts_whole: bool | None = None
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            # The last packet is an empty one that flushes the decoder; discarded ones are hidden by an edit list.
            if packet.size and not packet.is_discard:
                num_frames += 1
                starts_whole = packet.is_keyframe if starts_whole is None else starts_whole
            if first_frame is None:
                first_frame = next(iter(packet.decode()), None)
        if first_frame is None:
            raise _no_video(path, "holds no frame that can be decoded", cause=CUT_AT_ONCE)
        fps = _average_fps(stream, path)
        if stream.duration:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration:
            duration_s = container.duration / 1_000_000
        else:
            duration_s = num_frames / fps
        height, width, _ = _upright_bgr(first_frame).shape
    if not starts_whole:  # a dashcam's segment: the frames before its first key frame cannot be decoded
        num_frames = sum(1 for _ in _decode(path, None))
    return VideoInfo(path=path, width=width, height=height, num_frames=num_frames, fps=fps, duration_s=duration_s)


def read_video(path: str | Path, *, indices: Sequence[int] | None = None) -> Iterator[VideoFrame]:
    """Frames of a video in order: all of them, or those at `indices`, an index that repeats as often as it is given.

    Decodes from the start and stops after the last index. Bad indices (negative or decreasing) and a path that is
    no file raise MediaError at once; a damaged file, or an index past its end, when the reading gets there.
    Raises BackendUnavailable without PyAV.
    """
    path = Path(path)
    _import_av()
    check_is_file(path)
    if indices is None:
        return _decode(path, None)
    wanted = [int(index) for index in indices]
    if any(index < 0 for index in wanted) or wanted != sorted(wanted):
        raise MediaError(
            f"the frame indices {_shorten(wanted)} cannot be read from {path}, which is decoded forwards",
            expected="0 or more, never decreasing",
            fix="sort the indices",
        )
    return _decode(path, wanted)


def write_video(path: str | Path, frames_bgr: Iterable[NDArray[np.uint8]], *, fps: float) -> None:
    """Write frames (H, W, 3) uint8 BGR, all of one size and of even height and width: what VideoWriter does, at once.

    An exception of the caller's iterable passes through unchanged, and leaves no file. Raises as VideoWriter does.
    """
    with VideoWriter(path, fps=fps) as writer:
        for frame_bgr in frames_bgr:
            writer.write(frame_bgr)


class VideoWriter:
    """A video file written frame by frame: H.264 (MPEG-4 where PyAV lacks libx264), yuv420p, constant frame rate.

    The suffix of `path` chooses the container. The file appears under its name only when `close` completed it,
    replacing what was there; `abort` leaves nothing. As a context manager it closes, or aborts on an exception.
    Height and width must be even, as yuv420p halves them: odd frames are refused, not cropped or padded.
    Lossy: FFmpeg's rounding alone tints a flat colour by up to 5 of 255 levels, so compare parity on source frames.
    """

    def __init__(self, path: str | Path, *, fps: float, preset: str = "medium") -> None:
        """`preset` is x264's: what it may cost to make the file small.

        Raises MediaError for a bad fps or a file that cannot be written, BackendUnavailable without PyAV.
        """
        self.path = Path(path)
        self._av = _import_av()
        if not (math.isfinite(fps) and fps >= 0.01):
            raise MediaError(
                f"cannot write {self.path} at {fps} frames per second",
                expected="0.01 or more",
                cause="a camera that reports no rate",
                fix="pass fps yourself, such as 30",
            )
        self._fps, self._preset = fps, preset
        # Beside the target, so the rename stays on one disk; same suffix, so the container stays the same.
        self._partial = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(4)}{self.path.suffix}")
        self._stream: Any = None
        try:
            with _write_errors(self._av, self.path):
                self._partial.touch()  # PyAV would only try with the first frame
                self._container = self._av.open(f"file:{self._partial}", "w")
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise

    def write(self, frame_bgr: NDArray[np.uint8]) -> None:
        """Append one frame. Raises FrameError if it is bad or not of the first one's size, MediaError if it fails."""
        check_frame(frame_bgr)
        height, width, _ = frame_bgr.shape
        if self._stream is None:
            _check_even(height, width)
            with _write_errors(self._av, self.path):
                self._stream = self._add_stream(width=width, height=height)
        elif (height, width) != (self._stream.height, self._stream.width):
            raise FrameError(
                f"a frame is {width}x{height} and the first was {self._stream.width}x{self._stream.height}",
                expected="one size for a whole video",
                cause="two sources were mixed",
                fix="resize the frames first",
            )
        with _write_errors(self._av, self.path):
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_bgr), format="bgr24")
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file and give it its name. Raises MediaError, leaving nothing, without frames or if it fails."""
        try:
            if self._stream is None:
                raise MediaError(
                    f"no frames were given to write to {self.path}",
                    expected="1 or more",
                    cause="the source was empty",
                    fix="check it",
                )
            with _write_errors(self._av, self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._partial, self.path)
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget what was written. After `close` it does nothing."""
        # What stopped the writing is the error to report, not that the rest cannot be flushed either.
        with suppress(MediaError), _write_errors(self._av, self.path):
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _add_stream(self, *, width: int, height: int) -> Any:
        # 1001 keeps 30000/1001 and its kin exact. Both qualities are near lossless to the eye.
        rate = Fraction(self._fps).limit_denominator(1001)
        if "libx264" in self._av.codecs_available:
            options = {"crf": "18", "preset": self._preset}
            stream = self._container.add_stream("libx264", rate=rate, options=options)
        else:
            stream = self._container.add_stream("mpeg4", rate=rate, options={"qmin": "2", "qmax": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        return stream


def _import_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise BackendUnavailable(
            f"the package av, which video files need, cannot be imported here: {error}", fix="pip install -e '.[apps]'"
        ) from error


def check_is_file(path: Path) -> None:
    """Raise MediaError unless this is a file with something in it."""
    if not path.exists():
        what, cause, fix = "does not exist", f"a typing error, or another folder than {Path.cwd()}", f"ls {path.parent}"
    elif not path.is_file():
        what, cause, fix = "is not a file", "a folder of videos, or a device", f"name one file: ls {path}"
    elif path.stat().st_size == 0:
        what, cause = "is empty (0 bytes)", "a download or a recording that failed"
        fix = f"fetch it again, and look at its size: ls -l {path}"
    else:
        return
    raise MediaError(f"{path} {what}", expected="a video file", cause=cause, fix=fix)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container of a file and its first video stream; any PyAV error inside becomes a MediaError."""
    av = _import_av()
    check_is_file(path)
    try:
        # "file:" keeps a name such as 10:30.mp4 from being taken for a protocol; tags in other encodings than
        # UTF-8 would otherwise raise.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            yield container, _video_stream(container, path)
    except av.error.FFmpegError as error:
        raise _no_video(path, f"cannot be read as a video: {error.strerror}", cause=NOT_WHOLE) from error


def _video_stream(container: Any, path: Path) -> Any:
    # FFmpeg's "tty" format draws any .txt file as if on a terminal: never what a user means.
    if not container.streams.video or container.format.name == "tty":
        raise _no_video(path, "has no video stream", cause="it holds only sound or text")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise MediaError(
            f"{path} is in a video codec that this PyAV cannot decode",
            expected="a common one, such as H.264",
            cause="a camera's own format",
            fix=f"convert it: ffmpeg -i {path} -c:v libx264 converted.mp4",
        )
    size = path.stat().st_size
    # PyAV before 17 has no index_entries: there only a cut inside a frame is noticed, by the decoder.
    needed = max((entry.pos + entry.size for entry in getattr(stream, "index_entries", ())), default=0)
    if needed > size:
        raise MediaError(
            f"{path} has {size} bytes",
            expected=f"at least {needed}, where its index puts the last frame",
            cause="a download or a copy that was cut short",
            fix=f"fetch it again, and look at its size: ls -l {path}",
        )
    # Frame threads as well as slice threads; the frames are the same.
    stream.thread_type = "AUTO"
    return stream


def _average_fps(stream: Any, path: Path) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise no_frame_rate(str(path))
    return float(rate)


def no_frame_rate(name: str) -> MediaError:
    return MediaError(
        f"{name} states no frame rate",
        expected="a video that says how many frames a second it has",
        cause="a raw stream without a container",
        fix=f"ffmpeg -i {name} -r 30 converted.mp4",
    )


def _decode(path: Path, wanted: list[int] | None) -> Iterator[VideoFrame]:
    if wanted == []:
        return
    repeats = Counter(wanted)
    last = None if wanted is None else wanted[-1]
    num_decoded = 0
    with _opened(path) as (container, stream):
        for frame_index, frame in enumerate(container.decode(stream)):
            num_decoded += 1
            # A fresh array per repeat, so that no two frames share memory.
            for _ in range(1 if wanted is None else repeats[frame_index]):
                time_s = frame_index / _average_fps(stream, path) if frame.time is None else float(frame.time)
                yield VideoFrame(frame_index=frame_index, time_s=time_s, bgr=_upright_bgr(frame))
            if frame_index == last:
                return
    if num_decoded == 0:
        raise _no_video(path, "holds no frame that can be decoded", cause=CUT_AT_ONCE)
    if last is not None:
        raise MediaError(
            f"frame {last} of {path} was asked for and the file ends after {num_decoded} frames (0 to "
            f"{num_decoded - 1})",
            cause="the indices are of another video, or this one is damaged",
            fix=f"ffprobe {path}",
        )


def _upright_bgr(frame: Any) -> NDArray[np.uint8]:
    bgr: NDArray[np.uint8] = frame.to_ndarray(format="bgr24")
    # Both count degrees counter-clockwise.
    return np.ascontiguousarray(np.rot90(bgr, round(frame.rotation / 90)))


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise FrameError(
            f"a frame of {width}x{height} cannot be written",
            expected="an even width and height, as yuv420p halves both",
            fix="pad it first: numpy.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')",
        )


@contextmanager
def _write_errors(av: Any, path: Path) -> Iterator[None]:
    try:
        yield
    # PyAV raises a plain ValueError for a suffix it has no container for.
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{path} cannot be written: {error}",
            expected="a writable folder and a video suffix such as .mp4",
            cause="the folder is missing, full or read-only",
            fix=f"ls -ld {path.parent}",
        ) from error


def _no_video(path: Path, what: str, *, cause: str) -> MediaError:
    return MediaError(f"{path} {what}", expected=WHOLE_VIDEO, cause=cause, fix=f"ffprobe {path}, or try another file")


def _shorten(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{str(numbers[:8])[:-1]}, ...]"
