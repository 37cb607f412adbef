"""A recording of days: files of some minutes in a folder, of which the oldest make room, and an index of their events.

Each file is a Recorder's, and plays at the true speed by itself. Where one ends and the next begins, no time is lost.
Whatever fails, the session goes on: recording stops, that is said, and it is tried again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable, PVCError
from engines.synthetic import Frame
from engines.video.source import import_av

from .capture import Captured
from .listeners import Event
from .overlay import Status
from .recorder import FALLBACK_FPS, MAX_FPS, MIN_FREE_BYTES, Recorder
from .segment_index import SegmentFolder

SEGMENT_S, QUOTA_BYTES = 300.0, 20 * 2**30
MAX_GAP_S = 10.0
"""Without a frame for longer, a new segment begins: hours without a camera are no hours of a still picture."""
ROOM_BYTES = 2 * MIN_FREE_BYTES
"""Kept free on the disk, by removing segments: more than a Recorder asks for."""
RETRY_S = 60.0  # of the source's time, after recording stopped


@dataclass(kw_only=True, slots=True)
class _Open:
    """The segment that is being written, and its newest frame. Its times are the source's; `at` is wall time."""

    recorder: Recorder
    name: str
    first_s: float
    last_s: float
    first_at: datetime
    last_at: datetime
    last_bgr: Frame
    first_frame: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """offset_s is the place in the file: the start of the slot that shows the event's frame."""
        fps = self.recorder.fps
        offset_s = round(max(event.time_s - self.first_s, 0.0) * fps) / fps
        known = event.to_json()
        kept = {name: known[name] for name in ("kind", "text", "frame", "time_s", "alert", "at") if name in known}
        self.events.append(kept | {"offset_s": offset_s})

    def facts(self) -> dict[str, Any]:
        """A line of the index, as far as it is known."""
        return {
            "file": self.name,
            "first_frame": self.first_frame,
            "first_time_s": self.first_s,
            "first_at": self.first_at.isoformat(),
            "fps": self.recorder.fps,
            "events": self.events,
        }


class SegmentedRecorder:
    """What a session asks of a Recorder, and a Listener, for the numbers of frames and the events of the index.

    A segment ends after segment_s or max_segment_bytes, after a gap, and where the source's time goes back.
    quota_bytes bounds all segments together; one is at most half of that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source_fps: float | None,
        trouble: Callable[[str], None],
        segment_s: float = SEGMENT_S,
        max_segment_bytes: int | None = None,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        """Raises BackendUnavailable for a folder that cannot be recorded to, and without PyAV."""
        import_av()
        self.path, self.num_written, self.is_published = folder, 0, False
        self.fps = FALLBACK_FPS if source_fps is None else min(source_fps, MAX_FPS)
        self._source_fps, self._trouble, self._segment_s = source_fps, trouble, segment_s
        self._quota_bytes = quota_bytes
        self._max_bytes = min(max_segment_bytes or quota_bytes, quota_bytes // 2)
        self._folder = SegmentFolder(folder)
        self._open: _Open | None = None
        self._early: list[Event] = []  # of a frame that is not added yet
        self._index_at: dict[float, int] = {}  # of the newest frames, by time_s
        self._stopped_s: float | None = None
        for text in self._folder.completed:
            trouble(text)

    def add(self, frame_bgr: Frame, time_s: float) -> None:
        """Show this frame from time_s on. Raises nothing: what fails is said, and tried again after a minute."""
        if self._stopped_s is not None and 0 <= time_s - self._stopped_s < RETRY_S:
            self._early.clear()
            return
        try:
            self._add(frame_bgr, time_s)
        except (PVCError, OSError) as error:
            self._stop(error, time_s)
            return
        if self._stopped_s is not None:
            self._stopped_s = None
            self._trouble(f"recording to {self.path} goes on")

    def saw(self, captured: Captured, status: Status) -> None:
        self._index_at[captured.time_s] = captured.index
        while len(self._index_at) > 4:
            del self._index_at[next(iter(self._index_at))]

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        """An event may come before its frame is added, or after that."""
        if not self._note(event):
            self._early.append(event)

    def close(self) -> None:
        """Complete the last segment. A failure is said."""
        try:
            self._finish(until_s=None)
        except (PVCError, OSError) as error:
            self._trouble(f"the last segment of {self.path} is lost: {_reason(error)}")
        finally:
            self._folder.close()

    def abort(self) -> None:
        """Leave what is finished, and nothing of the open segment. After `close` it does nothing."""
        if self._open is not None:
            self._open.recorder.abort()
            self._open = None
            self._folder.forget_open()

    def _add(self, frame_bgr: Frame, time_s: float) -> None:
        if self._open is not None and self._is_over(self._open, time_s):
            self._finish(until_s=time_s)
        self._make_room()
        segment = self._open
        if segment is None:
            segment = self._open = self._begin(frame_bgr, time_s)
        num_before = segment.recorder.num_written
        segment.recorder.add(frame_bgr, time_s)
        self.num_written += segment.recorder.num_written - num_before
        if segment.first_frame is None:
            segment.first_frame = self._index_at.get(segment.first_s)
        segment.last_s, segment.last_at, segment.last_bgr = time_s, datetime.now(timezone.utc), frame_bgr
        for event in self._early:
            self._note(event)
        self._early.clear()

    def _is_over(self, segment: _Open, time_s: float) -> bool:
        has_gap = not 0 <= time_s - segment.last_s <= MAX_GAP_S
        is_long = time_s - segment.first_s >= self._segment_s
        return has_gap or is_long or segment.recorder.num_bytes >= self._max_bytes

    def _begin(self, frame_bgr: Frame, time_s: float) -> _Open:
        at = datetime.now(timezone.utc)
        while (path := self.path / f"{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z.mp4").exists():
            at += timedelta(milliseconds=1)
        recorder = Recorder(path, source_fps=self._source_fps, survives_kill=True)
        segment = _Open(
            recorder=recorder, name=path.name, first_s=time_s, last_s=time_s, first_at=at, last_at=at,
            last_bgr=frame_bgr,
        )  # fmt: skip
        try:
            self._folder.keep_open(segment.facts())
        except BaseException:
            recorder.abort()
            raise
        return segment

    def _finish(self, *, until_s: float | None) -> None:
        """Complete the open segment, whose last frame is shown until then. Raises PVCError or OSError; there is no open
        segment afterwards either way."""
        segment, self._open = self._open, None
        if segment is None:
            return
        recorder, num_before = segment.recorder, segment.recorder.num_written
        try:
            if until_s is not None and 0 < until_s - segment.last_s <= MAX_GAP_S:
                recorder.add(segment.last_bgr, until_s - 1 / self.fps)
            recorder.close()
        except BaseException:
            recorder.abort()
            self._folder.forget_open()
            raise
        self.num_written += recorder.num_written - num_before
        self.is_published = True
        if segment.first_frame is None:
            segment.first_frame = self._index_at.get(segment.first_s)
        ends = {
            "last_frame": self._index_at.get(segment.last_s),
            "last_time_s": segment.last_s,
            "last_at": segment.last_at.isoformat(),
            "num_frames": recorder.num_written,
        }
        self._folder.add(segment.facts() | ends)

    def _note(self, event: Event) -> bool:
        """Write down an event of the open segment; False if it is of none of its frames."""
        segment = self._open
        if segment is None or not segment.first_s <= event.time_s <= segment.last_s:
            return False
        segment.note(event)
        with suppress(OSError):  # of a full disk; the next frame finds that out
            self._folder.keep_open(segment.facts())
        return True

    def _make_room(self) -> None:
        """Remove the oldest segments. Raises BackendUnavailable where the disk is full of other things."""
        folder = self._folder
        open_bytes = 0 if self._open is None else self._open.recorder.num_bytes
        while folder.num_bytes + open_bytes > self._quota_bytes and folder.remove_oldest():
            pass
        while (free := shutil.disk_usage(self.path).free) < ROOM_BYTES:
            if free + folder.num_bytes < ROOM_BYTES or not folder.remove_oldest():
                raise BackendUnavailable(
                    f"only {free / 2**20:.0f} MiB are free on its disk, and older segments would not make room enough",
                    expected=f"{ROOM_BYTES / 2**20:.0f} MiB or more",
                    fix="free some space: df -h",
                )

    def _stop(self, error: PVCError | OSError, time_s: float) -> None:
        is_first, self._stopped_s = self._stopped_s is None, time_s
        self._early.clear()
        lost = ""
        try:
            self._finish(until_s=None)
        except (PVCError, OSError):
            lost = "; the open segment is lost"
        if is_first or lost:
            self._trouble(
                f"recording to {self.path} stops: {_reason(error)}{lost}; it is tried again every {RETRY_S:.0f} s"
            )


def _reason(error: PVCError | OSError) -> str:
    return error.what if isinstance(error, PVCError) else error.strerror or str(error)
