"""Sources: the newest frame wins, dropped frames are counted, a file plays at its own speed, errors reach the taker."""

from __future__ import annotations

import time
from threading import Event
from types import SimpleNamespace

import pytest

from apps import capture
from apps.addresses import parse_address
from apps.capture import Captured, EveryFrame, NewestFrame, Source, open_source
from apps.synthetic import Shown
from engines.errors import MediaError

from .fakes import FakeCapture, FakeFactory, FakeVideo, picture

CAMERA = parse_address("0")


def value(captured: Captured | None) -> int:
    assert captured is not None
    return round(float(captured.bgr.mean()) / 8)


def take_all(source: Source) -> list[Captured]:
    frames = []
    while not source.ended:
        if (captured := source.take(0.05)) is not None:
            frames.append(captured)
    return frames


def test_the_newest_frame_wins_and_a_gap_tells_what_was_dropped() -> None:
    gate = Event()
    fake = FakeCapture([picture(index) for index in range(6)], gate=gate)
    source = open_source(CAMERA, factory=FakeFactory(fake), pauses_s=())
    assert fake.is_empty.wait(10)  # all six were read and none was taken
    newest = source.take(5.0)
    assert value(newest) == 5 and newest is not None and newest.index == 5
    assert source.take(0.01) is None  # each frame is taken only once
    gate.set()
    source.close()


def test_a_camera_is_read_before_anybody_takes_and_a_file_is_not() -> None:
    gate = Event()
    camera, file = FakeCapture([picture(1)] * 3, gate=gate), FakeVideo([0.0, 0.1])
    sources = [open_source(CAMERA, factory=FakeFactory(camera)), NewestFrame(file, Event())]
    assert camera.is_empty.wait(10)
    assert len(file.left) == 2
    gate.set()
    for source in sources:
        source.close()
    assert camera.is_released and file.is_closed


@pytest.mark.parametrize(
    "times_s",
    [[index / 40 for index in range(10)], [0.0, 0.3, 0.31, 0.32, 0.33, 0.4]],
    ids=["constant rate", "variable rate"],
)
def test_a_file_is_played_at_the_pace_of_its_timestamps(times_s: list[float]) -> None:
    source = NewestFrame(FakeVideo(times_s), Event())
    started = time.monotonic()
    frames = take_all(source)
    assert times_s[-1] <= time.monotonic() - started < times_s[-1] + 0.5
    assert frames[-1].index == len(times_s) - 1  # the last frame is never dropped
    for captured in frames:
        assert captured.time_s == times_s[captured.index] and value(captured) == captured.index
        assert captured.captured_at - started >= captured.time_s - 0.005


def test_a_slow_taker_sees_the_present_and_not_a_backlog() -> None:
    source = NewestFrame(FakeVideo(index / 50 for index in range(20)), Event())
    frames = []
    while not source.ended:
        if (captured := source.take(0.05)) is not None:
            frames.append(captured)
            assert time.monotonic() - captured.captured_at < 0.5  # with a backlog, the last frame would be 1.6 s late
            time.sleep(0.1)
    assert len(frames) < 12 and frames[-1].index == 19
    assert [captured.index for captured in frames] == sorted({captured.index for captured in frames})


def test_a_frame_that_is_dropped_is_never_converted() -> None:
    converted = []

    class Lazy(FakeVideo):
        def read(self) -> Shown | None:
            shown = super().read()
            return shown and shown._replace(picture=lambda: converted.append(shown.time_s) or shown.bgr)

    source = NewestFrame(Lazy(index / 50 for index in range(20)), Event())
    taken = []
    while not source.ended:
        if (captured := source.take(0.05)) is not None:
            taken.append(captured.time_s)
            time.sleep(0.1)
    assert converted == taken and len(taken) < 12


def test_every_frame_waits_for_the_taker_and_keeps_its_time() -> None:
    times_s = [0.0, 1.0, 2.0, 2.1, 7.5]
    source = EveryFrame(FakeVideo(times_s), paced=False)
    started = time.monotonic()
    frames = take_all(source)
    assert [value(captured) for captured in frames] == list(range(5)) == [captured.index for captured in frames]
    assert [captured.time_s for captured in frames] == times_s
    assert time.monotonic() - started < 1.0  # no pause between frames
    source.close()


def test_a_lost_camera_ends_the_taking_with_its_error_after_its_last_frame() -> None:
    fakes = [FakeCapture([picture(1), picture(2)]), FakeCapture(opens=False)]
    source = open_source(CAMERA, factory=FakeFactory(*fakes), pauses_s=(0.0,))
    seen = []
    with pytest.raises(MediaError, match="camera 0 was lost after 2 frames"):
        for _ in range(100):
            if (captured := source.take(0.05)) is not None:
                seen.append(value(captured))
    assert seen[-1] == 2
    source.close()


def test_a_camera_that_came_back_continues_counting() -> None:
    gate = Event()
    fakes = [FakeCapture([picture(1), picture(2)]), FakeCapture([picture(3)], gate=gate)]
    source = open_source(CAMERA, factory=FakeFactory(*fakes), pauses_s=(0.0,))
    assert fakes[1].is_empty.wait(10)
    captured = source.take(5.0)
    assert captured is not None and (captured.index, value(captured)) == (2, 3)
    assert source.device.num_reconnects == 1
    gate.set()
    source.close()


class BrokenDevice(SimpleNamespace):
    name, fps, waits, notice, num_reconnects, damage = "camera 0", 30.0, False, "", 0, None

    def read(self) -> Shown | None:
        raise RuntimeError("driver bug")

    def close(self) -> None: ...


def test_an_unexpected_error_in_the_reader_is_not_swallowed() -> None:
    source = NewestFrame(BrokenDevice(), Event())
    with pytest.raises(RuntimeError, match="driver bug"):
        for _ in range(100):
            source.take(0.05)


def test_a_camera_that_hangs_without_an_error_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "STALL_S", 0.2)
    gate = Event()
    fake = FakeCapture([picture(1)], gate=gate)
    source = open_source(CAMERA, factory=FakeFactory(fake))
    assert value(source.take(5.0)) == 1
    with pytest.raises(MediaError, match="camera 0 has delivered no frame for"):
        for _ in range(100):
            source.take(0.02)
    gate.set()
    source.close()


def test_closing_ends_the_reader_while_it_waits_for_a_lost_camera() -> None:
    fake = FakeCapture([picture(1)])
    source = open_source(CAMERA, factory=FakeFactory(fake), pauses_s=(60.0,))
    assert isinstance(source, NewestFrame) and fake.is_empty.wait(10)
    source.close()
    assert not source._thread.is_alive() and fake.is_released
