"""Long recordings: files of a few minutes in a folder with a quota (the oldest are removed), and an index of events.

Each file is written by a Recorder and plays in real time on its own. No time is lost between two files.
If recording fails, the session continues: the failure is reported, and recording is retried.
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
"""After a longer time without a frame, a new segment begins, so that hours without a camera are not recorded as hours
of a still picture."""
ROOM_BYTES = 2 * MIN_FREE_BYTES
"""Disk space kept free by removing segments: more than a Recorder requires."""
RETRY_S = 60.0  # in the source's time, after recording stopped


@dataclass(kw_only=True, slots=True)
class _Open:
    """The segment being written, and its newest frame. Times are the source's; `at` is wall time."""

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
        """Record an event. offset_s is its position in the file: the start of the slot that shows its frame."""
        fps = self.recorder.fps
        offset_s = round(max(event.time_s - self.first_s, 0.0) * fps) / fps
        known = event.to_json()
        kept = {name: known[name] for name in ("kind", "text", "frame", "time_s", "alert", "at") if name in known}
        self.events.append(kept | {"offset_s": offset_s})

    def facts(self) -> dict[str, Any]:
        """The index line as far as it is known."""
        return {
            "file": self.name,
            "first_frame": self.first_frame,
            "first_time_s": self.first_s,
            "first_at": self.first_at.isoformat(),
            "fps": self.recorder.fps,
            "events": self.events,
        }


class SegmentedRecorder:
    """A Recorder of segments, and a Listener that gets the frame indices and events for the index.

    A segment ends after segment_s or max_segment_bytes, after a gap, and when the source's time goes back.
    quota_bytes limits all segments together; one segment is at most half of it.
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
        """Raises BackendUnavailable if the folder cannot be recorded to, and without PyAV."""
        import_av()
        self.path, self.num_written, self.is_published = folder, 0, False
        self.fps = FALLBACK_FPS if source_fps is None else min(source_fps, MAX_FPS)
        self._source_fps, self._trouble, self._segment_s = source_fps, trouble, segment_s
        self._quota_bytes = quota_bytes
        self._max_bytes = min(max_segment_bytes or quota_bytes, quota_bytes // 2)
        self._folder = SegmentFolder(folder)
        self._open: _Open | None = None
        self._early: list[Event] = []  # events of frames that are not added yet
        self._index_at: dict[float, int] = {}  # indices of the newest frames, by time_s
        self._stopped_s: float | None = None
        for text in self._folder.completed:
            trouble(text)

    def add(self, frame_bgr: Frame, time_s: float) -> None:
        """Show this frame from time_s on. Raises nothing: a failure is reported, and retried after a minute."""
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
            self._trouble(f"recording to {self.path} has resumed")

    def saw(self, captured: Captured, status: Status) -> None:
        self._index_at[captured.time_s] = captured.index
        while len(self._index_at) > 4:
            del self._index_at[next(iter(self._index_at))]

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        """Note an event; it may arrive before or after its frame is added."""
        if not self._note(event):
            self._early.append(event)

    def close(self) -> None:
        """Complete the last segment. A failure is reported."""
        try:
            self._finish(until_s=None)
        except (PVCError, OSError) as error:
            self._trouble(f"the last segment of {self.path} is lost: {_reason(error)}")
        finally:
            self._folder.close()

    def abort(self) -> None:
        """Keep the finished segments and discard the open one. Does nothing after `close`."""
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
        """Complete the open segment; its last frame is shown until until_s. Raises PVCError or OSError; either way no
        segment is open afterwards."""
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
        """Note an event in the open segment; False if it belongs to none of its frames."""
        segment = self._open
        if segment is None or not segment.first_s <= event.time_s <= segment.last_s:
            return False
        segment.note(event)
        with suppress(OSError):  # a full disk; the next frame reports it
            self._folder.keep_open(segment.facts())
        return True

    def _make_room(self) -> None:
        """Remove the oldest segments. Raises BackendUnavailable if the disk is full of other files."""
        folder = self._folder
        open_bytes = 0 if self._open is None else self._open.recorder.num_bytes
        while folder.num_bytes + open_bytes > self._quota_bytes and folder.remove_oldest():
            pass
        while (free := shutil.disk_usage(self.path).free) < ROOM_BYTES:
            if free + folder.num_bytes < ROOM_BYTES or not folder.remove_oldest():
                raise BackendUnavailable(
                    f"only {free / 2**20:.0f} MiB are free on its disk; removing old segments would not free enough",
                    expected=f"{ROOM_BYTES / 2**20:.0f} MiB or more",
                    fix="df -h; free some space",
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
            self._trouble(f"recording to {self.path} stopped: {_reason(error)}{lost}; retrying every {RETRY_S:.0f} s")


def _reason(error: PVCError | OSError) -> str:
    return error.what if isinstance(error, PVCError) else error.strerror or str(error)
