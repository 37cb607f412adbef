"""Time to an answer's first token, with and without frames arriving: the cost of the video to a question.

python -m apps.first_token BUNDLE [--fps 10] [--questions 200]. One live session, as pvc-live runs it. Questions come at
random moments: ten while frames arrive at --fps, then ten without frames, and so on, both in one run.
"""

from __future__ import annotations

import json
import random
import time
from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

import numpy as np

from engines import Bundle, open_bundle
from engines.errors import MediaError
from engines.signals import Signals
from engines.synthetic import Frame

from .addresses import Address
from .capture import Captured, Source
from .devices import Device
from .listeners import Ask, Commands, Event
from .live import QUESTION
from .meters import Meter
from .overlay import Status
from .session import LiveSession
from .soak import Quiet
from .switching import Switching
from .synthetic import SyntheticDevice
from .triggers import OnTrigger
from .watcher import Watcher

IN_A_ROW = 10
"""Number of questions with frames, followed by as many without."""
PAUSE_S = (0.2, 0.5)
"""Between an answer and the next question."""
NUM_PICTURES, SIZE = 64, 224


@dataclass(kw_only=True)
class Pictures:
    """A Source of pre-drawn pictures, at `fps` while `is_on`."""

    fps: float
    pictures: list[Frame]
    device: Device
    is_on: bool = True
    waits: bool = False
    ended: bool = False
    _index: int = 0
    _due_at: float = field(default_factory=time.monotonic)

    def take(self, timeout_s: float) -> Captured | None:
        now = time.monotonic()
        if self.ended or not self.is_on or self._due_at - now > timeout_s:
            time.sleep(timeout_s)
            return None
        time.sleep(max(self._due_at - now, 0.0))
        now = time.monotonic()
        self._due_at = max(self._due_at + 1 / self.fps, now)
        self._index += 1
        picture = self.pictures[self._index % len(self.pictures)]
        return Captured(bgr=picture, scene=None, index=self._index - 1, time_s=now, captured_at=now)

    def close(self) -> None:
        pass


@dataclass(kw_only=True)
class Asker:
    """A Listener that asks the next question a while after each answer, and records the time to its first token."""

    commands: Commands
    source: Pictures
    num_questions: int
    with_frames_ms: list[float] = field(default_factory=list)
    without_ms: list[float] = field(default_factory=list)
    _asked_at: float | None = None
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def begin(self) -> None:
        Timer(self._random.uniform(*PAUSE_S), self._ask).start()

    def saw(self, captured: Captured, status: Status) -> None:
        pass

    def said(self, question: str, text: str) -> None:
        if text and self._asked_at is not None:
            times = self.with_frames_ms if self.source.is_on else self.without_ms
            times.append(1e3 * (time.monotonic() - self._asked_at))
            self._asked_at = None

    def happened(self, event: Event, captured: Captured) -> None:
        if event.kind != "answer":
            return
        num_asked = len(self.with_frames_ms) + len(self.without_ms)
        self.source.is_on = num_asked // IN_A_ROW % 2 == 0
        self.source.ended = num_asked >= self.num_questions
        if not self.source.ended:
            self.begin()

    def close(self) -> None:
        pass

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        self.commands.put(Ask(question=QUESTION))


def measure(bundle: Bundle, *, fps: float, num_questions: int) -> dict[str, dict[str, float]]:
    """Milliseconds until the first token: percentiles 50, 90 and 99, for `with frames` and `without`."""
    device = SyntheticDevice(seed=0, size=SIZE)
    shown = (device.read() for _ in range(NUM_PICTURES))
    source = Pictures(fps=fps, device=device, pictures=[each.bgr for each in shown if each is not None])
    commands = Commands()
    asker = Asker(commands=commands, source=source, num_questions=num_questions)
    session = LiveSession(
        source=source, watcher=Watcher(bundle, QUESTION, trigger=OnTrigger(), max_new_tokens=32), meter=Meter(),
        log=Quiet(as_json=True), signals=Signals(), listener=asker, commands=commands,
        switching=Switching(_refuse),
    )  # fmt: skip
    asker.begin()
    session.run()
    if session.error is not None:
        raise session.error
    return {"with frames": _shares(asker.with_frames_ms), "without": _shares(asker.without_ms)}


def _refuse(address: Address) -> Source:
    raise MediaError("the source cannot be switched in this measurement")


def _shares(times_ms: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(times_ms, share)), 1) for share in (50, 90, 99)}


def main() -> None:
    parser = ArgumentParser(prog="python -m apps.first_token", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by pvc-export")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second of the camera; default: 10")
    parser.add_argument("--questions", type=int, default=200, help="questions asked; default: 200")
    told = parser.parse_args()
    print(json.dumps(measure(open_bundle(told.bundle), fps=told.fps, num_questions=told.questions), indent=1))


if __name__ == "__main__":
    main()
