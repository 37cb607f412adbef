"""Writes video files through PyAV: all frames at once, or frame by frame.

Frames are (H, W, 3) uint8 BGR. PyAV is imported inside the functions.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import FrameError, MediaError
from engines.preprocess import check_frame

from .picture import LIMITED, to_yuv, untagged_matrix
from .source import import_av

FRAGMENTED = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
"""FFmpeg writes an MP4 in complete fragments of one second (in microseconds) and converts it to an ordinary file at the
end. Without B-frames: with them FFmpeg 8 states too short a duration for some lengths, which hides the last frame."""


def write_video(path: str | Path, frames_bgr: Iterable[NDArray[np.uint8]], *, fps: float) -> None:
    """Write frames (H, W, 3) uint8 BGR, all of one size with even height and width, with one VideoWriter.

    An exception of the caller's iterable passes through unchanged and leaves no file. Raises what VideoWriter raises.
    """
    with VideoWriter(path, fps=fps) as writer:
        for frame_bgr in frames_bgr:
            writer.write(frame_bgr)


class VideoWriter:
    """A video file written frame by frame: H.264 (MPEG-4 where PyAV lacks libx264), yuv420p, constant frame rate.

    The suffix of `path` chooses the container. The file gets its name only once `close` has completed it, replacing an
    existing one; `abort` leaves nothing. As a context manager it closes, or aborts on an exception.
    Height and width must be even, as yuv420p halves them: odd frames are rejected, not cropped or padded.
    Lossy: 8-bit YUV alone changes a flat colour by up to 2 of 255 levels, so check parity on source frames.
    """

    def __init__(self, path: str | Path, *, fps: float, preset: str = "medium", survives_kill: bool = False) -> None:
        """preset         x264's: the time it may take to make the file small
        survives_kill  for .mp4: after a kill, `partial` next to the target is playable, except for the last second and
                       the frames still in the encoder

        Raises MediaError for an invalid fps or a file that cannot be written, BackendUnavailable without PyAV.
        """
        self.path = Path(path)
        self._av = import_av()
        if not (math.isfinite(fps) and fps >= 0.01):
            raise MediaError(
                f"cannot write {self.path} at {fps} frames per second",
                expected="0.01 or more",
                cause="the camera reports no rate",
                fix="pass fps explicitly, such as 30",
            )
        self._fps, self._preset, self._survives_kill = fps, preset, survives_kill
        # Next to the target, so that the rename stays on one disk; same suffix, so that the container stays the same.
        self.partial = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(4)}{self.path.suffix}")
        self._stream: Any = None
        try:
            with _write_errors(self._av, self.path):
                self.partial.touch()  # fail now: PyAV opens it only at the first frame
                options = FRAGMENTED if survives_kill else {}
                self._container = self._av.open(f"file:{self.partial}", "w", options=options)
        except BaseException:
            self.partial.unlink(missing_ok=True)
            raise

    def write(self, frame_bgr: NDArray[np.uint8]) -> None:
        """Append one frame. Raises FrameError if it is invalid or differs in size, MediaError if writing fails."""
        check_frame(frame_bgr)
        height, width, _ = frame_bgr.shape
        if self._stream is None:
            _check_even(height, width)
            with _write_errors(self._av, self.path):
                self._stream = self._add_stream(width=width, height=height)
        elif (height, width) != (self._stream.height, self._stream.width):
            raise FrameError(
                f"a frame is {width}x{height}, but the first was {self._stream.width}x{self._stream.height}",
                expected="one size for the whole video",
                cause="frames of two sources were mixed",
                fix="resize the frames first",
            )
        with _write_errors(self._av, self.path):
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_bgr), format="bgr24")
            self._container.mux(self._stream.encode(to_yuv(frame, "yuv420p", untagged_matrix(width, height))))

    def close(self) -> None:
        """Complete the file and give it its name. Raises MediaError, leaving no file, if it fails or has no frames."""
        try:
            if self._stream is None:
                raise MediaError(
                    f"no frame was written to {self.path}",
                    expected="1 frame or more",
                    cause="the source was empty",
                    fix="check the source",
                )
            with _write_errors(self._av, self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self.partial, self.path)
        finally:
            self.abort()

    def abort(self) -> None:
        """Discard what was written. Does nothing after `close`."""
        # Report what stopped the writing, not that the rest cannot be flushed either.
        with suppress(MediaError), _write_errors(self._av, self.path):
            self._container.close()
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _add_stream(self, *, width: int, height: int) -> Any:
        # 1001 keeps 30000/1001 and similar rates exact. Both quality settings are visually near lossless.
        rate = Fraction(self._fps).limit_denominator(1001)
        if "libx264" in self._av.codecs_available:
            options = {"crf": "18", "preset": self._preset} | ({"bf": "0"} if self._survives_kill else {})
            stream = self._container.add_stream("libx264", rate=rate, options=options)
        else:
            stream = self._container.add_stream("mpeg4", rate=rate, options={"qmin": "2", "qmax": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Tagged, and equal to what players assume where a codec or container cannot store the tags.
        stream.codec_context.colorspace, stream.codec_context.color_range = untagged_matrix(width, height), LIMITED
        return stream


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise FrameError(
            f"a frame of {width}x{height} cannot be written",
            expected="an even width and height, since yuv420p halves both",
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
