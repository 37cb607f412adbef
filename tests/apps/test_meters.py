"""Meters: rates, latencies and drops are exact, on a fake clock."""

from __future__ import annotations

import pytest

from apps.capture import Captured
from apps.meters import KEPT, WINDOW, Meter

from .fakes import picture


def captured(index: int, at: float) -> Captured:
    return Captured(bgr=picture(1), index=index, time_s=at, captured_at=at)


def test_rate_and_latency_are_of_the_frames_that_the_model_saw() -> None:
    meter = Meter()
    for index, latency_s in enumerate([0.010, 0.020, 0.030, 0.040]):
        meter.add(captured(index, at=index * 0.5), done_at=index * 0.5 + latency_s)
    assert meter.fps == pytest.approx(3 / 1.53) and meter.latency_ms == pytest.approx(40.0)
    summary = meter.summary()
    assert summary["fps"] == pytest.approx(3 / 1.53, abs=0.01)
    assert summary["latency_median_ms"] == pytest.approx(25.0) and summary["latency_p95_ms"] == pytest.approx(38.5)


def test_gaps_are_drops_and_what_came_before_the_first_frame_is_not() -> None:
    meter = Meter()
    for index in (7, 8, 11, 20):
        meter.add(captured(index, at=float(index)), done_at=float(index))
    assert (meter.num_processed, meter.num_dropped, meter.summary()["num_seen"]) == (4, 10, 14)


def test_the_overlay_s_rate_follows_a_change_within_its_window() -> None:
    meter, now = Meter(), 0.0
    for index in range(100):
        now += 1.0 if index < 60 else 0.1
        meter.add(captured(index, at=now), done_at=now)
    assert WINDOW < 40 and meter.fps == pytest.approx(10.0)
    assert meter.summary()["fps"] == pytest.approx(99 / (59 + 4), abs=0.01)


def test_nothing_seen_is_no_division_by_zero() -> None:
    meter = Meter()
    assert meter.fps == 0.0 and meter.summary()["fps"] == 0.0 and meter.summary()["latency_median_ms"] == 0.0
    meter.add(captured(0, at=0.0), done_at=0.1)
    assert meter.fps == 0.0 and meter.summary()["num_processed"] == 1


def test_memory_does_not_grow_with_the_session() -> None:
    meter = Meter()
    for index in range(KEPT + 50):
        meter.add(captured(index, at=float(index)), done_at=float(index))
    assert len(meter._latencies_ms) == KEPT and len(meter._done_at) == WINDOW
