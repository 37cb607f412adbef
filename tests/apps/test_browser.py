"""A browser's camera as a device."""

from __future__ import annotations

import time
from threading import Event, Thread

import pytest

from apps.addresses import parse_address
from apps.browser import BrowserCamera, BrowserDevice, Limits, Refused
from apps.capture import open_source
from engines.errors import MediaError

from .web import told
from .web.conftest import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_newest_picture_is_read_and_what_came_before_it_is_lost(clock: Clock) -> None:
    camera = BrowserCamera(clock=clock)
    device = BrowserDevice(camera, wait=Event().wait, name="a camera")
    camera.claim(1)
    for value in (3, 4, 5):
        camera.put(1, told.jpeg(value=value))
        clock.now += 1.0
    shown = device.read()
    assert shown is not None and round(shown.bgr.mean() / 8) == 5 and shown.time_s is None
    assert shown.bgr.flags.owndata and shown.bgr.flags.writeable  # the caller owns this copy


def test_pictures_faster_than_allowed_are_refused(clock: Clock) -> None:
    camera = BrowserCamera(Limits(fps=10.0), clock=clock)
    camera.claim(1)
    camera.put(1, told.jpeg())
    clock.now += 0.02
    with pytest.raises(Refused, match="faster than 10 per second"):
        camera.put(1, told.jpeg())
    clock.now += 0.1
    camera.put(1, told.jpeg())


def test_a_page_that_goes_is_a_notice_and_one_that_comes_ends_it() -> None:
    camera = BrowserCamera()
    device = BrowserDevice(camera, wait=Event().wait, name="a camera")
    read: list[object] = []
    thread = Thread(target=lambda: read.append(device.read()))
    thread.start()
    end = time.monotonic() + 5
    while not device.notice and time.monotonic() < end:
        time.sleep(0.01)
    assert device.notice == "a camera: no page is sending its camera" and not read
    camera.claim(2)
    camera.put(2, told.jpeg())
    thread.join(5)
    assert len(read) == 1 and device.notice == "" and device.num_reconnects == 0
    device.close()


def test_a_device_that_nobody_wants_any_more_ends() -> None:
    closing = Event()
    closing.set()
    assert BrowserDevice(BrowserCamera(), wait=closing.wait, name="a camera").read() is None


def test_the_owner_is_let_go_when_the_last_device_is_closed() -> None:
    camera, changes = BrowserCamera(), []
    camera.changed = lambda: changes.append(camera.owner)
    first = BrowserDevice(camera, wait=Event().wait, name="a camera")
    camera.claim(1)
    second = BrowserDevice(camera, wait=Event().wait, name="a camera")
    first.close()
    first.close()
    assert camera.owner == 1 and camera.is_watched
    second.close()
    assert camera.owner is None and not camera.is_watched and changes == [None, 1, 1, 1, None]


def test_a_source_of_a_browser_delivers_through_the_usual_door() -> None:
    camera = BrowserCamera()
    source = open_source(parse_address("browser"), browser=camera)
    camera.claim(1)
    camera.put(1, told.jpeg(value=7))
    captured = source.take(5.0)
    assert captured is not None and round(captured.bgr.mean() / 8) == 7 and captured.index == 0
    source.close()
    assert not camera.is_watched


def test_without_a_page_there_is_no_browsers_camera() -> None:
    with pytest.raises(MediaError, match="needs a web page that sends its camera") as caught:
        open_source(parse_address("browser"))
    assert caught.value.fix == "--web --source browser"
