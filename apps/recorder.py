"""Records the annotated frames to a video file that plays in real time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from engines.errors import BackendUnavailable, MediaError
from engines.synthetic import Frame
from engines.video import VideoWriter

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".ts")
MIN_FREE_BYTES = 64 * 2**20
"""Free disk space below which a recording ends: enough to complete its file."""
FALLBACK_FPS, MAX_FPS = 30.0, 60.0


class Recorder:
    """A video of constant frame rate, made from frames at irregular times.

    Pace   a frame at time_s belongs to slot round((time_s - first time_s) * fps). Each slot shows the newest frame of
           its time: a frame is repeated until the next one arrives, and of several frames in one slot the last one
           is kept. With every frame of a file, each frame has one slot. If time goes back, as when the source is
           switched, the recording continues in the next slot.
    Size   the first frame's, made even by repeating its last row and column; later frames of another size (a camera
           that reconnected with other settings) are scaled to it.
    """

    def __init__(self, path: Path, *, source_fps: float | None, survives_kill: bool = False) -> None:
        """Start the file immediately, so that an unwritable path is an error before the first frame.

        survives_kill is passed to VideoWriter.
        Raises MediaError, and BackendUnavailable without PyAV or if the disk is full.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise MediaError(
                f"the name {path} does not end in a video suffix, which selects the format",
                expected=f"one of {', '.join(SUFFIXES)}",
                cause="the suffix was forgotten",
                fix=f"--record {path.with_suffix('.mp4')}",
            )
        if path.is_dir():
            raise MediaError(
                f"{path} is a folder", expected="the path of a video file", fix=f"--record {path}/live.mp4"
            )
        self.path = path
        if path.parent.is_dir():
            self._require_space()
        self.fps = FALLBACK_FPS if source_fps is None else min(source_fps, MAX_FPS)
        # A fast preset: the model needs the processor more than we need a small file.
        self._writer = VideoWriter(path, fps=self.fps, preset="veryfast", survives_kill=survives_kill)
        self._pending: Frame | None = None  # the newest frame, written only once the next one is known
        self._pending_slot = 0
        self._started_s = self._newest_s = 0.0
        self.num_written = 0
        self.is_published = False

    @property
    def num_bytes(self) -> int:
        """Size of the file so far; 0 once it is completed."""
        partial = self._writer.partial
        return partial.stat().st_size if partial.exists() else 0

    def add(self, frame_bgr: Frame, time_s: float) -> None:
        """Show this frame from time_s on. Raises BackendUnavailable when the disk is nearly full, or MediaError."""
        self._require_space()
        if self._pending is None:
            self._started_s, self._pending, self._newest_s = time_s, _even(frame_bgr), time_s
            return
        if time_s < self._newest_s - 2 / self.fps:  # a smaller step back is rounding within the same source
            self._started_s = time_s - (self._pending_slot + 1) / self.fps
        self._newest_s = time_s
        slot = max(round((time_s - self._started_s) * self.fps), self._pending_slot)
        self._write_pending(slot - self._pending_slot)
        self._pending, self._pending_slot = _fitted(frame_bgr, self._pending.shape), slot

    def close(self) -> None:
        """Complete the file under its name; without any frame no file remains. Raises MediaError if that fails."""
        if self._pending is None:
            self._writer.abort()
            return
        self._write_pending(1)
        self._pending = None
        self._writer.close()
        self.is_published = True

    def abort(self) -> None:
        """Remove the unfinished file. Does nothing after `close`."""
        self._writer.abort()

    def _write_pending(self, num_slots: int) -> None:
        assert self._pending is not None
        for _ in range(num_slots):
            self._writer.write(self._pending)
            self.num_written += 1

    def _require_space(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < MIN_FREE_BYTES:
            raise BackendUnavailable(
                f"only {free / 2**20:.0f} MiB are free on the disk of {self.path}; if a recording had begun, it was "
                "completed",
                expected=f"{MIN_FREE_BYTES / 2**20:.0f} MiB or more, the space needed to complete a file",
                fix="df -h; free some space or record elsewhere",
            )


def _even(frame: Frame) -> Frame:
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _fitted(frame: Frame, shape: tuple[int, ...]) -> Frame:
    even = _even(frame)
    if even.shape == shape:
        return even
    return np.asarray(Image.fromarray(even).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
