"""A recording in segments of one second, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.segments import SegmentedRecorder

FPS = 10.0
Open = Callable[..., SegmentedRecorder]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Iterator[Open]:
    made: list[SegmentedRecorder] = []

    def start(**bounds: Any) -> SegmentedRecorder:
        known: dict[str, Any] = {"source_fps": FPS, "trouble": said.append, "segment_s": 1.0} | bounds
        made.append(SegmentedRecorder(tmp_path / "rec", **known))
        return made[-1]

    yield start
    for recorder in made:
        recorder.close()
