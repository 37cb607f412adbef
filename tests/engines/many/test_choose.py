"""The way a bundle's streams run together: in shared passes, side by side, or one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.fake import RecordingCuda
from engines.many import choose
from engines.many.choose import together_for
from engines.many.passes import Passes
from engines.many.scheduler import OneByOne
from engines.many.side_by_side import SideBySide
from engines.memory import DeviceMemory

from ..exact import LIMITS, exact_bundle


def test_a_bundle_for_several_streams_takes_passes_wherever_it_runs(tmp_path: Path) -> None:
    several = replace(LIMITS, streams=3)
    for memory in (None, DeviceMemory(RecordingCuda())):
        together = together_for(exact_bundle(tmp_path, limits=several, memory=memory), max_streams=2)
        assert isinstance(together, Passes) and together.most == 3


def test_one_for_one_stream_takes_them_side_by_side_on_a_cpu_of_several_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "num_cores", lambda: 2)
    assert isinstance(together_for(exact_bundle(tmp_path), max_streams=2), SideBySide)
    on_gpu = exact_bundle(tmp_path, memory=DeviceMemory(RecordingCuda()))
    assert isinstance(together_for(on_gpu, max_streams=2), OneByOne)
    monkeypatch.setattr(choose, "num_cores", lambda: 1)
    assert isinstance(together_for(exact_bundle(tmp_path), max_streams=2), OneByOne)
