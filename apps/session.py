"""The loop of a live session: newest frame, model, questions in turn, listeners; until something ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.errors import NonFiniteError, PVCError, StreamError
from engines.signals import Signals
from engines.sizes import resident_bytes
from engines.stillness import UNCHANGED_S, Stillness
from engines.synthetic import Frame

from .capture import Captured, Source
from .figures import Figures
from .keeper import Keeper
from .listeners import Ask, Command, Commands, Event, EventKind, Listener, Pause, Reset, SetQuestion, Switch
from .meters import Meter
from .overlay import Status, annotate
from .recorder import Recorder
from .report import Log, describe_reply, figures
from .score import Score
from .segments import SegmentedRecorder
from .switching import Switching
from .watcher import Reply, Watcher
from .window import Window

PATIENCE_S = 0.02  # without a frame, before checking keys, commands and signals
MOST_FAILURES = 10  # consecutive frames or answers with NaN before the session ends


@dataclass(kw_only=True, slots=True)
class LiveSession:
    """A session and its parts. `run` may be called once; all listeners are called on its thread.

    A source that does not wait continues while a question is answered: between tokens the newest frame is taken.

    recorders  get every frame as shown
    counted    get the figures with every frame
    beat       called often, unless the session hangs
    still_after_s  seconds after which an unchanged picture is reported
    """

    source: Source
    watcher: Watcher
    meter: Meter
    log: Log
    signals: Signals
    listener: Listener
    commands: Commands
    switching: Switching
    window: Window | None = None
    recorders: Sequence[Recorder | SegmentedRecorder] = ()
    keeper: Keeper | None = None
    counted: Sequence[Callable[[Figures], None]] = ()
    beat: Callable[[], None] = lambda: None
    max_frames: int | None = None
    score: Score = field(default_factory=Score)
    still_after_s: float = UNCHANGED_S
    still: str = ""  # message about a picture that is black or unchanged for long
    stillness: Stillness = field(init=False)
    ended: str = ""
    error: PVCError | None = None
    paused: bool = False
    _newest: Captured | None = None
    _num_failures: int = 0  # consecutive frames
    _num_unanswered: int = 0  # consecutive questions
    _num_stale: int = 0
    _source_state: str = ""  # last reported
    _save_trouble: str = ""
    _untold: list[tuple[EventKind, str]] = field(default_factory=list)  # events before the first frame, sent with it
    _resident: tuple[float, int | None] = (0.0, None)

    def __post_init__(self) -> None:
        self.stillness = Stillness(unchanged_s=self.still_after_s)

    def run(self) -> None:
        """Run until the source ends, max_frames is reached, or a key or signal ends it; then complete the recording.

        An error meant for users also ends it and is kept in `error`; other exceptions propagate.
        """
        self.signals.defer()
        try:
            self._watch()
        except PVCError as error:
            self.error, self.ended = error, "ended by an error"
        finally:
            self._finish()

    def _watch(self) -> None:
        while not self.ended:
            self.beat()
            self._take_commands()
            newest = self.source.take(0.0 if self._is_answering else PATIENCE_S)
            if newest is not None:
                self._see(newest)
            elif self._newest is not None and self.window is not None and self.source.device.notice:
                self.window.show(self._annotated(self._newest))
            self._notice()
            if self._newest is not None and not self.signals.requested:
                self._answer(self._newest)
            self._keep()
            key = "" if self.window is None else self.window.key()
            if key == "ask" and self._newest is not None and not self.signals.requested:
                self.watcher.want()
                self._answer(self._newest)
            self.ended = self._reason_to_end(key)
        newest = self._newest
        if newest is not None and key != "quit":
            if self.watcher.has_news(newest) and not self.signals.requested:
                self.watcher.want()  # a short clip, and the end of a long one, get an answer too
            self._answer_all(newest)
        if (damage := self.source.device.damage) is not None:
            self.log.notice(f"{self.source.device.name}: {damage}")

    @property
    def _is_answering(self) -> bool:
        return self.watcher.has_work and not self.source.waits

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
        self._newest = captured
        while self._untold:
            self._tell(*self._untold.pop(0))
        self.still = self.stillness.add(captured.bgr, captured.time_s)
        self._num_stale += bool(self.still)
        if self.paused:
            self.meter.passed(captured)
        elif not self._push(captured):
            return
        if not self.paused and self.watcher.is_due(captured) and not self.signals.requested:
            self.watcher.want()
            if self.source.waits:
                return  # shown with its answer
        self._show(captured)

    def _push(self, captured: Captured) -> bool:
        """Pass a frame to the model. Returns False if a signal interrupted it. Raises a NaN error that persists."""
        num_rollovers = self.watcher.num_rollovers
        try:
            with self.signals.interruptible() as cut:
                self.watcher.push(captured)
        except NonFiniteError as error:
            self._num_failures += 1
            if self._num_failures == MOST_FAILURES:
                raise
            self._say_trouble(f"frame {captured.index} was skipped: {error.what}")
            return True
        if cut.short:
            return False
        self._num_failures = 0
        self.meter.add(captured, time.monotonic())
        if self.watcher.num_rollovers > num_rollovers:
            what = self.watcher.notice(captured.time_s)
            self.log.say(what)
            self._tell("rollover", what)
        return True

    def _answer(self, newest: Captured) -> None:
        """Decode one more token, if a question is pending; for a source that waits, the whole answer."""
        if self.source.waits:
            self._answer_all(newest)
        elif self.watcher.has_work:
            self._step(newest)

    def _answer_all(self, newest: Captured) -> None:
        """Complete all pending answers and show the frame."""
        if not self.watcher.has_work or self.signals.requested:
            return
        while self.watcher.has_work and not self.signals.requested:
            self._step(newest)
        self._show(newest)

    def _step(self, newest: Captured) -> None:
        self.beat()
        reply = None
        try:
            with self.signals.interruptible():
                reply = self.watcher.step(newest)
        except StreamError as error:  # only this question failed: continue with the next one
            self._num_unanswered += isinstance(error, NonFiniteError)
            if self._num_unanswered == MOST_FAILURES:
                raise
            self._say_trouble(error.what)
            return
        if reply is None:
            if (partial := self.watcher.partial) is not None:
                self.listener.said(*partial)
            return
        self._num_unanswered = 0
        self.listener.said(reply.question, reply.text)
        self.score.add(reply.grade)
        self.meter.answered(reply.latency_ms)
        if self.window is None:
            self.log.say(describe_reply(reply, self.score.text()))
        event = Event(
            kind="answer", text=reply.text, frame=reply.frame_index, time_s=reply.time_s, question=reply.question,
            answer=reply.text, margin=round(reply.margin, 3),
        )  # fmt: skip
        self.listener.happened(event, newest)

    def _show(self, captured: Captured) -> None:
        """Show the frame with its current status. Shown again at the same time, it replaces itself in recordings."""
        status = self._status(captured)
        if self.window is not None or self.recorders:
            image = annotate(captured.bgr, status)
            if self.window is not None:
                self.window.show(image)
            for recorder in self.recorders:
                recorder.add(image, captured.time_s)
        self.listener.saw(captured, status)
        if self.counted:
            counted = self._figures(captured)
            for hear in self.counted:
                hear(counted)

    def _annotated(self, captured: Captured) -> Frame:
        return annotate(captured.bgr, self._status(captured))

    def _status(self, captured: Captured) -> Status:
        watcher, partial = self.watcher, self.watcher.partial
        paused = "paused: the model does not see these frames" if self.paused else ""
        return Status(
            figures=figures(self.meter, watcher, self.score.text(), captured.index),
            question=watcher.question if partial is None else partial[0],
            reply=self._reply_to(captured),
            saying="" if partial is None else partial[1],
            random_weights=watcher.random_weights,
            notice=paused or self.source.device.notice or watcher.notice(captured.time_s) or self.still,
        )

    def _figures(self, captured: Captured) -> Figures:
        meter, watcher, now = self.meter, self.watcher, time.monotonic()
        if now - self._resident[0] >= 1.0:
            self._resident = now, resident_bytes()
        return Figures(
            source=self.source.device.name,
            paused=self.paused,
            frame=captured.index,
            time_s=captured.time_s,
            num_processed=meter.num_processed,
            num_dropped=meter.num_dropped,
            num_stale=self._num_stale,
            still=self.still,
            fps=meter.fps,
            latency_ms=meter.latency_ms if meter.num_processed else None,
            answer_latency_ms=meter.answer_latency_ms,
            num_answers=watcher.num_replies,
            num_rollovers=watcher.num_rollovers,
            num_reconnects=self.source.device.num_reconnects,
            context_rows=watcher.context_rows,
            context_limit=watcher.context,
            queues={"questions": watcher.num_waiting},
            resident_bytes=self._resident[1],
        )

    def _reply_to(self, captured: Captured) -> Reply | None:
        """The newest answer; with scenes, only if it is about the scene being shown."""
        reply, scene = self.watcher.last_reply, captured.scene
        if reply is None or scene is None or reply.frame_index >= captured.index - scene.frame_index:
            return reply
        return None

    def _notice(self) -> None:
        """Log the source's notices, and send an event when a condition begins and ends. A lost device logs each attempt
        to reconnect, but sends one event."""
        notice = self.source.device.notice or self.still
        self.log.notice(notice)
        state = "lost" if self.source.device.notice else self.still
        if state != self._source_state:
            self._source_state = state
            self._tell("source", notice or f"{self.source.device.name} is back")

    def _tell(self, kind: EventKind, text: str) -> None:
        """Send an event; one before the first frame is sent with that frame."""
        newest = self._newest
        if newest is None:
            self._untold.append((kind, text))
        else:
            self.listener.happened(Event(kind=kind, text=text, frame=newest.index, time_s=newest.time_s), newest)

    def _say_trouble(self, text: str) -> None:
        self.log.say(text)
        self._tell("trouble", text)

    def _take_commands(self) -> None:
        while (command := self.commands.take()) is not None:
            try:
                self._obey(command)
            except StreamError as error:
                self._say_trouble(error.what)
        if (opened := self.switching.take()) is not None:
            address, source = opened
            if isinstance(source, PVCError):
                self._say_trouble(f"{address.name} could not be opened: {source.what}")
            else:
                self._switch(source)

    def _obey(self, command: Command) -> None:
        match command:
            case Ask(question=question):
                self.watcher.want(question)
            case SetQuestion(question=question):
                self.watcher.ask_from_now_on(question)
                self._tell("question", f"new question: {question}")
            case Pause(paused=paused):
                self.paused = paused
            case Reset():
                self.watcher.reset()
                self._tell("reset", "restarted: all frames and answers are forgotten")
            case Switch(address=address):
                if why_not := self.switching.begin(address):
                    self._say_trouble(why_not)
            case _:
                self._tell("snapshot", "snapshot taken")

    def _switch(self, source: Source) -> None:
        """Switch to the new source and forget everything about the old one."""
        self.source.close()
        self.source, self.still, self._source_state = source, "", ""
        self.stillness = Stillness(unchanged_s=self.still_after_s)
        self.watcher.reset()
        self.meter.new_source()
        self._tell("source", f"now watching {source.device.name}")

    def _keep(self, *, last: bool = False) -> None:
        """Save the stream when due, between two questions."""
        keeper = self.keeper
        if keeper is None or not (last or keeper.is_due()) or self.watcher.partial is not None:
            return
        trouble = keeper.save(self.watcher.stream)
        if trouble and trouble != self._save_trouble:  # reported once, until it changes
            self._say_trouble(trouble)
        self._save_trouble = trouble

    def _finish(self) -> None:
        """Complete the recordings and save the stream. An error here is kept only if there was none before."""
        self.watcher.cancel()
        self.switching.close()
        self._keep(last=True)
        self._tell("end", self.ended or "ended by an error")
        for recorder in self.recorders:
            try:
                recorder.close()
            except PVCError as error:
                self.error = self.error or error

    def summary(self) -> dict[str, Any]:
        """The session's figures, ready for JSON."""
        reply, damage = self.watcher.last_reply, self.source.device.damage
        return {
            "ended": self.ended,
            **self.meter.summary(),
            "num_answers": self.watcher.num_replies,
            "num_restarts": self.watcher.num_restarts,
            "num_rollovers": self.watcher.num_rollovers,
            "num_reconnects": self.source.device.num_reconnects,
            "damage": None if damage is None else damage.to_json(),
            **self.stillness.to_json(),
            "num_stale": self._num_stale,
            "notices": self.log.notices,
            "question": self.watcher.question if reply is None else reply.question,
            "random_weights": self.watcher.random_weights,
            "last_answer": None if reply is None else reply.to_json(),
            "score": self.score.summary(),
            "recording": next((told for each in self.recorders if (told := recorded(each)) is not None), None),
        }


def recorded(recorder: Recorder | SegmentedRecorder) -> dict[str, Any] | None:
    """Facts about a completed recording, ready for JSON."""
    if not recorder.is_published:
        return None
    return {
        "path": str(recorder.path),
        "num_frames": recorder.num_written,
        "fps": recorder.fps,
        "duration_s": recorder.num_written / recorder.fps,
    }
