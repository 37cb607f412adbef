"""A session without a model, to test the page: rendered frames, answers token by token, alerts, figures, commands.

python -m tests.browser.fake_session [--port 8080] [--host 127.0.0.1] [--seconds 600] [--history]
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

import numpy as np
from PIL import Image, ImageDraw

from apps.browser import BrowserCamera
from apps.capture import Captured, Source, open_source
from apps.figures import Figures
from apps.listeners import Ask, Command, Commands, Event, EventKind, Pause, Reset, SetQuestion, Switch, TakeSnapshot
from apps.overlay import Status
from apps.watchdog import Watchdog
from apps.web.history import History
from apps.web.options import WebOptions
from apps.web.server import Page, open_page
from engines.errors import PVCError
from engines.sizes import resident_bytes
from engines.synthetic import Frame

FPS, ANSWER_EVERY_S, TOKEN_S = 12.0, 6.0, 0.12
ANSWERS = (
    "A red circle moves from left to right along the counter; the blue square has not moved.",
    "Nobody is at the door. The green triangle passed behind the square.",
    "Three shapes are in view. The circle turned around at the right edge and comes back.",
)


def render(seconds: float, *, width: int = 960, height: int = 540) -> Frame:
    """Draw moving shapes on a plain background, (H, W, 3) uint8 BGR."""
    ground = np.linspace((214, 222, 232), (168, 182, 200), height).astype(np.uint8)
    picture = Image.fromarray(np.repeat(ground[:, None], width, axis=1))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, height * 0.72, width, height), fill=(120, 104, 92))
    x = width * (0.5 + 0.34 * math.sin(seconds / 2.1))
    draw.rectangle((width * 0.62, height * 0.45, width * 0.75, height * 0.72), fill=(52, 98, 196))
    draw.ellipse((x - 60, height * 0.52, x + 60, height * 0.52 + 120), fill=(204, 62, 56))
    y = height * (0.2 + 0.05 * math.sin(seconds))
    draw.polygon([(width * 0.2, y + 90), (width * 0.26, y), (width * 0.32, y + 90)], fill=(58, 148, 92))
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


@dataclass(slots=True)
class FakeSession:
    """The session runs in the thread that calls `run`."""

    page: Page
    commands: Commands
    watchdog: Watchdog
    camera: BrowserCamera
    question: str = "What happens?"
    source: str = "rtsp://cam-2.example/hall"
    paused: bool = False
    num_frames: int = 0
    num_answers: int = 0
    started_at: float = field(default_factory=time.monotonic)
    notice: str = ""
    opened: Source | None = None
    newest: Captured | None = None
    writing: Iterator[str] = iter(())
    asked: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.watchdog.start()
        answer_at = time.monotonic() + 1.0
        while time.monotonic() < end:
            self.watchdog.beat()
            while (command := self.commands.take()) is not None:
                self.obey(command)
            self.see()
            if self.newest is not None and not self.paused and (self.asked or time.monotonic() > answer_at):
                self.answer(self.asked.pop(0) if self.asked else self.question)
                answer_at = time.monotonic() + ANSWER_EVERY_S

    def see(self) -> None:
        """Show one frame, at the pace of the source."""
        seconds = time.monotonic() - self.started_at
        if self.opened is None:
            time.sleep(1 / FPS)
            frame, index = render(seconds), self.num_frames
            captured = Captured(bgr=frame, index=index, time_s=seconds, captured_at=time.monotonic())
        else:
            taken = self.opened.take(0.1)
            self.notice = self.opened.device.notice
            if taken is None:
                if self.newest is not None:
                    self.page.saw(self.newest, self.status())
                return
            captured = taken
        self.num_frames += 1
        self.newest = captured
        for listener in (self.watchdog, self.page):
            listener.saw(captured, self.status())
        self.page.counted(self.figures(seconds))

    def status(self) -> Status:
        return Status(figures=(), question=self.question, reply=None, random_weights=False, notice=self.notice)

    def figures(self, seconds: float) -> Figures:
        return Figures(
            source=self.source, paused=self.paused, frame=self.num_frames, time_s=seconds,
            num_processed=self.num_frames, num_dropped=int(seconds * 1.4 + 3 * math.sin(seconds / 5)),
            fps=FPS - 1 + math.sin(seconds / 7), latency_ms=62 + 14 * math.sin(seconds * 3) + 9 * math.sin(seconds),
            answer_latency_ms=840.0 if self.num_answers else None, num_answers=self.num_answers,
            context_rows=self.num_frames * 3 % 4096, context_limit=4096, resident_bytes=resident_bytes(),
        )  # fmt: skip

    def answer(self, question: str) -> None:
        words = ANSWERS[self.num_answers % len(ANSWERS)].split()
        for text in itertools.accumulate(words, lambda before, word: f"{before} {word}"):
            self.page.said(question, text)
            self.watchdog.beat()
            time.sleep(TOKEN_S)
        self.num_answers += 1
        self.happen("answer", text, question=question, answer=text, margin=0.8)
        if self.num_answers % 3 == 2:
            self.happen("alert", "'circle' began", alert="circle")
        if self.num_answers % 3 == 0:
            self.happen("alert-end", "'circle' ended after 12 s", alert="circle")

    def happen(self, kind: EventKind, text: str, **more: object) -> None:
        if self.newest is not None:
            event = Event(kind=kind, text=text, frame=self.newest.index, time_s=self.newest.time_s, **more)  # type: ignore[arg-type]
            self.page.happened(event, self.newest)

    def obey(self, command: Command) -> None:
        match command:
            case Ask(question=question):
                self.asked.append(question)
            case SetQuestion(question=question):
                self.question = question
                self.happen("question", f"asked from now on: {question}")
            case Pause(paused=paused):
                self.paused = paused
            case Reset():
                self.happen("reset", "started again by a person")
            case TakeSnapshot():
                self.happen("snapshot", "kept as snapshots/2026-11-30-0712.jpg")
            case Switch(address=address):
                try:
                    opened = None if address.kind == "url" else open_source(address, browser=self.camera)
                except PVCError as error:
                    self.happen("source", f"stays: {error.what}")
                    return
                if self.opened is not None:
                    self.opened.close()
                self.opened, self.source, self.notice = opened, address.name, ""
                self.happen("source", f"switched to {address.name}")


def fill(page: Page, session: FakeSession) -> None:
    """Add ten minutes of invented history, so that a screenshot shows every part of the page."""
    now, state = time.time(), page.hub._state
    clock = iter(np.arange(now - 598, now, 1.0))
    history = History(clock=lambda: float(next(clock)))
    for index in range(590):
        seconds = float(index)
        base = session.figures(seconds)
        slow = 55 * math.exp(-(((index - 380) / 18) ** 2))
        mb = 812 + 40 * (1 - math.exp(-index / 60))
        history.add(replace(base, latency_ms=(base.latency_ms or 0) + slow, fps=base.fps - slow / 12,
                            num_dropped=int(index * 0.4 + 4 * slow), resident_bytes=int(mb * 2**20)))  # fmt: skip
    state.history.samples.extend(history.samples)
    frame = Captured(bgr=render(0.0), index=0, time_s=0.0, captured_at=time.monotonic())
    for ago, kind, text, more in (
        (560, "source", "rtsp://cam-2.example/hall found again after 6 s", {}),
        (505, "alert", "'circle' began", {"alert": "circle"}),
        (431, "alert-end", "'circle' ended after 74 s", {"alert": "circle"}),
        (402, "answer", "", {"question": "What happens?", "answer": ANSWERS[1]}),
        (388, "rollover", "context full: goes on from the last 8 frames", {}),
        (296, "question", "asked from now on: What happens?", {}),
        (240, "answer", "", {"question": "How many shapes are there?", "answer": "There are three shapes."}),
        (182, "alert", "'circle' began", {"alert": "circle"}),
        (150, "alert-end", "'circle' ended after 32 s", {"alert": "circle"}),
        (61, "trouble", "webhook https://hooks.example/x: 502, tried again in 8 s", {}),
        (20, "answer", "", {"question": "What happens?", "answer": ANSWERS[2]}),
    ):
        at = datetime.now(timezone.utc) - timedelta(seconds=ago)
        page.happened(Event(kind=kind, text=text, frame=9000 - 12 * ago, time_s=750.0 - ago, at=at, **more), frame)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--history", action="store_true", help="start with ten minutes of invented history")
    told = parser.parse_args()
    commands, camera = Commands(), BrowserCamera()
    watchdog = Watchdog(hang_s=30, no_frame_s=10, changed=lambda hang: print(hang or "running again", flush=True))
    options = WebOptions(host=told.host, port=told.port)
    with open_page(options, commands=commands, watchdog=watchdog, camera=camera) as page:
        print(page.url, flush=True)
        session = FakeSession(page, commands, watchdog, camera)
        if told.history:
            fill(page, session)
        session.run(told.seconds)
        if session.opened is not None:
            session.opened.close()
    watchdog.close()


if __name__ == "__main__":
    main()
