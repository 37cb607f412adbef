"""Benchmark timing: one clock, interleaved rounds, quartiles, and the context that every published figure needs.

With one thread the clock is this process's CPU time, which other programs hardly change; with more threads it is wall
time, since CPU time would count waiting threads as work. Every report names its clock. Nothing here loads torch, so a
bundle can be measured without it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import fmean, median, quantiles
from typing import Any, TypeVar

from ..terminal import interrupt
from ..terminal.facts import cpu_name, installed

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median and quartiles, in milliseconds."""

    median_ms: float
    q1_ms: float
    q3_ms: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """From at least one measurement; with only one, all three values are equal."""
        low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * list(seconds)
        return Spread(median_ms=1e3 * middle, q1_ms=1e3 * low, q3_ms=1e3 * high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocked:
    """The result of a run in another process, and its seconds by that process's clock."""

    result: Any
    seconds: float


def clock(threads: int) -> Callable[[], float]:
    """Seconds: CPU time of this process at one thread, wall time otherwise."""
    return time.process_time if threads == 1 else time.perf_counter


def interleave(
    runs: Mapping[Key, Callable[[], Any]],
    *,
    rounds: int,
    threads: int,
    look: Callable[[Key, Any], None] = lambda key, result: None,
    in_a_row: Mapping[Key, int] | None = None,
) -> dict[Key, list[float]]:
    """Seconds of every run in every round. If the machine's speed drifts, it slows all runs alike.

    Each round executes each run once, starting with the next run each time. A run named in `in_a_row` is executed once
    untimed, then that many times, and the mean counts. `look` gets every result, outside the clock.
    """
    now, in_a_row = clock(threads), in_a_row or {}
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    keys = list(runs)
    for round_index in range(rounds):
        first = round_index % len(keys)
        for key in keys[first:] + keys[:first]:
            times = []
            for _ in range(1 + in_a_row[key] if key in in_a_row else 1):
                interrupt.check()
                started = now()
                result = runs[key]()
                took = now() - started
                if isinstance(result, Clocked):
                    result, took = result.result, result.seconds
                times.append(took)
                look(key, result)
                del result  # or freeing it would be part of the next run's time
            seconds[key].append(fmean(times[1:] or times))
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The speed-up: median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def environment(command: str, *, threads: int) -> dict[str, Any]:
    """Device, versions, command, date, clock and load: the context of a published figure."""
    return {
        "device": f"{cpu_name()}, {os.cpu_count()} cores, {threads} used",
        "clock": "process CPU time" if threads == 1 else "wall time",
        "versions": {"python": platform.python_version()} | installed(PACKAGES),
        "command": command,
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def describe_environment(facts: Mapping[str, Any]) -> list[str]:
    """`environment` as two lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    load = "" if facts["load_average"] is None else f", load {facts['load_average']} before"
    return [f"{facts['device']}; {facts['clock']}{load}; {facts['date_utc']}", f"{versions}; {facts['command']}"]
