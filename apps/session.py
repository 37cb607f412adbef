"""One live session: newest frame, model, question, overlay, window and recording, until something ends it."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any

from engines.errors import PVCError
from engines.signals import Signals
from engines.stillness import Stillness
from engines.synthetic import Frame

from .capture import Captured, Source
from .meters import Meter
from .overlay import Status, annotate
from .recorder import Recorder
from .report import Log, describe_reply, figures
from .score import Score
from .watcher import Reply, Watcher
from .window import Window

PATIENCE_S = 0.1  # without a frame, until keys and signals are looked at


@dataclass(kw_only=True, slots=True)
class LiveSession:
    """Everything that takes part. `run` may be called once.

    Model and display share a thread: a question holds up the next frame, while the source goes on and drops.
    """

    source: Source
    watcher: Watcher
    meter: Meter
    log: Log
    signals: Signals
    window: Window | None
    recorder: Recorder | None
    max_frames: int | None
    score: Score = field(default_factory=Score)
    stillness: Stillness = field(default_factory=Stillness)
    still: str = ""  # what is said of a picture that is black or the same for long
    ended: str = ""
    error: PVCError | None = None

    def run(self) -> None:
        """Until the source ends, enough frames were seen, a key or a signal. Then the recording is completed.

        An error meant for users ends it as well and is kept in `error`; whatever else is raised passes through.
        """
        self.signals.defer()
        try:
            self._watch()
        except PVCError as error:
            self.error, self.ended = error, "ended by an error"
        finally:
            self._complete_recording()

    def summary(self) -> dict[str, Any]:
        """Numbers and names, fit for JSON."""
        recorder, reply, damage = self.recorder, self.watcher.last_reply, self.source.device.damage
        recording = None
        if recorder is not None and recorder.is_published:
            recording = {
                "path": str(recorder.path),
                "num_frames": recorder.num_written,
                "fps": recorder.fps,
                "duration_s": recorder.num_written / recorder.fps,
            }
        return {
            "ended": self.ended,
            **self.meter.summary(),
            "num_answers": self.watcher.num_replies,
            "num_restarts": self.watcher.num_restarts,
            "num_reconnects": self.source.device.num_reconnects,
            "damage": None if damage is None else damage.to_json(),
            **self.stillness.to_json(),
            "notices": self.log.notices,
            "question": self.watcher.question if reply is None else reply.question,
            "random_weights": self.watcher.random_weights,
            "last_answer": None if reply is None else reply.to_json(),
            "score": self.score.summary(),
            "recording": recording,
        }

    def _watch(self) -> None:
        captured: Captured | None = None
        while not self.ended:
            newest = self.source.take(PATIENCE_S)
            if newest is not None:
                captured = newest
                self._see(captured)
            elif captured is not None and self.window is not None and self.source.device.notice:
                self.window.show(self._annotated(captured))
            self.log.notice(self.source.device.notice or self.still)
            key = "" if self.window is None else self.window.key()
            if key == "ask" and captured is not None and not self.signals.requested:
                self._ask(captured)
            self.ended = self._reason_to_end(key)
        if captured is not None and self.watcher.has_news(captured) and key != "quit" and not self.signals.requested:
            self._ask(captured)  # a short clip, and the end of a long one, get an answer too
        if (damage := self.source.device.damage) is not None:
            self.log.notice(f"{self.source.device.name}: {damage}")

    def _reason_to_end(self, key: str) -> str:
        if self.signals.number is not None:
            return (
                "ended by Ctrl-C" if self.signals.number == signal.SIGINT else f"ended by signal {self.signals.number}"
            )
        if key == "quit":
            return "ended in the window"
        if self.source.ended:
            return "the source ended"
        return "enough frames were seen" if self.meter.num_processed == self.max_frames else ""

    def _see(self, captured: Captured) -> None:
        self.still = self.stillness.add(captured.bgr, captured.time_s)
        num_restarts = self.watcher.num_restarts
        with self.signals.interruptible() as cut:
            self.watcher.push(captured)
        if cut.short:
            return  # the model did not see it
        self.meter.add(captured, time.monotonic())
        if self.watcher.num_restarts > num_restarts:
            self.log.say(self.watcher.notice(captured.time_s))
        if self.watcher.is_due(captured) and not self.signals.requested:
            self._ask(captured)
        else:
            self._show(captured)

    def _ask(self, captured: Captured) -> None:
        with self.signals.interruptible():
            reply = self.watcher.ask(captured)
            self.score.add(reply.grade)
            if self.window is None:
                self.log.say(describe_reply(reply, self.score.text()))
        self._show(captured)

    def _show(self, captured: Captured) -> None:
        """The frame with what is known now. Shown again under the same time, it replaces itself in the recording."""
        if self.window is None and self.recorder is None:
            return
        image = self._annotated(captured)
        if self.window is not None:
            self.window.show(image)
        if self.recorder is not None:
            self.recorder.add(image, captured.time_s)

    def _annotated(self, captured: Captured) -> Frame:
        watcher = self.watcher
        status = Status(
            figures=figures(self.meter, watcher, self.score.text(), captured.index),
            question=watcher.question,
            reply=self._reply_to(captured),
            random_weights=watcher.random_weights,
            notice=self.source.device.notice or watcher.notice(captured.time_s) or self.still,
        )
        return annotate(captured.bgr, status)

    def _reply_to(self, captured: Captured) -> Reply | None:
        """The newest answer; of a source with scenes only if it is about the scene that is shown."""
        reply, scene = self.watcher.last_reply, captured.scene
        if reply is None or scene is None or reply.frame_index >= captured.index - scene.frame_index:
            return reply
        return None

    def _complete_recording(self) -> None:
        """A failure here is reported only if nothing worse came before it."""
        if self.recorder is None:
            return
        try:
            self.recorder.close()
        except PVCError as error:
            self.error = self.error or error
