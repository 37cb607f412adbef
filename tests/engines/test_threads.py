"""The number of CPU threads per graph: by its size or by measurement, and the same bits with any number."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_bundle, threads
from engines.session import OrtSession
from engines.threads import LARGE_BYTES, SMALL_BYTES, num_cores, open_fitting

CORES = 8
PATH = Path("a.onnx")


class Machine:
    """Eight cores, and a graph of this size that takes this long with one thread and with all."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, size: int, alone_s: float = 0.0, together_s: float = 0.0
    ) -> None:
        self._seconds = {1: alone_s, CORES: together_s}
        self.now, self.opened, self.num_runs = 0.0, list[int](), 0
        monkeypatch.setattr(threads, "num_cores", lambda: CORES)
        monkeypatch.setattr(threads, "num_bytes", lambda path: size)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def chosen(self) -> int:
        def open_with(count: int) -> int:
            self.opened.append(count)
            return count

        def run(session: int) -> None:
            self.now += self._seconds[session]
            self.num_runs += 1

        count, session = open_fitting(PATH, open_with, run)
        assert count == session
        return count


@pytest.mark.parametrize(("size", "count"), [(SMALL_BYTES - 1, 1), (LARGE_BYTES + 1, CORES)], ids=["small", "large"])
def test_where_the_size_decides_nothing_is_tried(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, size)
    assert machine.chosen() == count and machine.opened == [count] and machine.num_runs == 0


def test_what_one_thread_does_in_a_moment_is_not_opened_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, SMALL_BYTES, alone_s=0.004)
    assert machine.chosen() == 1 and machine.opened == [1]


@pytest.mark.parametrize(
    ("together_s", "count"), [(0.05, CORES), (0.097, 1), (0.2, 1)], ids=["faster", "hardly faster", "slower"]
)
def test_in_between_all_cores_are_taken_where_they_gain(
    together_s: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, LARGE_BYTES, alone_s=0.1, together_s=together_s)
    assert machine.chosen() == count and machine.opened == [1, CORES]


def test_on_one_core_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, LARGE_BYTES + 1)
    monkeypatch.setattr(threads, "num_cores", lambda: 1)
    assert machine.chosen() == 1 and machine.num_runs == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_that_this_process_may_not_use_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)


def test_who_names_a_number_gets_it_for_every_graph(bundle_fp32: Path) -> None:
    assert set(open_bundle(bundle_fp32, threads=2).threads.values()) == {2}
    assert set(open_bundle(bundle_fp32).threads) == set(open_bundle(bundle_fp32).manifest.graphs)


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_a_trial_runs_every_graph_of_a_bundle(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, by rows, in half precision: the graph must accept its trial inputs, whatever is chosen."""
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "SMALL_BYTES", 0)
    monkeypatch.setattr(threads, "QUICK_S", 0.0)
    tried, run = list[str](), OrtSession._try

    def noted(self: OrtSession, session: Any, inputs: Any) -> None:
        tried.append(self.spec.name)
        run(self, session, inputs)

    monkeypatch.setattr(OrtSession, "_try", noted)
    bundle = open_bundle(request.getfixturevalue(name), runtime="cpu")
    assert set(tried) == set(bundle.manifest.graphs) and set(bundle.threads.values()) <= {1, 2}


def test_a_stream_is_the_same_bit_for_bit_with_any_number_of_threads(
    bundle_fp32: Path, frames: list[np.ndarray]
) -> None:
    said = []
    for count in (1, 2, 3):
        stream = PVCStream(open_bundle(bundle_fp32, threads=count))
        for frame in frames:
            stream.push(frame)
        rings = {key: ring.tobytes() for key, ring in stream.vision.ring.dump().items()}
        said.append((rings, stream.score("What moves?", [3, 4, 5]).tobytes()))
    assert said[0] == said[1] == said[2]
