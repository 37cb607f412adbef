"""Soak test: 100,000 synthetic frames through live sessions, checked for memory growth, slowdown and worse answers.

python -m apps.soak BUNDLE OUT [--frames N]. Every frame is drawn as for a window, and none may be dropped.
Four parts run one after another in one process with one bundle, each in its own session:

scenes   contexts are forgotten between scenes, so that every answer is graded                     3/8 of the frames
endless  no resets: the stream continues from its last frames when the trained time is used up     1/5
small    the same with a small context, which is full long before that                             1/20
again    the scenes of the first part again: every answer must be identical                        3/8

Writes OUT/soak.json and, if matplotlib is installed, OUT/soak.png. Exit code 3 if a rule fails.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engines import Bundle, PVCStream, open_bundle
from engines.signals import Signals
from engines.sizes import resident_bytes
from engines.synthetic import Frame

from .capture import Captured, EveryFrame
from .listeners import Commands, Event
from .live import QUESTION
from .meters import Meter
from .overlay import Status
from .report import Log
from .session import LiveSession
from .switching import Switching
from .synthetic import SyntheticDevice
from .triggers import Schedule
from .watcher import Watcher
from .window import Window

EVERY = 250
"""Frames between two samples."""
PARTS = {"scenes": 0.375, "endless": 0.2, "small": 0.05, "again": 0.375}
"""Each part's share of the frames."""
WARM_UP = 0.1
"""Share of the frames after which memory must no longer grow."""
SMALL_CONTEXT = 10
"""Number of frames that fit in the small context; the model was trained on more."""
SIZE = 224
"""Size of the pictures: rendering larger ones would take most of the time."""
MAX_GROWTH = 0.01
NUM_COMPARED = 1000
"""Number of answers at the beginning and at the end for which the share of right ones is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A sample after num_frames frames of all parts: the process's memory in bytes, and the median frame time."""

    part: str
    num_frames: int
    resident: int
    frame_ms: float
    num_rollovers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A session's result. said: every question with its answer, in order; right: the grades of the graded answers."""

    name: str
    num_frames: int
    num_dropped: int
    num_anchors: int
    num_restarts: int
    said: tuple[tuple[str, str], ...]
    right: tuple[bool, ...]


class Rule(NamedTuple):
    what: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """All parts, and the samples over all of them."""

    parts: tuple[Part, ...]
    samples: tuple[Sample, ...]
    seconds: float

    @property
    def num_frames(self) -> int:
        return sum(part.num_frames for part in self.parts)

    def rules(self) -> list[Rule]:
        first, endless, small, again = self.parts
        dropped, resident = sum(part.num_dropped for part in self.parts), self._resident()
        growth = resident[1] / resident[0] - 1
        same = sum(a == b for a, b in zip(first.said, again.said, strict=False))
        return [
            Rule("no frame is dropped", dropped == 0, f"{dropped} of {self.num_frames}"),
            Rule(
                "memory is flat after the warm-up", growth <= MAX_GROWTH,
                f"{resident[0] / 2**20:.1f} MiB, at the end {resident[1] / 2**20:.1f} MiB: {100 * growth:+.2f} %",
            ),
            Rule(
                "the same scenes get the same answers at the end",
                same == len(first.said) == len(again.said) > 0, f"{same} of {len(first.said)}",
            ),
            *(
                Rule(
                    f"{part.name}: only rollovers, and those often enough",
                    part.num_restarts == 0 and part.num_anchors >= part.num_frames / 25,
                    f"{part.num_anchors} rollovers and {part.num_restarts} resets in {part.num_frames} frames",
                )
                for part in (endless, small)
            ),
        ]  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Ready for JSON."""
        by_part = {part.name: [s.frame_ms for s in self.samples if s.part == part.name] for part in self.parts}
        graded = [right for part in self.parts for right in part.right]
        return {
            "num_frames": self.num_frames,
            "seconds": round(self.seconds, 1),
            "frames_per_s": round(self.num_frames / self.seconds, 1),
            "frame_ms": {name: round(float(np.median(times)), 2) for name, times in by_part.items() if times},
            "frame_ms_first": _median(self.samples[:4]),
            "frame_ms_last": _median(self.samples[-4:]),
            "num_answers": sum(len(part.said) for part in self.parts),
            "right_first": _share(graded[:NUM_COMPARED]),
            "right_last": _share(graded[-NUM_COMPARED:]),
            "rollovers": {part.name: part.num_anchors for part in self.parts},
            "resets": {part.name: part.num_restarts for part in self.parts},
            "right": {part.name: _share(part.right) for part in self.parts},
            "rules": [rule._asdict() for rule in self.rules()],
        }

    def _resident(self) -> tuple[float, float]:
        """Median memory of the first tenth of the samples after the warm-up, and of the last tenth."""
        kept = [s.resident for s in self.samples if s.num_frames >= WARM_UP * self.num_frames]
        some = max(len(kept) // 10, 1)
        return float(np.median(kept[:some])), float(np.median(kept[-some:]))


def _median(samples: Sequence[Sample]) -> float:
    return round(float(np.median([sample.frame_ms for sample in samples])), 2)


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None


def run_soak(bundle: Bundle, num_frames: int, say: Callable[[str], None] = print) -> Soak:
    """Run all parts. Needs a bundle of the model trained on the synthetic scenes."""
    samples: list[Sample] = []
    parts, started = [], time.monotonic()
    for name, share in PARTS.items():
        part = _run_part(bundle, name, round(share * num_frames), samples)
        say(f"{name:8} {part.num_frames} frames, {part.num_anchors} rollovers, right {_share(part.right)}")
        parts.append(part)
    return Soak(parts=tuple(parts), samples=tuple(samples), seconds=time.monotonic() - started)


def _run_part(bundle: Bundle, name: str, num_frames: int, samples: list[Sample]) -> Part:
    source = EveryFrame(SyntheticDevice(seed=0 if name in ("scenes", "again") else 1, size=SIZE), paced=False)
    watcher = Watcher(
        bundle, QUESTION, trigger=Schedule(0.0), max_new_tokens=32, whole_scenes=name in ("scenes", "again"),
        stream=_small_stream(bundle) if name == "small" else None,
    )  # fmt: skip
    follower = Follower(part=name, watcher=watcher, samples=samples)
    session = LiveSession(
        source=source, watcher=watcher, meter=Meter(), log=Quiet(as_json=True), signals=Signals(), listener=follower,
        commands=Commands(), switching=Switching(lambda _: source), window=Canvas(), max_frames=num_frames,
    )  # fmt: skip
    session.run()
    source.close()
    if session.error is not None:
        raise session.error
    return Part(
        name=name,
        num_frames=session.meter.num_processed,
        num_dropped=session.meter.num_dropped + num_frames - session.meter.num_processed,
        num_anchors=watcher.num_rollovers - watcher.num_restarts,
        num_restarts=watcher.num_restarts,
        said=tuple(follower.said_so_far),
        right=tuple(follower.right),
    )


def _small_stream(bundle: Bundle) -> PVCStream:
    """A stream with all context reserved except room for SMALL_CONTEXT frames."""
    rows = PVCStream(bundle).rows_needed(SMALL_CONTEXT, question="", max_new_tokens=0)
    return PVCStream(bundle, clock="reanchor", reserve=bundle.manifest.limits.context - rows)


class Quiet(Log):
    """A log that prints nothing: there are thousands of answers."""

    def say(self, text: str) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


class Canvas(Window):
    """A window that discards what is drawn."""

    def __init__(self) -> None:
        pass

    def show(self, frame_bgr: Frame) -> None:
        pass

    def key(self) -> str:
        return ""


@dataclass(kw_only=True)
class Follower:
    """A Listener that takes a sample every EVERY frames, over all parts."""

    part: str
    watcher: Watcher
    samples: list[Sample]
    said_so_far: list[tuple[str, str]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    _times_ms: list[float] = field(default_factory=list)
    _num_frames: int = 0
    _index: int = -1
    _at: float = field(default_factory=time.monotonic)

    def saw(self, captured: Captured, status: Status) -> None:
        if captured.index == self._index:
            return  # shown again, with its answer
        self._index = captured.index
        now = time.monotonic()
        self._times_ms.append(1e3 * (now - self._at))
        self._at = now
        if len(self._times_ms) == EVERY:
            before = self.samples[-1].num_frames if self.samples else 0
            self.samples.append(
                Sample(
                    part=self.part, num_frames=before + EVERY, resident=resident_bytes() or 0,
                    frame_ms=float(np.median(self._times_ms)), num_rollovers=self.watcher.num_rollovers,
                )
            )  # fmt: skip
            self._times_ms.clear()

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        reply = self.watcher.last_reply
        if event.kind == "answer" and reply is not None:
            self.said_so_far.append((reply.question, reply.text))
            if reply.grade.is_right is not None:
                self.right.append(reply.grade.is_right)

    def close(self) -> None:
        pass


def draw(soak: Soak, path: Path) -> None:
    """Plot memory and time per frame over all frames. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (memory, times) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5), layout="constrained")
    frames = [sample.num_frames for sample in soak.samples]
    memory.plot(frames, [sample.resident / 2**20 for sample in soak.samples], color="tab:blue")
    memory.set(ylabel="memory, MiB", ylim=(0, None), title=f"{soak.num_frames:,} frames")
    times.plot(frames, [sample.frame_ms for sample in soak.samples], color="tab:orange")
    times.set(ylabel=f"ms per frame, median of {EVERY}", ylim=(0, None), xlabel="frames")
    end = 0
    for part in soak.parts:
        for axes in (memory, times):
            axes.axvline(end, color="grey", lw=0.6)
        memory.annotate(part.name, (end, 0), xytext=(4, 4), textcoords="offset points")
        end += part.num_frames
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = ArgumentParser(prog="python -m apps.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by pvc-export")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for soak.json and soak.png")
    parser.add_argument("--frames", type=int, default=100_000, help="frames in all; default: 100000")
    told = parser.parse_args()
    soak = run_soak(open_bundle(told.bundle), told.frames)
    told.out.mkdir(parents=True, exist_ok=True)
    samples = [asdict(sample) for sample in soak.samples]
    text = json.dumps({**soak.figures(), "samples": samples}, indent=1)
    (told.out / "soak.json").write_text(text + "\n", encoding="utf-8")
    with suppress(ImportError):
        draw(soak, told.out / "soak.png")
    for rule in soak.rules():
        print(f"{'ok  ' if rule.passed else 'FAIL'} {rule.what}: {rule.detail}")
    return 0 if all(rule.passed for rule in soak.rules()) else 3


if __name__ == "__main__":
    raise SystemExit(main())
