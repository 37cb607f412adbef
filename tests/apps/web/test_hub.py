"""From the session's thread to the viewers: state, pictures compressed once for all, figures once per second."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from apps.browser import Limits, decode_jpeg
from apps.listeners import Commands
from apps.web.history import History
from apps.web.hub import Hub
from apps.web.options import WebOptions
from apps.web.pictures import Pictures, to_jpeg
from apps.web.state import State
from apps.web.viewer import Viewer

from . import told
from .conftest import Clock


def joined(hub: Hub) -> Viewer:
    viewer = hub.join()
    assert viewer is not None
    return viewer


def until(condition: Callable[[], bool], *, patience_s: float = 5.0) -> bool:
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def state_of(hub: Hub, viewer: Viewer) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(hub.state_for(viewer))["value"]
    return value


def test_whoever_comes_is_told_everything_so_far(hub: Hub) -> None:
    async def story() -> dict[str, Any]:
        hub.saw(told.captured(), told.status("Who is there?", notice="camera 0 was lost"))
        hub.happened(told.answered("Who?", "Nobody."), told.captured())
        hub.happened(told.event("alert", "'dog' began", alert="dog"), told.captured())
        hub.said("Who is there?", "A do")
        hub.counted(told.figures(paused=True))
        return state_of(hub, joined(hub))

    state = asyncio.run(story())
    assert state["status"]["question"] == "Who is there?" and state["status"]["notice"] == "camera 0 was lost"
    assert state["status"]["paused"] is True and state["status"]["source"] == "camera 0"
    assert state["answer"] == {"question": "Who is there?", "text": "A do", "done": False}
    assert [entry["answer"] for entry in state["conversation"]] == ["Nobody."]
    assert [event["kind"] for event in state["events"]] == ["alert"]
    assert [event["alert"] for event in state["open_alerts"]] == ["dog"]
    assert state["now"]["num_seen"] == 4 and state["viewers"] == 1 and state["camera"] == "nobody"


def test_messages_are_what_changed_and_a_status_that_stays_is_not_repeated(hub: Hub) -> None:
    async def story() -> tuple[str, ...]:
        viewer = joined(hub)
        await viewer.take(1.0)
        hub.state_for(viewer)
        hub.saw(told.captured(), told.status())
        hub.happened(told.event(), told.captured())
        hub.saw(told.captured(), told.status())
        return (await viewer.take(1.0)).messages

    kinds = [told.read(message)[0] for message in asyncio.run(story())]
    assert kinds == ["status", "event"]


def test_an_event_is_numbered_so_that_a_page_knows_what_its_state_had(hub: Hub) -> None:
    async def story() -> tuple[int, str]:
        hub.happened(told.event(), told.captured())
        viewer = joined(hub)
        await viewer.take(1.0)
        known = state_of(hub, viewer)["num_events"]
        hub.happened(told.event(), told.captured())
        return known, (await viewer.take(1.0)).messages[-1]

    known, message = asyncio.run(story())
    assert known == 1 and told.read(message)[1]["id"] == 2


def test_no_picture_is_compressed_while_nobody_looks(hub: Hub) -> None:
    async def story() -> tuple[int, bool]:
        for value in range(5):
            hub.saw(told.captured(value), told.status())
        await asyncio.sleep(0.05)
        before = hub._pictures.num_compressed
        joined(hub)
        return before, until(lambda: hub._pictures.num_compressed == 1)

    assert asyncio.run(story()) == (0, True)


def test_a_picture_is_compressed_once_for_all_viewers(hub: Hub) -> None:
    async def story() -> tuple[bytes | None, ...]:
        first, second = joined(hub), joined(hub)
        await first.take(1.0)
        await second.take(1.0)
        hub.saw(told.captured(9), told.status())
        assert until(lambda: first.num_waiting == second.num_waiting == 1)
        return (await first.take(1.0)).picture, (await second.take(1.0)).picture

    one, other = asyncio.run(story())
    assert one is other and one is not None and told.brightness(one) == 9
    assert hub._pictures.num_compressed == 1


def test_pictures_are_no_more_than_asked_for_and_the_last_one_comes() -> None:
    delivered: list[bytes] = []
    pictures = Pictures(delivered.append, lambda: True, fps=20.0, width=640, quality=80)
    started = time.monotonic()
    for value in range(30):
        pictures.offer(told.captured(value).bgr)
        time.sleep(0.005)
    assert until(lambda: bool(delivered) and told.brightness(delivered[-1]) == 29)
    pictures.close()
    assert 2 <= len(delivered) <= 20.0 * (time.monotonic() - started) + 2  # of 30


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(48, 64, (64, 48)), (1080, 1920, (320, 180)), (1920, 1080, (180, 320)), (2, 5000, (320, 1))],
)
def test_a_picture_is_made_no_larger_than_asked_for(height: int, width: int, expected: tuple[int, int]) -> None:
    jpeg = to_jpeg(told.captured(3, height=height, width=width).bgr, width=320, quality=80)
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert opened.format == "JPEG" and opened.size == expected


def test_colours_are_not_swapped() -> None:
    frame = told.captured(0).bgr
    frame[..., 2] = 250  # red
    blue, green, red = decode_jpeg(to_jpeg(frame, width=640, quality=90), Limits()).mean(axis=(0, 1))
    assert red > 230 and blue < 20 and green < 20


def test_the_state_does_not_grow_in_a_session_of_days() -> None:
    state = State()
    for number in range(2000):
        state.happen(told.answered("Q", "x" * 10_000 if number == 1999 else "A"))
        state.happen(told.event())
    told_of = state.to_json()
    assert len(told_of["conversation"]) == 100 and len(told_of["events"]) == 300
    assert len(told_of["answer"]["text"]) == 4000 and told_of["num_events"] == 4000


def test_a_reset_forgets_the_conversation_and_keeps_what_happened() -> None:
    state = State()
    state.happen(told.answered("Q", "A"))
    state.happen(told.event("reset", "by a person"))
    assert not state.conversation and state.answer is None and [e["kind"] for e in state.events] == ["reset"]


def test_an_alert_is_open_until_it_ends() -> None:
    state = State()
    state.happen(told.event("alert", "began", alert="dog"))
    assert list(state.open_alerts) == ["dog"]
    state.happen(told.event("alert-end", "over", alert="dog"))
    assert not state.open_alerts


def test_a_second_is_one_sample_of_its_frames(clock: Clock) -> None:
    history = History(clock)
    samples = []
    for number in range(25):
        latency_ms = 500.0 if number == 7 else 40.0
        samples.append(history.add(told.figures(latency_ms=latency_ms, num_dropped=2 * number, num_processed=number)))
        clock.now += 0.1
    made = [sample for sample in samples if sample is not None]
    assert [sample["at"] for sample in made] == pytest.approx([1001.0, 1002.0], abs=0.11)
    assert made[0]["p50"] == 40.0 and made[0]["p99"] == 500.0 and made[1]["p99"] == 40.0
    assert made[0]["dropped"] in (20, 22) and len(history.samples) == 2


def test_figures_that_are_not_finite_become_null(commands: Commands) -> None:
    hub = Hub(commands, options=WebOptions())

    async def story() -> dict[str, Any]:
        hub.counted(told.figures(fps=float("nan")))
        return state_of(hub, joined(hub))

    assert asyncio.run(story())["now"]["fps"] is None
    hub.close()
