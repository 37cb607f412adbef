"""Number of ONNX Runtime threads per graph on the CPU: one if the graph is small, all cores if it is large.

Operations of a small graph finish before a second thread wakes up, and on a busy machine each operation waits for that
thread. For sizes in between it depends on the machine, so both are timed when the graph is opened. Figures:
docs/performance.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from .memory import Array, host_dtype
from .spec import GraphSpec

SessionT = TypeVar("SessionT")

SMALL_BYTES, LARGE_BYTES = 1 << 20, 128 << 20
"""Sizes of a graph with its weights. Outside these nothing is timed: there is nothing to gain, or too little memory."""
QUICK_S = 0.005
"""A graph that runs faster than this on one thread stays on one."""
NUM_ROUNDS = 3
GAIN = 1.1
"""Speed-up that all cores must reach: they take capacity that other streams and programs could use."""


def num_cores() -> int:
    """Cores this process may use; a container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_fitting(
    path: Path, open_with: Callable[[int], SessionT], run: Callable[[SessionT], object]
) -> tuple[int, SessionT]:
    """Choose the number of threads for the graph at `path`; return it and the session.

    open_with  opens the graph with that many threads;  run  runs a session once, on inputs of a typical size
    """
    cores, size = num_cores(), num_bytes(path)
    if cores == 1 or size < SMALL_BYTES:
        return 1, open_with(1)
    if size > LARGE_BYTES:
        return cores, open_with(cores)
    one = open_with(1)
    run(one)  # the first run allocates
    if _seconds(run, one) < QUICK_S:
        return 1, one
    many = open_with(cores)
    run(many)
    rounds = [(_seconds(run, one), _seconds(run, many)) for _ in range(NUM_ROUNDS)]
    alone, together = map(min, zip(*rounds, strict=True))
    return (cores, many) if alone > GAIN * together else (1, one)


def _seconds(run: Callable[[SessionT], object], session: SessionT) -> float:
    started = time.perf_counter()
    run(session)
    return time.perf_counter() - started


def num_bytes(path: Path) -> int:
    """Size of an ONNX file and the weights file next to it; 0 if there is none."""
    return sum(file.stat().st_size for file in (path, path.with_name(path.name + ".data")) if file.is_file())


def example_inputs(spec: GraphSpec) -> dict[str, Array]:
    """Inputs of a typical size for a trial run: nothing masked, all values finite."""
    sizes = {name: rng.opt for name, rng in spec.dims.items()}
    return {
        tensor.name: np.zeros(tensor.resolve(sizes), host_dtype(tensor.dtype))
        if "float" in tensor.dtype
        else np.ones(tensor.resolve(sizes), tensor.dtype)
        for tensor in spec.inputs
    }
