"""/healthz and /metrics, and the reasons for a 503."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from apps.web.health import Health
from apps.web.hub import Hub
from apps.web.metrics import Metrics

from ..test_watchdog import started
from . import told
from .conftest import Clock


@pytest.fixture
def health(clock: Clock) -> Health:
    """Health of a session that has seen one frame."""
    watchdog = started(clock)
    made = Health(watchdog)
    made.saw(told.captured(), told.status())
    made.counted(told.figures())
    return made


def test_frames_and_an_engine_that_takes_them_are_health(client: TestClient, health: Health, clock: Clock) -> None:
    clock.now += 4.9
    answer = client.get("/healthz")
    assert answer.status_code == 200 and answer.json()["ok"] is True and answer.json()["source"] == "camera 0"
    assert answer.json()["reason"] is None and answer.json()["num_processed"] == 3


@pytest.mark.parametrize("seconds", [5.1, 19.9])
def test_a_silent_source_is_a_503(client: TestClient, health: Health, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    health._watchdog.beat()
    answer = client.get("/healthz")
    assert answer.status_code == 503 and answer.json()["reason"] == f"no frame for {seconds:.0f} s"


def test_a_session_that_hangs_is_a_503(client: TestClient, health: Health, clock: Clock) -> None:
    clock.now += 21.0
    answer = client.get("/healthz")
    assert answer.status_code == 503 and answer.json()["reason"] == "the session has been hanging for 21 s"


def test_a_picture_that_stays_the_same_is_a_503_until_it_moves(client: TestClient, health: Health) -> None:
    health.counted(told.figures(still="the picture has not changed since 3.0 s"))
    answer = client.get("/healthz")
    assert answer.status_code == 503 and answer.json()["reason"] == "the picture has not changed since 3.0 s"
    health.counted(told.figures())
    assert client.get("/healthz").status_code == 200


def test_before_the_first_frame_and_after_the_end_it_is_a_503(client: TestClient, health: Health) -> None:
    health.happened(told.event("end", "the source ended"), told.captured())
    assert client.get("/healthz").json()["reason"] == "the session ended"
    health._has_ended = health._has_frames = False
    assert client.get("/healthz").json()["reason"] == "no frame yet"


def test_a_source_whose_name_is_no_unicode_is_told_too(client: TestClient, health: Health) -> None:
    health.counted(told.figures(source="caf\udce9.mp4", fps=float("inf")))
    answer = client.get("/healthz")
    assert answer.status_code == 200 and answer.json()["source"] == "caf\udce9.mp4" and answer.json()["fps"] is None


# -- metrics


def scraped(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample, by name and labels, as read by Prometheus' own parser."""
    text = metrics.text()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_counts_and_gauges_of_the_newest_figures() -> None:
    metrics = Metrics(lambda: 3, is_healthy=lambda: False)
    metrics.counted(told.figures(num_stale=2, num_rollovers=4, num_reconnects=5, queues={"webhook": 6}))
    metrics.happened(told.event("alert", alert="dog"))
    metrics.happened(told.event("alert", alert="cat"))
    found = scraped(metrics)
    expected = {
        "pvc_frames_seen_total": 4, "pvc_frames_processed_total": 3, "pvc_frames_dropped_total": 1,
        "pvc_frames_stale_total": 2, "pvc_rollovers_total": 4, "pvc_reconnects_total": 5, "pvc_answers_total": 0,
        "pvc_fps": 10, "pvc_context_rows": 12, "pvc_context_rows_limit": 64, "pvc_viewers": 3, "pvc_healthy": 0,
        "pvc_paused": 0,
    }  # fmt: skip
    assert {name: found[name, ()] for name in expected} == expected
    assert found["pvc_queue_length", (("queue", "webhook"),)] == 6
    assert found["pvc_events_total", (("kind", "alert"),)] == 2


def test_a_latency_is_counted_once_for_each_frame_and_each_answer() -> None:
    metrics = Metrics()
    for num_processed, num_answers in ((1, 0), (2, 0), (2, 0), (3, 1), (4, 1)):
        metrics.counted(
            told.figures(num_processed=num_processed, num_answers=num_answers, answer_latency_ms=700.0 * num_answers)
        )
    found = scraped(metrics)
    assert found["pvc_capture_to_context_seconds_count", ()] == 4
    assert found["pvc_capture_to_context_seconds_sum", ()] == pytest.approx(0.16)
    assert found["pvc_capture_to_context_seconds_bucket", (("le", "0.03"),)] == 0
    assert found["pvc_capture_to_context_seconds_bucket", (("le", "0.05"),)] == 4
    assert found["pvc_capture_to_answer_seconds_count", ()] == 1
    assert found["pvc_capture_to_answer_seconds_bucket", (("le", "1.0"),)] == 1


def test_before_the_first_frame_there_are_metrics_too() -> None:
    assert scraped(Metrics())["pvc_viewers", ()] == 0


def test_two_sessions_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.counted(told.figures())
    assert ("pvc_fps", ()) in scraped(first) and ("pvc_fps", ()) not in scraped(second)


def test_the_page_serves_them(client: TestClient, hub: Hub) -> None:
    hub.counted(told.figures())
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain") and "pvc_frames_processed_total 3.0" in answer.text
