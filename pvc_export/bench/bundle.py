"""The cost of a bundle on this machine: rendered frames through its vision side, by the runtime alone, without torch.

A stream must cost at its end what it cost at its beginning, so the same two figures (time of a frame, resident memory)
are taken early and late, and shown side by side. Frames are rendered outside the clock; the resize to the model's size
is inside it, since every camera needs it.
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
"""Where a stream is warm: its caches are touched, and a window of up to 41 frames is full."""
NUM_AROUND = 20
MIN_FRAMES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The stream around one of its frames: the time of a frame, over NUM_AROUND of them, and memory behind the last."""

    frame_index: int
    time: Spread
    resident_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamReport:
    """What the vision side of a bundle costs a frame. Times are of all frames from the first full window on.

    parts        milliseconds of `resize`, of each graph, and of `commit` (rows into their rings)
    frame        all of it together, as a caller of the runtime waits for it
    frames_per_s 1000 / median of `frame`: what this machine could follow if it did nothing else
    state_bytes  bytes that a frame writes into the temporal rings
    computed_in  what the session computes in, whatever the graph's own dtype
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
        """How many times the early frames' time the late ones take: 1 for a flat stream."""
        return self.late.time.median_ms / self.early.time.median_ms

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"late_over_early": self.late_over_early}


def bench_bundle(
    folder: Path, *, num_frames: int = 500, threads: int = 1, console: Console | None = None
) -> StreamReport:
    """Stream rendered frames up to a little past frame `num_frames`, at least MIN_FRAMES, and compare it with frame 50.

    Raises what open_bundle raises, and ValueError for too few frames.
    """
    if num_frames < MIN_FRAMES:
        raise ValueError(f"{num_frames} frames have no beginning and end to compare; expected at least {MIN_FRAMES}")
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
    # A line and no bar: a bar redraws from a thread of this process, whose CPU time is being measured.
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
    """The report for people."""
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
        f"{report.frames_per_s:.1f} frames per second if nothing else ran; the language model is not part of this",
        f"{size_text(report.state_bytes)} ({report.state_bytes} bytes) written into state per frame",
        f"frame {early.frame_index}: {early.time.median_ms:.2f} ms, {_resident(early)} resident; "
        f"frame {late.frame_index}: {late.time.median_ms:.2f} ms, {_resident(late)} resident; "
        f"{report.late_over_early:.3f} times (medians of {NUM_AROUND} frames around each)",
        "",
        *describe_environment(report.environment),
    ]


class Timer:
    """Seconds by name, one entry a use."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A block whose time is added under `name` when it ends without an error."""
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
