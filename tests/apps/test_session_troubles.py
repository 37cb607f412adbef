"""Troubles of a session: frames and answers that fail, pictures and sources that change."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event as Flag
from threading import Thread, Timer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.addresses import Address, parse_address
from apps.capture import Captured, Source, open_source
from apps.listeners import Ask, Event, Switch
from apps.overlay import Status
from apps.recorder import Recorder
from apps.session import MOST_FAILURES
from engines import PVCStream
from engines.errors import MediaError, NonFiniteError
from engines.video import read_video

from .fakes import FakeAnswering, picture
from .rtsp import RtspCamera
from .scripted import CAMERA_2, QUESTION, Live, Recording, Scripted, frame, moving, until
from .test_videos import MotionJpeg


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


def test_a_picture_that_changes_its_size_continues_and_its_recording_plays(live: Live, tmp_path: Path) -> None:
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
