"""Frame rate and latency: of the last frames for the overlay, of the whole session for the summary."""

from __future__ import annotations

from collections import deque

import numpy as np

from .capture import Captured

WINDOW = 30  # frames in the overlay's rate
KEPT = 10_000  # latencies in the summary; bounded, so that a session of days does not grow


class Meter:
    """Counts frames: delivered by the source, processed by the model, dropped in between."""

    def __init__(self) -> None:
        self.num_processed = self.num_dropped = 0
        self.latency_ms = 0.0
        self.answer_latency_ms: float | None = None  # the newest answer's
        self._last_index: int | None = None
        self._done_at: deque[float] = deque(maxlen=WINDOW)
        self._latencies_ms: deque[float] = deque(maxlen=KEPT)
        self._answers_ms: deque[float] = deque(maxlen=KEPT)
        self._first_at = self._last_at = 0.0

    def add(self, captured: Captured, done_at: float) -> None:
        """Count a frame whose embedding was in the model's context at `done_at`, on the clock of captured_at.

        Frames before the first one do not count as dropped: the session was not ready yet.
        """
        self._first_at = self._first_at or done_at
        if self._last_index is not None:
            self.num_dropped += captured.index - self._last_index - 1
        self._last_index, self._last_at = captured.index, done_at
        self.num_processed += 1
        self.latency_ms = 1e3 * (done_at - captured.captured_at)
        self._latencies_ms.append(self.latency_ms)
        self._done_at.append(done_at)

    def passed(self, captured: Captured) -> None:
        """Note a frame not meant for the model: it is not counted, and the frames before it do not count as dropped."""
        self._last_index = captured.index

    def answered(self, latency_ms: float) -> None:
        """Note an answer, latency_ms after its newest frame was captured."""
        self.answer_latency_ms = latency_ms
        self._answers_ms.append(latency_ms)

    def new_source(self) -> None:
        """Note that frame indices restart from 0; the jump does not count as dropped frames."""
        self._last_index = None
        self._done_at.clear()

    @property
    def fps(self) -> float:
        """Model frames per second over the last frames; 0 before the second one."""
        return _rate(len(self._done_at), self._done_at[-1] - self._done_at[0]) if self._done_at else 0.0

    def summary(self) -> dict[str, float | int]:
        """Frames seen, processed and dropped; the session's fps; median and percentiles of the latency from capture to
        context, and from capture to the end of an answer."""
        latencies, answers = np.array(self._latencies_ms or [0.0]), np.array(self._answers_ms or [0.0])
        return {
            "num_seen": self.num_processed + self.num_dropped,
            "num_processed": self.num_processed,
            "num_dropped": self.num_dropped,
            "fps": round(_rate(self.num_processed, self._last_at - self._first_at), 2),
            "latency_median_ms": round(float(np.median(latencies)), 2),
            "latency_p95_ms": round(float(np.percentile(latencies, 95)), 2),
            "latency_p99_ms": round(float(np.percentile(latencies, 99)), 2),
            "answer_latency_median_ms": round(float(np.median(answers)), 2),
            "answer_latency_p99_ms": round(float(np.percentile(answers, 99)), 2),
        }


def _rate(num_frames: int, seconds: float) -> float:
    """Frames per second, from the first to the last; 0 before the second one."""
    return (num_frames - 1) / max(seconds, 1e-9) if num_frames > 1 else 0.0
