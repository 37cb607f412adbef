"""A session with scripted sources: commands, questions while frames continue, and failures in between.

A script puts a command before it yields a frame; the session obeys after that frame.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event as Flag
from threading import Thread, Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.addresses import Address, parse_address
from apps.capture import Captured, Source, open_source
from apps.figures import Figures
from apps.keeper import Keeper
from apps.listeners import Ask, Commands, Event, Pause, Reset, SetQuestion, Switch, TakeSnapshot
from apps.meters import Meter
from apps.overlay import Status
from apps.recorder import Recorder
from apps.report import Log
from apps.session import MOST_FAILURES, LiveSession
from apps.switching import Switching
from apps.triggers import Schedule
from apps.watcher import Watcher
from engines import Bundle, PVCStream, open_bundle, open_stream
from engines.errors import BackendUnavailable, MediaError, NonFiniteError
from engines.signals import Signals
from engines.video import probe_video, read_video

from .events.fakes import Follower
from .fakes import FakeAnswering, answers, picture
from .rtsp import RtspCamera
from .test_videos import MotionJpeg

QUESTION, NEVER = "What moves?", 1e9
CAMERA_2 = parse_address("2")


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


class Scripted:
    """A Source with a generator's frames; None: no frame in time. The generator may act between two frames."""

    def __init__(self, frames: Iterable[Captured | None], *, name: str = "camera 0", waits: bool = False) -> None:
        self._frames, self.waits = iter(frames), waits
        self.device: Any = SimpleNamespace(name=name, notice="", num_reconnects=0, damage=None, fps=10.0)
        self.ended = self.is_closed = False
        self.timeouts_s: list[float] = []

    def take(self, timeout_s: float) -> Captured | None:
        assert not self.is_closed
        self.timeouts_s.append(timeout_s)
        try:
            return next(self._frames)
        except StopIteration:
            self.ended = True
            return None

    def close(self) -> None:
        self.is_closed = True


class Recording(Follower):
    """Record all calls in order: a frame's index, the text so far, an event's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int | str] = []
        self.statuses: list[Status] = []

    def saw(self, captured: Captured, status: Status) -> None:
        super().saw(captured, status)
        self.calls.append(captured.index)
        self.statuses.append(status)

    def said(self, question: str, text: str) -> None:
        super().said(question, text)
        self.calls.append(text)

    def happened(self, event: Event, captured: Captured) -> None:
        super().happened(event, captured)
        self.calls.append(f"<{event.kind}>")

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]


@dataclass
class Live:
    """A session with a script, and its listener."""

    bundle: Bundle
    ask_every_s: float = NEVER
    waits: bool = False
    commands: Commands = field(default_factory=Commands)
    follower: Recording = field(default_factory=Recording)
    figures: list[Figures] = field(default_factory=list)
    signals: Signals = field(default_factory=Signals)
    opener: Callable[[Address], Source] = field(default=lambda address: Scripted([]))

    def run(self, frames: Iterable[Captured | None], **more: Any) -> LiveSession:
        watcher = Watcher(self.bundle, QUESTION, trigger=Schedule(self.ask_every_s), max_new_tokens=4)
        more = {"source": Scripted(frames, waits=self.waits)} | more
        session = LiveSession(
            watcher=watcher, meter=Meter(), log=Log(as_json=False),
            signals=self.signals, listener=self.follower, commands=self.commands,
            switching=Switching(self.opener), counted=[self.figures.append], **more,
        )  # fmt: skip
        self.session = session
        session.run()
        return session

    @property
    def told(self) -> list[str]:
        return [event.text for event in self.follower.events]


@pytest.fixture
def live(bundle: Bundle) -> Live:
    return Live(bundle)


def frame(index: int, value: int | None = None, *, fps: float = 10.0, side: int = 64) -> Captured:
    """A frame of a moving picture, or of a constant one if `value` is given."""
    shown = picture(3 + index % 25 if value is None else value, width=side)
    return Captured(bgr=shown, index=index, time_s=index / fps, captured_at=0.0)


def moving(*indices: int) -> Iterator[Captured]:
    return (frame(index) for index in indices)


def until(is_so: Callable[[], object]) -> Iterator[None]:
    """Yield "no frame in time" until the condition is true."""
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.005)
        yield None
    pytest.fail("the condition did not become true in time")


# -- commands


def test_a_person_s_question_is_answered_once_about_the_frames_so_far(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, lambda question: f"To {question} a ball.")

    def script() -> Iterator[Captured]:
        yield from moving(0, 1)
        live.commands.put(Ask(question="Who?"))
        yield from moving(2, 3, 4, 5, 6, 7, 8, 9)

    live.run(script())
    first, last = live.follower.of("answer")
    assert (first.question, first.answer, first.frame, first.margin) == ("Who?", "To Who? a ball.", 3, 1.5)
    assert last.question == QUESTION and asked == ["Who?", QUESTION]  # the standing question, when the source ends


def test_the_standing_question_is_another_from_now_on(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "Yes.")
    live.ask_every_s = 0.0

    def script() -> Iterator[Captured]:
        yield from moving(0, 1, 2, 3)
        live.commands.put(SetQuestion(question="Where?"))
        yield from moving(4, 5, 6, 7, 8)

    live.run(script())
    kinds = [(event.kind, event.question) for event in live.follower.events]
    changed = kinds.index(("question", None))
    assert {question for _, question in kinds[:changed]} == {QUESTION}
    assert ("answer", "Where?") in kinds[changed:] and live.session.watcher.question == "Where?"
    assert live.follower.of("question")[0].text == "new question: Where?"


def test_while_paused_frames_are_shown_and_counted_and_the_model_does_not_see_them(live: Live) -> None:
    def script() -> Iterator[Captured]:
        yield frame(0)
        live.commands.put(Pause(paused=True))
        yield from moving(1, 2, 3)
        live.commands.put(Pause(paused=False))
        yield from moving(4, 5, 6, 8)

    session = live.run(script())
    assert live.follower.seen[:8] == [0, 1, 2, 3, 4, 5, 6, 8] and session.watcher.stream.num_frames == 5
    counted = live.figures[:8]
    assert [each.paused for each in counted] == [False, False, True, True, True, False, False, False]
    assert [each.frame for each in counted] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert [bool(status.notice) for status in live.follower.statuses[:8]] == [each.paused for each in counted]
    assert session.meter.num_dropped == 1  # 7: a pause drops nothing


def test_a_reset_forgets_frames_answers_and_what_waits(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, lambda question: "a b")

    def script() -> Iterator[Captured]:
        yield frame(0)
        for _ in range(3):
            live.commands.put(Ask(question="Who?"))
        yield from moving(1, 2, 3, 4)  # the first question is answered, the second has begun
        live.commands.put(Reset())
        yield from moving(5, 6)

    session = live.run(script())
    assert [event.kind for event in live.follower.events] == ["answer", "reset", "answer", "end"]
    assert asked == ["Who?", "Who?", QUESTION] and session.watcher.stream.num_frames == 1
    at_reset = live.follower.seen.index(6)
    assert live.follower.statuses[at_reset - 1].reply is not None and live.follower.statuses[at_reset].reply is None


def test_a_snapshot_is_of_the_newest_frame(live: Live) -> None:
    def script() -> Iterator[Captured]:
        live.commands.put(TakeSnapshot())  # before the first frame: taken of the first frame
        yield from moving(0, 1)
        live.commands.put(TakeSnapshot())
        yield frame(2)

    live.run(script())
    assert [event.frame for event in live.follower.of("snapshot")] == [0, 2]


def test_another_source_is_another_world(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frame index and time start again at 0."""
    answers(monkeypatch, lambda question: "Yes.")
    other = Scripted([frame(index, 10 + index) for index in range(6)], name="camera 2")
    live.opener, live.ask_every_s = lambda address: other, 0.3
    recorder = Recorder(tmp_path / "out.mp4", source_fps=10.0)

    def script() -> Iterator[Captured]:
        yield from moving(0, 1, 2, 3, 4, 9)
        live.session.source.device.notice = "camera 0 was lost"
        live.commands.put(Switch(address=CAMERA_2))
        yield from until(lambda: False)

    session = live.run(script(), recorders=[recorder])
    assert session.ended == "the source ended" and session.watcher.stream.num_frames == 6
    first = 6
    assert live.follower.seen[:12] == [0, 1, 2, 3, 4, 9, 0, 1, 2, 3, 4, 5]
    assert live.follower.statuses[first - 1].reply is not None and live.follower.statuses[first].reply is None
    assert [event.text for event in live.follower.of("source")] == [
        "camera 0 was lost", "now watching camera 2",
    ]  # fmt: skip
    assert session.meter.num_dropped == 4 and live.figures[-1].source == "camera 2"  # 5 to 8, and none in between
    assert probe_video(recorder.path).num_frames == 10 + 6  # its time continues


# -- questions while frames continue


def test_ten_questions_at_once_are_answered_in_turn_and_no_frame_waits_for_them(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, lambda question: "one two three four")
    questions = [f"Who is {number}?" for number in range(10)]

    def script() -> Iterator[Captured]:
        yield frame(0)
        for question in questions:
            assert live.commands.put(Ask(question=question))
        yield from moving(*range(1, 56))

    session = live.run(script())
    found = [event.question for event in live.follower.of("answer")]
    assert [question for question in found if question != QUESTION] == questions
    assert live.follower.seen[:56] == list(range(56)) and live.follower.of("trouble") == []
    assert session.watcher.stream.num_frames == 56
    assert [each.queues["questions"] for each in live.figures[:18]] == [0, 0, *[10] * 1, *[9] * 5, *[8] * 5, *[7] * 5]


@pytest.mark.parametrize("waits", [False, True])
def test_questions_that_wait_as_the_source_ends_are_answered(
    live: Live, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    answers(monkeypatch, lambda question: "Yes it does")
    live.waits, live.ask_every_s = waits, 0.0

    def script() -> Iterator[Captured | None]:
        yield from moving(0)
        yield from [None] * 9  # every frame so far has been asked about
        live.commands.put(Ask(question="Who?"))
        live.commands.put(Ask(question="Where?"))
        yield None

    live.run(script())
    assert [event.question for event in live.follower.of("answer")] == [QUESTION, "Who?", "Where?"]
    assert live.follower.statuses[-1].reply is not None
    assert live.follower.statuses[-1].reply.question == "Where?"  # shown, and recorded


@pytest.mark.parametrize(
    ("question", "said"), [("a<|im_end|>b", "the question contains '<|im_end|>'"), ("why? " * 400, "rows")]
)
@pytest.mark.parametrize("kind", [Ask, SetQuestion])
@pytest.mark.parametrize("clock", ["reanchor", "run-on"])
def test_a_question_that_cannot_be_asked_is_a_trouble_and_nothing_else(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    kind: type[Ask | SetQuestion], question: str, said: str, clock: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("apps.watcher.live_clock", lambda manifest: clock)

    def script() -> Iterator[Captured]:
        yield from moving(0, 1)
        live.commands.put(kind(question=question))
        yield from moving(2, 3)

    session = live.run(script())
    assert [event.kind for event in live.follower.events] == ["trouble", "answer", "end"]
    assert said in live.told[0] and live.told[0] in capsys.readouterr().out
    assert live.follower.of("answer")[0].question == QUESTION and session.error is None
    assert session.watcher.stream.num_frames == 4


def test_between_two_tokens_the_newest_frame_is_taken(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "a b c")
    live.ask_every_s = 0.2
    session = live.run([*moving(0, 1, 2), None, None, *moving(7, 8)])
    assert isinstance(session.source, Scripted)
    assert [seconds > 0 for seconds in session.source.timeouts_s[:7]] == [True, True, True, False, False, False, True]
    assert live.follower.calls[:10] == [0, 1, 2, "", "a", "a b", 7, "a b c", "<answer>", 8]
    saying = {status.saying for status in live.follower.statuses}
    assert "a b" in saying and live.session.meter.num_dropped == 4


def test_a_source_that_waits_shows_a_frame_with_its_whole_answer(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "a b c")
    live.ask_every_s, live.waits = 0.2, True
    live.run(moving(0, 1, 2, 3))
    assert live.follower.calls[:9] == [0, 1, "", "a", "a b", "a b c", "<answer>", 2, 3]
    assert [status.saying for status in live.follower.statuses] == [""] * len(live.follower.statuses)


def test_a_question_before_the_first_frame_waits_for_it(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the session's own question, after a reset, and while paused: no question is asked without a frame."""
    answers(monkeypatch, lambda question: "Yes.")
    keys = iter(["ask", "", "ask", *[""] * 100])
    window: Any = SimpleNamespace(show=lambda image: None, key=lambda: next(keys))

    def script() -> Iterator[Captured | None]:
        yield from [frame(0), None, None]
        live.commands.put(Pause(paused=False))
        yield from [frame(1), frame(2), *[None] * 6]
        live.commands.put(Pause(paused=True))
        live.commands.put(Reset())
        live.commands.put(Ask(question="Where?"))
        yield from [frame(3), None, None]
        live.commands.put(Pause(paused=False))
        yield from [frame(4), frame(5), None, None, None]

    live.commands.put(Pause(paused=True))
    live.commands.put(Ask(question="Who?"))
    live.run(script(), window=window)
    asked = [(event.question, event.frame) for event in live.follower.of("answer")]
    assert asked == [("Who?", 2), (QUESTION, 2), ("Where?", 5), (QUESTION, 5)] and live.session.error is None


# -- failures


def fail_on(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Make the pushes with these numbers fail, counted from 0."""
    push, calls = PVCStream.push, iter(range(10_000))

    def failing(self: PVCStream, bgr: np.ndarray) -> Any:
        if next(calls) in numbers:
            raise NonFiniteError("vision returned NaN")
        return push(self, bgr)

    monkeypatch.setattr(PVCStream, "push", failing)


def test_a_frame_that_the_model_cannot_take_is_left_out_and_said(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [*range(1, MOST_FAILURES), *range(MOST_FAILURES + 1, 2 * MOST_FAILURES)]
    fail_on(monkeypatch, *failures)
    session = live.run(moving(*range(2 * MOST_FAILURES + 1)))
    expected = [f"frame {index} was skipped: vision returned NaN" for index in failures]
    assert [event.text for event in live.follower.of("trouble")] == expected
    assert expected[0] in capsys.readouterr().out
    assert session.error is None and session.meter.num_processed == 3 == session.watcher.stream.num_frames
    assert live.follower.seen[: 2 * MOST_FAILURES + 1] == list(range(2 * MOST_FAILURES + 1))


def test_ten_such_frames_in_a_row_end_the_session(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, *range(2, 2 + MOST_FAILURES))
    session = live.run(moving(*range(100)))
    assert isinstance(session.error, NonFiniteError) and session.error.exit_code == 3
    assert live.follower.seen[-1] < 2 + MOST_FAILURES and live.follower.events[-1].kind == "end"


class Unanswerable(FakeAnswering):
    def step(self) -> bool:
        self.is_cut = True
        raise NonFiniteError("language returned NaN")


def test_ten_such_answers_in_a_row_end_the_session(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PVCStream, "begin", lambda self, question, **_: Unanswerable("a b"))
    live.ask_every_s = 0.0
    session = live.run(moving(*range(100)))
    assert isinstance(session.error, NonFiniteError) and session.error.exit_code == 3
    assert live.told.count("language returned NaN") == MOST_FAILURES - 1 and not live.follower.of("answer")


@pytest.mark.parametrize("waits", [False, True])
def test_an_answer_that_the_model_cannot_give_is_a_trouble_and_the_next_question_has_its_turn(
    live: Live, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    def begin(self: PVCStream, question: str, **_: Any) -> FakeAnswering:
        return Unanswerable("a b") if question == "Who?" else FakeAnswering("a b")

    monkeypatch.setattr(PVCStream, "begin", begin)
    live.waits = waits

    def script() -> Iterator[Captured | None]:
        yield frame(0)
        live.commands.put(Ask(question="Who?"))
        live.commands.put(Ask(question="Where?"))
        yield from [frame(1), *[None] * 20]

    live.run(script())
    kinds = [(event.kind, event.question) for event in live.follower.events]
    assert kinds == [("trouble", None), ("answer", "Where?"), ("answer", QUESTION), ("end", None)]
    assert live.told[0] == "language returned NaN"


def test_a_picture_that_changes_its_size_goes_on_and_its_recording_plays(live: Live, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", source_fps=10.0)
    sides = [64, 64, 301, 302, 64, 33]
    session = live.run([frame(index, side=side) for index, side in enumerate(sides)], recorders=[recorder])
    assert session.error is None and session.watcher.stream.num_frames == 6
    assert [each.bgr.shape for each in read_video(recorder.path)] == [next(read_video(recorder.path)).bgr.shape] * 6


@pytest.mark.parametrize(
    ("value", "begun"),
    [(0, "the picture has been black since 1.0 s"), (9, "the picture has not changed since 1.0 s")],
)
def test_a_picture_that_is_black_or_still_is_told_as_it_begins_and_as_it_ends(
    live: Live, value: int, begun: str
) -> None:
    seen = [*moving(0, 1), *(frame(index, value, fps=2.0) for index in range(2, 30))]
    after = [frame(index, 4 + index % 9, fps=2.0) for index in range(30, 34)]
    session = live.run([*seen, *after])
    assert [event.text for event in live.follower.of("source")] == [begun, "camera 0 is back"]
    assert session.log.notices == [begun] and live.figures[-1].num_stale == session.summary()["num_stale"] > 10


def test_a_view_that_is_still_by_nature_is_given_more_time(live: Live) -> None:
    seen = [*moving(0, 1), *(frame(index, 9, fps=2.0) for index in range(2, 30))]
    live.run(seen, still_after_s=20.0)
    assert not live.follower.of("source") and live.figures[-1].num_stale == 0


def test_a_source_that_is_lost_and_found_is_told_once_each_however_many_attempts_it_takes(live: Live) -> None:
    def script() -> Iterator[Captured | None]:
        yield frame(0)
        for notice in ("camera 0 was lost", "camera 0 was lost: 2 of 5", "camera 0 was lost: 3 of 5"):
            live.session.source.device.notice = notice
            yield None
        live.session.source.device.notice = ""
        yield from moving(1, 2)

    live.run(script())
    assert [event.text for event in live.follower.of("source")] == ["camera 0 was lost", "camera 0 is back"]


class HttpCamera:
    """Motion JPEG over HTTP, 50 pictures per second. Once killed, its port refuses connections."""

    def __init__(self, port: int = 0) -> None:
        self._killed = killed = Flag()

        class Handler(MotionJpeg):
            def do_GET(self) -> None:
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\n\r\n")
                index = 0
                while not killed.wait(0.02):
                    jpeg, index = BytesIO(), index + 1
                    Image.fromarray(picture(5 + index % 25)).save(jpeg, "JPEG")
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.getvalue())}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/live"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        self._killed.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("make", [HttpCamera, RtspCamera])
def test_a_network_camera_that_is_killed_is_watched_again_when_it_is_back(
    live: Live, make: type[HttpCamera] | type[RtspCamera]
) -> None:
    cameras = [make()]
    name = cameras[0].url
    source = open_source(parse_address(name), pauses_s=(0.15,) * 100)

    class Follows(Recording):
        def saw(self, captured: Captured, status: Status) -> None:
            super().saw(captured, status)
            if len(self.seen) == 5:
                cameras[0].kill()
            if self.events and self.events[-1].text.endswith("is back") and captured.index > at_loss[-1] + 5:
                live.signals._on_signal(signal.SIGINT, None)

        def happened(self, event: Event, captured: Captured) -> None:
            super().happened(event, captured)
            at_loss.append(captured.index)
            if event.text.endswith("1 of 100"):
                restart.start()

    at_loss: list[int] = []
    restart = Timer(0.4, lambda: cameras.append(make(cameras[0].port)))  # so that some attempts fail
    live.follower = Follows()
    session = live.run([], source=source)
    source.close()
    cameras[-1].kill()
    told = [event.text.removeprefix(name) for event in live.follower.of("source")]
    assert told == [" was lost: reconnecting, attempt 1 of 100", " is back"]
    assert source.device.num_reconnects == 1 and session.ended == "ended by Ctrl-C"
    assert session.watcher.stream.num_frames > 5  # those before, and at least one after it


@pytest.mark.parametrize(
    ("error", "said"),
    [(MediaError("camera 2 cannot be opened"), "camera 2 cannot be opened"), (OSError(13, "denied"), "denied")],
    ids=["no camera", "not allowed"],
)
def test_a_source_that_cannot_be_opened_leaves_the_old_one(
    live: Live, error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tried, closed = Flag(), []

    def opener(address: Address) -> Source:
        tried.set()
        raise error

    live.opener = opener

    def script() -> Iterator[Captured]:
        yield frame(0)
        live.commands.put(Switch(address=CAMERA_2))
        yield from until(lambda: live.follower.of("trouble"))
        closed.append(live.session.source.is_closed)  # type: ignore[attr-defined]
        live.commands.put(Switch(address=CAMERA_2))  # trying again is allowed
        tried.clear()
        yield from moving(1, 2)
        assert tried.wait(5)

    session = live.run(script())
    assert closed == [False] and live.told[0] == f"camera 2 could not be opened: {said}"
    assert live.told[0] in capsys.readouterr().out
    assert session.source.device.name == "camera 0" and 2 in live.follower.seen


def test_a_source_that_takes_long_to_open_stops_no_frame(live: Live) -> None:
    released = Flag()

    def opener(address: Address) -> Source:
        assert released.wait(10)
        return Scripted([frame(0)], name=address.name)

    live.opener = opener

    def script() -> Iterator[Captured]:
        live.commands.put(Switch(address=CAMERA_2))
        yield from moving(0, 1)
        live.commands.put(Switch(address=parse_address("3")))
        yield from moving(*range(2, 20))
        released.set()
        yield from until(lambda: False)

    session = live.run(script())
    assert live.follower.seen[:20] == list(range(20)) and session.source.device.name == "camera 2"
    assert live.told[0] == "camera 2 is still being opened"


def test_a_source_that_is_opened_too_late_is_closed(live: Live) -> None:
    released, other = Flag(), Scripted([])
    was_closed = Flag()
    other.close = was_closed.set  # type: ignore[method-assign]

    def opener(address: Address) -> Source:
        assert released.wait(10)
        return other

    live.opener = opener
    live.commands.put(Switch(address=CAMERA_2))
    live.run(moving(0, 1))
    released.set()
    assert was_closed.wait(5)


# -- the end, and saving


@pytest.mark.parametrize("how", ["the source ended", "enough frames were seen", "ended by Ctrl-C", "ended by an error"])
def test_the_end_is_the_last_event(live: Live, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def script() -> Iterator[Captured]:
        yield from moving(0, 1)
        live.commands.put(TakeSnapshot())
        yield from moving(2, 3)
        if how == "ended by an error":
            raise MediaError("camera 0 was lost")
        if how == "ended by Ctrl-C":
            live.signals._on_signal(signal.SIGINT, None)
        yield frame(4)

    session = live.run(script(), max_frames=5 if how == "enough frames were seen" else None)
    assert session.ended == how == live.told[-1]
    assert [event.kind for event in live.follower.events].index("end") == len(live.follower.events) - 1
    assert (session.error is not None) == (how == "ended by an error")


def test_ctrl_c_does_not_cut_short_whoever_follows(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line is written whole."""
    answers(monkeypatch, lambda question: "a b")
    whole = []

    class Slow(Recording):
        def happened(self, event: Event, captured: Captured) -> None:
            if event.kind == "answer":
                live.signals._on_signal(signal.SIGINT, None)
            super().happened(event, captured)
            whole.append(event.kind)

    live.follower, live.ask_every_s = Slow(), 0.0
    session = live.run(moving(*range(20)))
    assert whole == ["answer", "end"] and session.ended == "ended by Ctrl-C"


def test_the_stream_is_saved_between_two_answers_only_and_at_the_end(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real stream, which refuses to be saved while it answers."""
    seconds = iter(range(100_000))
    keeper = Keeper(tmp_path / "state.npz", every_s=2.0, clock=lambda: next(seconds))
    saved, save = [], PVCStream.save

    def note(self: PVCStream, path: Path) -> None:
        saved.append((self.num_frames, live.session.watcher.partial))
        save(self, path)

    monkeypatch.setattr(PVCStream, "save", note)

    def script() -> Iterator[Captured]:
        yield frame(0)
        for _ in range(3):
            live.commands.put(Ask(question="Who?"))
        yield from moving(*range(1, 24))
        live.commands.put(Ask(question="Where?"))
        yield from moving(24, 25)
        assert live.session.watcher.partial is not None  # the session ends in the middle of an answer
        live.signals._on_signal(signal.SIGTERM, None)
        yield frame(26)

    session = live.run(script(), keeper=keeper)
    assert live.follower.of("trouble") == [] and len(live.follower.of("answer")) == 3
    assert len(saved) > 4 and {partial for _, partial in saved} == {None}
    assert open_stream(keeper.path, live.bundle).num_frames == saved[-1][0] == session.watcher.stream.num_frames >= 26


def test_a_disk_that_is_full_is_a_trouble_and_the_session_goes_on(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100_000))
    keeper = Keeper(tmp_path / "state.npz", every_s=3.0, clock=lambda: next(seconds))
    save = PVCStream.save

    def full(self: PVCStream, path: Path) -> None:
        if self.num_frames < 6:
            raise BackendUnavailable("the stream could not be saved: no space left on device")
        save(self, path)

    monkeypatch.setattr(PVCStream, "save", full)
    session = live.run(moving(*range(12)), keeper=keeper)
    troubles = [event.text for event in live.follower.of("trouble")]
    assert troubles and set(troubles) == {"the stream could not be saved: no space left on device"}
    assert session.error is None and open_stream(keeper.path, live.bundle).num_frames == 12


def test_an_answer_is_said_token_by_token(live: Live) -> None:
    """With a real stream and the longest allowed answer."""
    live.waits = True
    live.run(moving(0, 1))
    (answer,) = live.follower.of("answer")
    texts = live.follower.texts
    assert texts[0] == "" and texts[-1] == answer.answer and len(texts) == 5
    assert all(after.startswith(before) for before, after in zip(texts[:-2], texts[1:-1], strict=True))
