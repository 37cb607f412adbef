"""A Service over streams of this process, with a whole-number model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.serving.local import LocalLimits, LocalService
from engines.bundle import Bundle
from engines.many.scheduler import Scheduler

from ....engines.exact import exact_bundle
from .streams import Slow


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return exact_bundle(tmp_path, trained_frames=6)


@pytest.fixture
def slow(bundle: Bundle) -> Slow:
    return Slow(bundle)


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def service(slow: Slow, now: list[float]) -> Iterator[LocalService]:
    limits = LocalLimits(sessions=3, answers=2, waiting=2, idle_s=60.0)
    scheduler = Scheduler(slow, max_streams=5)
    yield LocalService(scheduler, limits=limits, clock=lambda: now[0])
    slow.gate.set()
    scheduler.close()
