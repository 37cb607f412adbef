"""Cost of a bundle on this machine: rendered frames through its vision side, with the runtime only, without torch.

A stream must cost the same at its end as at its beginning, so two figures (time per frame, resident memory) are
measured early and late, and shown side by side. Rendering is not timed; resizing to the model's size is, since every
camera needs it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.bundle import ON_CPU, open_bundle
from engines.memory import Tensor
from engines.preprocess import to_model_frame
from engines.session import Session, Wrapped
from engines.sizes import resident_bytes
from engines.spec import VISION_GRAPHS
from engines.vision import VisionEncoder

from ..parity.clip import render_clip
from ..terminal import interrupt
from ..terminal.console import Console, size_text
from .rounds import Spread, clock, describe_environment, environment

EARLY_FRAME = 50
"""Frame at which a stream is warm: its caches have been used, and a window of up to 41 frames is full."""
NUM_AROUND = 20
MIN_FRAMES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The stream around one frame: time per frame over NUM_AROUND frames, and resident memory after the last one."""

    frame_index: int
    time: Spread
    resident_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamReport:
    """Cost per frame of a bundle's vision side. Times cover all frames from the first full window on.

    parts        milliseconds of `resize`, of each graph, and of `commit` (writing rows into the rings)
    frame        the whole frame, as a caller of the runtime waits for it
    frames_per_s 1000 / median of `frame`: the frame rate that this machine could sustain if it did nothing else
    state_bytes  bytes that each frame writes into the temporal rings
    computed_in  dtype in which the session computes, whatever the graph's dtype
    """

    bundle: str
    precision: str
    computed_in: str
    runs_on: str
    idle_engines: bool
    window: int
    num_frames: int
    parts: dict[str, Spread]
    frame: Spread
    frames_per_s: float
    state_bytes: int
    early: Moment
    late: Moment
    environment: dict[str, Any]

    @property
    def late_over_early(self) -> float:
        """Time of the late frames divided by that of the early ones: 1 for a stream of constant cost."""
        return self.late.time.median_ms / self.early.time.median_ms

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"late_over_early": self.late_over_early}


def bench_bundle(
    folder: Path, *, num_frames: int = 500, threads: int = 1, console: Console | None = None
) -> StreamReport:
    """Stream rendered frames to slightly past frame `num_frames`, at least MIN_FRAMES, and compare it with frame 50.

    Raises the errors of open_bundle, and ValueError for too few frames.
    """
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"{num_frames} frames are too few to compare beginning and end; expected at least {MIN_FRAMES}"
        )
    console = console or Console(quiet=True)
    facts = environment(f"pvc-export bench {folder} --frames {num_frames} --threads {threads}", threads=threads)
    with console.stage("open and verify"):
        bundle = open_bundle(folder, threads=threads)
    manifest, total = bundle.manifest, num_frames + NUM_AROUND // 2
    on_cpu, traffic = bundle.runs_on == ON_CPU, bundle.sessions["temporal"].memory.traffic
    timer = Timer(now=clock(threads) if on_cpu else time.perf_counter)  # a GPU works while this process does not
    facts |= {} if on_cpu else {"clock": "wall time", "device": bundle.runs_on}
    encoder = VisionEncoder(
        {name: Wrapped(bundle.sessions[name], timer.run) for name in VISION_GRAPHS},
        time_divisor=total if manifest.time_mode == "fixed" else 1,
    )
    # A line instead of a progress bar: a bar redraws from a thread of this process, whose CPU time is measured.
    console.print(f"  stream {total} frames")
    memory: list[int | None] = []
    for frame in render_clip(total):
        interrupt.check()
        with timer.part("frame"):
            with timer.part("resize"):
                model_frame = to_model_frame(frame, size=manifest.shape.image_size)
            encoded = encoder.encode(model_frame)
            with timer.part("commit"):
                encoder.commit(encoded)
        memory.append(resident_bytes())
    first = min(manifest.limits.window, total // 2)
    parts = {name: Spread.of(seconds[first:]) for name, seconds in timer.seconds.items()}
    frame_time = parts.pop("frame")
    return StreamReport(
        bundle=str(folder),
        precision=manifest.precision,
        computed_in=bundle.sessions["trunk"].computes_in,
        runs_on=bundle.runs_on,
        idle_engines=on_cpu and bool(manifest.engines),
        window=manifest.limits.window,
        num_frames=total,
        parts={name: parts[name] for name in ("resize", *VISION_GRAPHS, "commit")},
        frame=frame_time,
        frames_per_s=1e3 / frame_time.median_ms,
        state_bytes=traffic.state // total,
        early=_moment(EARLY_FRAME, timer.seconds["frame"], memory),
        late=_moment(num_frames, timer.seconds["frame"], memory),
        environment=facts,
    )


def describe_stream(report: StreamReport) -> list[str]:
    """The report as lines of text."""
    lines = [
        f"{report.bundle}: {report.precision} graphs, run on {report.runs_on}, computed in {report.computed_in}"
        + ("" if not report.idle_engines else "; the bundle's engines were not executed"),
        f"{report.num_frames} frames, window {report.window}",
        "",
        f"{'':<14}{'ms':>9}{'quartiles':>20}",
    ]
    for name, spread in (*report.parts.items(), ("whole frame", report.frame)):
        lines.append(f"{name:<14}{spread.median_ms:>9.2f}{f'{spread.q1_ms:.2f} - {spread.q3_ms:.2f}':>20}")
    early, late = report.early, report.late
    return [
        *lines,
        "",
        f"{report.frames_per_s:.1f} frames per second if nothing else runs; the language model is not included",
        f"{size_text(report.state_bytes)} ({report.state_bytes} bytes) written to state per frame",
        f"frame {early.frame_index}: {early.time.median_ms:.2f} ms, {_resident(early)} resident; "
        f"frame {late.frame_index}: {late.time.median_ms:.2f} ms, {_resident(late)} resident; "
        f"ratio {report.late_over_early:.3f} (medians of {NUM_AROUND} frames around each)",
        "",
        *describe_environment(report.environment),
    ]


class Timer:
    """Seconds by name, one entry per use."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block and add it under `name`, if it ends without an error."""
        started = self._now()
        yield
        self.seconds[name].append(self._now() - started)

    def run(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a session and add its time under its graph's name."""
        with self.part(session.spec.name):
            return session.run(inputs)


def _moment(frame_index: int, seconds: list[float], memory: list[int | None]) -> Moment:
    around = slice(frame_index - NUM_AROUND // 2, frame_index + NUM_AROUND // 2)
    return Moment(frame_index=frame_index, time=Spread.of(seconds[around]), resident_bytes=memory[around][-1])


def _resident(moment: Moment) -> str:
    return "unknown memory" if moment.resident_bytes is None else size_text(moment.resident_bytes)
