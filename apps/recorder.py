"""The annotated frames as a video file that plays at the true speed."""

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
"""Left on the disk when a recording is ended: enough to complete its file."""
FALLBACK_FPS, MAX_FPS = 30.0, 60.0


class Recorder:
    """A video of constant frame rate, made of frames that come when they come.

    Pace   a frame at time_s belongs to slot round((time_s - first time_s) * fps). Each slot of the file shows the
           newest frame of that time: a frame is repeated until the next one comes, and of several in one slot the last
           one stays. With every frame of a file, each has a slot of its own. Where time goes back, as with another
           source, the recording goes on in the next slot.
    Size   the first frame's, made even by repeating its last row and column; later frames of another size (a camera
           that came back with other settings) are scaled to it.
    """

    def __init__(self, path: Path, *, source_fps: float | None, survives_kill: bool = False) -> None:
        """Starts the file at once, so that a place that cannot be written is known before the first frame.

        survives_kill is VideoWriter's.
        Raises MediaError, and BackendUnavailable without PyAV or if the disk is full.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise MediaError(
                f"{path} has no suffix of a video, which chooses the format",
                expected=f"one of {', '.join(SUFFIXES)}",
                cause="it was forgotten",
                fix=f"--record {path.with_suffix('.mp4')}",
            )
        if path.is_dir():
            raise MediaError(
                f"{path} is a folder", expected="the name of a video file", fix=f"--record {path}/live.mp4"
            )
        self.path = path
        if path.parent.is_dir():
            self._require_space()
        self.fps = FALLBACK_FPS if source_fps is None else min(source_fps, MAX_FPS)
        # A small file is worth less than the processor's time, which the model needs.
        self._writer = VideoWriter(path, fps=self.fps, preset="veryfast", survives_kill=survives_kill)
        self._pending: Frame | None = None  # the newest frame, which is not written before the next one is known
        self._pending_slot = 0
        self._started_s = self._newest_s = 0.0
        self.num_written = 0
        self.is_published = False

    @property
    def num_bytes(self) -> int:
        """Of the file so far; 0 once it is completed."""
        partial = self._writer.partial
        return partial.stat().st_size if partial.exists() else 0

    def add(self, frame_bgr: Frame, time_s: float) -> None:
        """Show this frame from time_s on. Raises BackendUnavailable when the disk is nearly full, MediaError."""
        self._require_space()
        if self._pending is None:
            self._started_s, self._pending, self._newest_s = time_s, _even(frame_bgr), time_s
            return
        if time_s < self._newest_s - 2 / self.fps:  # by less, it is the same source's, rounded
            self._started_s = time_s - (self._pending_slot + 1) / self.fps
        self._newest_s = time_s
        slot = max(round((time_s - self._started_s) * self.fps), self._pending_slot)
        self._write_pending(slot - self._pending_slot)
        self._pending, self._pending_slot = _fitted(frame_bgr, self._pending.shape), slot

    def close(self) -> None:
        """Complete the file under its name; without a frame there is none. Raises MediaError if that fails."""
        if self._pending is None:
            self._writer.abort()
            return
        self._write_pending(1)
        self._pending = None
        self._writer.close()
        self.is_published = True

    def abort(self) -> None:
        """Leave nothing. After `close` it does nothing."""
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
                f"only {free / 2**20:.0f} MiB are free on the disk of {self.path}; a recording that had begun was "
                "completed",
                expected=f"{MIN_FREE_BYTES / 2**20:.0f} MiB or more, which it takes to complete a file",
                fix="free some space, or record elsewhere: df -h",
            )


def _even(frame: Frame) -> Frame:
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _fitted(frame: Frame, shape: tuple[int, ...]) -> Frame:
    even = _even(frame)
    if even.shape == shape:
        return even
    return np.asarray(Image.fromarray(even).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
