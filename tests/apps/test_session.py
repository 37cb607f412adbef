"""A session: commands, questions while frames continue, events, saved streams."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.capture import Captured
from apps.keeper import Keeper
from apps.listeners import Ask, Event, Pause, Reset, SetQuestion, Switch, TakeSnapshot
from apps.recorder import Recorder
from engines import PVCStream, open_stream
from engines.errors import BackendUnavailable, MediaError
from engines.video import probe_video

from .fakes import answers
from .scripted import CAMERA_2, QUESTION, Live, Recording, Scripted, frame, moving, until

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


def test_a_disk_that_is_full_is_a_trouble_and_the_session_continues(
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


def test_an_answer_is_reported_token_by_token(live: Live) -> None:
    """With a real stream and the longest allowed answer."""
    live.waits = True
    live.run(moving(0, 1))
    (answer,) = live.follower.of("answer")
    texts = live.follower.texts
    assert texts[0] == "" and texts[-1] == answer.answer and len(texts) == 5
    assert all(after.startswith(before) for before, after in zip(texts[:-2], texts[1:-1], strict=True))
