"""A server's Prometheus metrics: requests, sessions, frames, answers and their durations.

Note: it uses a separate registry, like the page (apps/web/metrics.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from engines.sizes import resident_bytes

from .errors import refusal_of
from .service import Piece, Pushed

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FRAME_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """All methods may be called from any thread.

    gauges  by name: the help text, and a function that reads the current value
    """

    def __init__(self) -> None:
        """Needs prometheus_client."""
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = registry = CollectorRegistry()
        self.gauges: dict[str, tuple[str, Callable[[], float | None]]] = {
            "pvc_resident_memory_bytes": ("Resident memory of this process.", resident_bytes)
        }
        self._requests = Counter(
            "pvc_requests", "Requests by route and status; 499: the client disconnected.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self._request_s = Histogram(
            "pvc_request_seconds", "Time from a request's head until its response is sent.", ["route"],
            buckets=REQUEST_S,
            registry=registry,
        )  # fmt: skip
        self._refusals = Counter(
            "pvc_refusals", "Refused and failed requests, by error code.", ["code"], registry=registry
        )
        self._frames = Counter(
            "pvc_frames", "Frames of sessions: pushed, dropped for newer ones, sent again by a client, or missing.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._first_s = Histogram(
            "pvc_time_to_first_token_seconds", "Time from a question to its first token.", buckets=REQUEST_S,
            registry=registry,
        )  # fmt: skip
        self._answer_s = Histogram(
            "pvc_answer_seconds", "Time from a question to its last token.", buckets=REQUEST_S, registry=registry
        )
        self._tokens = Counter("pvc_answer_tokens", "Tokens of answers.", registry=registry)
        self._vision_s = Histogram(
            "pvc_frame_seconds", "Time per frame in the vision part and the LLM.", buckets=FRAME_S, registry=registry
        )
        registry.register(_Gauges(self))

    def requested(self, route: str, status: int, took_s: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(took_s)

    def failed(self, error: BaseException) -> None:
        refused = refusal_of(error)
        self._refusals.labels(refused.code or refused.kind).inc()

    def began(self, took_s: float) -> None:
        self._first_s.observe(took_s)

    def answered(self, last: Piece, took_s: float) -> None:
        self._answer_s.observe(took_s)
        if last.usage is not None:
            self._tokens.inc(last.usage.completion_tokens)

    def pushed(self, pushed: Pushed) -> None:
        outcome = "repeated" if pushed.is_repeated else "dropped" if pushed.is_dropped else "pushed"
        self._frames.labels(outcome).inc()
        if pushed.gap:
            self._frames.labels("missing").inc(pushed.gap)
        if outcome == "pushed":
            self._vision_s.observe((pushed.vision_ms + pushed.ingest_ms) / 1e3)

    def text(self) -> tuple[bytes, str]:
        """Prometheus' text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for name, (says, value) in self.gauges.items():
            if (now := value()) is not None:
                yield GaugeMetricFamily(name, says, value=float(now))


class _Gauges:
    """A collector for the registry, which only needs `collect`."""

    def __init__(self, metrics: Metrics) -> None:
        self.collect = metrics.collect
