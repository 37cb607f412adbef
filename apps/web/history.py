"""One sample of figures per second, for the time span of the charts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..figures import Figures

PERIOD_S, KEPT = 1.0, 600
FRAMES = 1000  # maximum latencies per sample


class History:
    """One sample per second, from the figures of its frames. A second without frames has none: a gap in the charts."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.samples: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._clock = clock
        self._since: float | None = None
        self._num_dropped = 0
        self._latencies_ms: deque[float] = deque(maxlen=FRAMES)

    def add(self, figures: Figures) -> dict[str, Any] | None:
        """Add figures. Returns the sample they complete, or None. Times are seconds since 1970."""
        now = self._clock()
        if self._since is None:
            self._since, self._num_dropped = now, figures.num_dropped
        if figures.latency_ms is not None:
            self._latencies_ms.append(figures.latency_ms)
        if 0 <= now - self._since < PERIOD_S:
            return None
        latencies = sorted(self._latencies_ms) or [0.0]
        memory = figures.resident_bytes
        sample = {
            "at": round(now, 2),
            "fps": round(figures.fps, 2),
            "p50": round(latencies[len(latencies) // 2], 1),
            "p99": round(latencies[min(99 * len(latencies) // 100, len(latencies) - 1)], 1),
            "dropped": max(figures.num_dropped - self._num_dropped, 0),
            "mb": None if memory is None else round(memory / 2**20, 1),
            "rows": figures.context_rows,
        }
        self.samples.append(sample)
        self._since, self._num_dropped = now, figures.num_dropped
        self._latencies_ms.clear()
        return sample
