"""The load on one process, and its outcome: the same types for a simulation and for a real run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["frame", "question", "save"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One request. at_s: seconds since the run began."""

    at_s: float
    camera: int
    kind: Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """`cameras` with `fps` frames per second and `questions` per minute each, for `seconds`.

    save_every  frames between saves of a stream to a file; 0: never
    is_random   arrivals are random (a Poisson process) instead of regular, to compare with closed formulas
    """

    cameras: int
    fps: float
    questions: float = 0.0
    seconds: float = 20.0
    save_every: int = 0
    seed: int = 0
    is_random: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for values that are not a load."""
        if self.cameras < 1 or not self.fps > 0 or not self.seconds > 0 or self.questions < 0 or self.save_every < 0:
            raise ValueError(f"not a valid load: {self}; expected cameras, fps and seconds above 0, the rest 0 or more")

    def arrivals(self) -> list[Arrival]:
        """All arrivals in order of time, equal for equal loads. Each camera and each questioner starts at another
        moment."""
        chance, found = random.Random(self.seed), list[Arrival]()
        for camera in range(self.cameras):
            times = self._times(chance, 1 / self.fps)
            found += (Arrival(at_s=at, camera=camera, kind="frame") for at in times)
            if self.save_every:
                later = times[self.save_every - 1 :: self.save_every]
                found += (Arrival(at_s=at, camera=camera, kind="save") for at in later)
            if self.questions:
                asked = self._times(chance, 60 / self.questions)
                found += (Arrival(at_s=at, camera=camera, kind="question") for at in asked)
        return sorted(found, key=lambda arrival: arrival.at_s)

    def _times(self, chance: random.Random, period: float) -> list[float]:
        at = chance.expovariate(1 / period) if self.is_random else chance.uniform(0, period)
        times = []
        while at < self.seconds:
            times.append(at)
            at += chance.expovariate(1 / period) if self.is_random else period
        return times


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a load. All times in seconds.

    latencies    per frame not dropped, from arrival until it is in its stream
    first_token  per question, from arrival until its answer's first token
    answers      per question, from arrival until its answer is complete
    busy         the part of `elapsed` in which the streams' thread computed
    failed       frames and questions that ended in an error; `why` is the last error
    by_camera    frames in each stream
    """

    cameras: int
    offered: int = 0
    dropped: int = 0
    asked: int = 0
    failed: int = 0
    why: str = ""
    saved: int = 0
    tokens: int = 0
    busy: float = 0.0
    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    by_camera: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_camera = self.by_camera or [0] * self.cameras

    def fail(self, error: BaseException) -> None:
        self.failed, self.why = self.failed + 1, str(error).partition("\n")[0]

    @property
    def dropped_share(self) -> float:
        return self.dropped / max(1, self.offered)

    @property
    def utilisation(self) -> float:
        return self.busy / max(self.elapsed, 1e-9)

    def figures(self) -> dict[str, Any]:
        """Figures in milliseconds and shares; NaN if nothing was measured."""
        return {
            "cameras": self.cameras,
            "utilisation": self.utilisation,
            "dropped": self.dropped_share,
            "frame_p50_ms": 1e3 * percentile(self.latencies, 50),
            "frame_p99_ms": 1e3 * percentile(self.latencies, 99),
            "first_token_p50_ms": 1e3 * percentile(self.first_token, 50),
            "first_token_p99_ms": 1e3 * percentile(self.first_token, 99),
            "num_frames": len(self.latencies),
            "num_answers": len(self.answers),
            "failed": self.failed,
            "why": self.why,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile; NaN for no values."""
    return float(np.percentile(values, share)) if len(values) else float("nan")
