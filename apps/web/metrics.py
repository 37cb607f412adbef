"""What Prometheus scrapes: counts and gauges as of the newest frame, and how the latencies are spread.

Note: a registry of its own, so that a process with metrics of its own is left alone.
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
    "frames_seen": ("Frames that the source delivered while somebody looked.", "num_seen"),
    "frames_processed": ("Frames that the model saw.", "num_processed"),
    "frames_dropped": ("Frames that came while the model was busy.", "num_dropped"),
    "frames_stale": ("Frames whose picture had been black or the same for long.", "num_stale"),
    "answers": ("Questions that were answered.", "num_answers"),
    "rollovers": ("Times that the stream went on from its last frames, or was started again.", "num_rollovers"),
    "reconnects": ("Times that the source was lost and found again.", "num_reconnects"),
}
GAUGES = {
    "fps": ("Model frames per second over the last frames.", "fps"),
    "context_rows": ("Rows of the context that are taken.", "context_rows"),
    "context_rows_limit": ("Rows that the context has.", "context_limit"),
    "paused": ("1 while the model does not see frames.", "paused"),
    "resident_memory_bytes": ("Memory of the process that is in RAM.", "resident_bytes"),
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
            "pvc_capture_to_context_seconds", "From a frame's capture until it was in the context.",
            buckets=CONTEXT_S, registry=self.registry,
        )  # fmt: skip
        self._to_answer = Histogram(
            "pvc_capture_to_answer_seconds", "From the capture of an answer's newest frame until its last token.",
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
        """All but the histograms."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        figures = self._figures
        if figures is not None:
            for name, (says, attribute) in COUNTERS.items():
                yield CounterMetricFamily(f"pvc_{name}", says, value=float(getattr(figures, attribute)))
            for name, (says, attribute) in GAUGES.items():
                value = getattr(figures, attribute)
                if value is not None:
                    yield GaugeMetricFamily(f"pvc_{name}", says, value=float(value))
            queues = GaugeMetricFamily("pvc_queue_length", "What waits.", labels=["queue"])
            for name, length in figures.queues.items():
                queues.add_metric([name], float(length))
            yield queues
        events = CounterMetricFamily("pvc_events", "What happened, by kind.", labels=["kind"])
        for kind, number in sorted(self._events.copy().items()):
            events.add_metric([kind], float(number))
        yield events
        yield GaugeMetricFamily("pvc_viewers", "Pages that look.", value=float(self.num_viewers()))
        if self.is_healthy is not None:
            yield GaugeMetricFamily("pvc_healthy", "1 where /healthz is 200.", value=float(self.is_healthy()))


class _Counts:
    """What a registry takes: its register asks for `collect` alone."""

    def __init__(self, metrics: Metrics) -> None:
        self.collect = metrics.collect
