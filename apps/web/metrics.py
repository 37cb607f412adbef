"""A session's Prometheus metrics: counts and gauges at the newest frame, and histograms of the latencies.

Note: it uses a separate registry, so that it does not mix with other metrics of the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..figures import Figures
from ..listeners import Event

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTEXT_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ANSWER_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0)
COUNTERS = {
    "frames_seen": ("Frames the source delivered while the session was watching.", "num_seen"),
    "frames_processed": ("Frames the model processed.", "num_processed"),
    "frames_dropped": ("Frames that arrived while the model was busy.", "num_dropped"),
    "frames_stale": ("Frames with a picture that had been black or unchanged for long.", "num_stale"),
    "answers": ("Answered questions.", "num_answers"),
    "rollovers": ("Times the stream continued from its last frames, or was restarted.", "num_rollovers"),
    "reconnects": ("Times the source was lost and reconnected.", "num_reconnects"),
}
GAUGES = {
    "fps": ("Model frames per second over the last frames.", "fps"),
    "context_rows": ("Context rows in use.", "context_rows"),
    "context_rows_limit": ("Context rows available in total.", "context_limit"),
    "paused": ("1 while the session is paused.", "paused"),
    "resident_memory_bytes": ("Resident memory of this process.", "resident_bytes"),
}


class Metrics:
    """`counted` and `happened` are called on the session's thread, `text` on any."""

    def __init__(self, num_viewers: Callable[[], int] = lambda: 0, *, is_healthy: Callable[[], bool] | None = None):
        """Needs prometheus_client."""
        from prometheus_client import CollectorRegistry, Histogram

        self.registry = CollectorRegistry()
        self.num_viewers, self.is_healthy = num_viewers, is_healthy
        self._figures: Figures | None = None
        self._events: Counter[str] = Counter()
        self._to_context = Histogram(
            "pvc_capture_to_context_seconds", "Time from a frame's capture until it is in the context.",
            buckets=CONTEXT_S, registry=self.registry,
        )  # fmt: skip
        self._to_answer = Histogram(
            "pvc_capture_to_answer_seconds", "Time from the capture of an answer's newest frame to its last token.",
            buckets=ANSWER_S, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Counts(self))

    def counted(self, figures: Figures) -> None:
        before, self._figures = self._figures, figures
        num_processed, num_answers = (0, 0) if before is None else (before.num_processed, before.num_answers)
        if figures.latency_ms is not None and figures.num_processed > num_processed:
            self._to_context.observe(figures.latency_ms / 1e3)
        if figures.answer_latency_ms is not None and figures.num_answers > num_answers:
            self._to_answer.observe(figures.answer_latency_ms / 1e3)

    def happened(self, event: Event) -> None:
        self._events[event.kind] += 1

    def text(self) -> tuple[bytes, str]:
        """Prometheus' text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """All metrics except the histograms."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        figures = self._figures
        if figures is not None:
            for name, (says, attribute) in COUNTERS.items():
                yield CounterMetricFamily(f"pvc_{name}", says, value=float(getattr(figures, attribute)))
            for name, (says, attribute) in GAUGES.items():
                value = getattr(figures, attribute)
                if value is not None:
                    yield GaugeMetricFamily(f"pvc_{name}", says, value=float(value))
            queues = GaugeMetricFamily("pvc_queue_length", "Length of each queue.", labels=["queue"])
            for name, length in figures.queues.items():
                queues.add_metric([name], float(length))
            yield queues
        events = CounterMetricFamily("pvc_events", "Events by kind.", labels=["kind"])
        for kind, number in sorted(self._events.copy().items()):
            events.add_metric([kind], float(number))
        yield events
        yield GaugeMetricFamily("pvc_viewers", "Connected viewers.", value=float(self.num_viewers()))
        if self.is_healthy is not None:
            yield GaugeMetricFamily("pvc_healthy", "1 if /healthz returns 200.", value=float(self.is_healthy()))


class _Counts:
    """A collector for the registry, which only needs `collect`."""

    def __init__(self, metrics: Metrics) -> None:
        self.collect = metrics.collect
