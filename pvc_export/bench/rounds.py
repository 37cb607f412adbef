"""How benchmarks measure: one clock, interleaved rounds, quartiles, and the facts without which a figure is none.

Unusual: with one thread the clock is the CPU time of this process, which other programs on the machine hardly change;
with more threads it is wall time, since CPU time would count waiting threads as work. Every report says which.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from ..terminal import interrupt
from ..terminal.facts import installed

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median and quartiles of some milliseconds."""

    median_ms: float
    q1_ms: float
    q3_ms: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """At least one measurement; of a single one, all three are the same."""
        low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * list(seconds)
        return Spread(median_ms=1e3 * middle, q1_ms=1e3 * low, q3_ms=1e3 * high)


def clock(threads: int) -> Callable[[], float]:
    """Seconds: CPU time of this process at one thread, wall time otherwise."""
    return time.process_time if threads == 1 else time.perf_counter


def clock_name(threads: int) -> str:
    return "process CPU time" if threads == 1 else "wall time"


def interleave(
    steps: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    threads: int,
    look: Callable[[str, Any], None] = lambda name, result: None,
) -> dict[str, list[float]]:
    """Seconds of every step in every round. A machine whose speed drifts slows all of them alike.

    Each round runs each step once and starts one step further on. `look` sees every result, outside the clock.
    """
    now = clock(threads)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for round_index in range(rounds):
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            interrupt.check()
            started = now()
            result = steps[name]()
            seconds[name].append(now() - started)
            look(name, result)
            del result  # or freeing it would be part of the next step's time
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def environment(command: str, *, threads: int) -> dict[str, Any]:
    """Device, versions, command, date, clock and load: what every published figure needs."""
    return {
        "device": f"{cpu_name()}, {os.cpu_count()} cores, {threads} used",
        "clock": clock_name(threads),
        "versions": {"python": platform.python_version()} | installed(PACKAGES),
        "command": command,
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def describe_environment(facts: Mapping[str, Any]) -> list[str]:
    """`environment` for people: two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    load = "" if facts["load_average"] is None else f", load {facts['load_average']} before"
    return [
        f"{facts['device']}; {facts['clock']}{load}; {facts['date_utc']}",
        f"{versions}; {facts['command']}",
    ]


def cpu_name() -> str:
    """The processor's name, with family and model where Linux tells: a name alone may hide a generation."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not say (it is read from /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
