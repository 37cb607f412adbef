"""Streams side by side: each runs its step on its own thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream
from engines.errors import StreamError
from engines.fake import RecordingCuda
from engines.many.scheduler import Scheduler
from engines.many.side_by_side import SideBySide
from engines.memory import DeviceMemory

from ..exact import exact_bundle


def test_steps_run_at_the_same_time_and_a_round_ends_with_the_last(tmp_path: Path) -> None:
    meeting, met = threading.Barrier(2, timeout=10), list[int]()
    with SideBySide(exact_bundle(tmp_path), workers=2) as together:
        together.run([lambda: met.append(meeting.wait()) for _ in range(4)])
        together.run([lambda: met.append(7)])
    assert len(met) == 5 and met[-1] == 7


def test_streams_side_by_side_say_what_each_says_alone(tmp_path: Path) -> None:
    bundle, frames = exact_bundle(tmp_path), np.random.default_rng(0).integers(0, 256, (4, 5, 9, 9, 3), np.uint8)
    with SideBySide(bundle, workers=2) as together:
        scheduler = Scheduler(together, max_streams=4)
        handles = [scheduler.open() for _ in range(4)]
        asked = []
        for handle, shown in zip(handles, frames, strict=True):
            for frame in shown[:4]:
                handle.push(frame)
            asked.append(handle.ask("a?", max_new_tokens=3))
        answers = [each.result(10).token_ids for each in asked]
        scheduler.close()
    for shown, said in zip(frames, answers, strict=True):
        alone = PVCStream(bundle)
        for frame in shown[:4]:
            alone.push(frame)
        assert alone.ask("a?", max_new_tokens=3).token_ids == said


def test_a_gpu_takes_one_call_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="one call at a time"):
        SideBySide(exact_bundle(tmp_path, memory=DeviceMemory(RecordingCuda())))
