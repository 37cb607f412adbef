"""The queue of one viewer: the newest picture wins, and the queue never grows."""

from __future__ import annotations

import asyncio

import pytest

from apps.web.viewer import Parcel, Viewer


async def begun(limit: int = 8) -> Viewer:
    """A viewer that has received its state."""
    viewer = Viewer(1, limit=limit)
    assert (await viewer.take(1.0)).wants_state
    assert viewer.with_state(lambda: "state") == "state"
    return viewer


def test_a_new_viewer_gets_the_state_before_anything_else() -> None:
    async def story() -> Parcel:
        viewer = Viewer(1)
        viewer.put("older than the state")
        return await viewer.take(1.0)

    assert asyncio.run(story()) == Parcel((), None, wants_state=True, closed=False)


def test_the_newest_picture_takes_the_place_of_the_one_that_waits() -> None:
    async def story() -> Parcel:
        viewer = await begun()
        for picture in (b"1", b"2", b"3"):
            viewer.show(picture)
        return await viewer.take(1.0)

    assert asyncio.run(story()).picture == b"3"


def test_messages_keep_their_order_and_the_newest_of_a_kind_goes_to_the_end() -> None:
    async def story() -> Parcel:
        viewer = await begun()
        viewer.put("a is...", newest_of="answer")
        viewer.put("a is over")
        viewer.put("b", newest_of="answer")
        viewer.put("b is...", newest_of="answer")
        return await viewer.take(1.0)

    assert asyncio.run(story()).messages == ("a is over", "b is...")


@pytest.mark.parametrize(("num_messages", "kept"), [(8, 8), (9, 0), (5000, 0)])
def test_who_is_too_slow_gets_the_state_and_no_backlog(num_messages: int, kept: int) -> None:
    async def story() -> tuple[int, Parcel]:
        viewer = await begun(limit=8)
        for number in range(num_messages):
            viewer.put(f"event {number}")
        return viewer.num_waiting, await viewer.take(1.0)

    num_waiting, parcel = asyncio.run(story())
    assert num_waiting == len(parcel.messages) == kept and parcel.wants_state == (kept == 0)


def test_after_the_state_messages_come_again() -> None:
    async def story() -> Parcel:
        viewer = await begun(limit=1)
        viewer.put("1")
        viewer.put("2")
        await viewer.take(1.0)
        viewer.with_state(lambda: "")
        viewer.put("3")
        return await viewer.take(1.0)

    assert asyncio.run(story()) == Parcel(("3",), None, wants_state=False, closed=False)


def test_nothing_to_tell_is_an_empty_parcel_after_the_time() -> None:
    async def story() -> Parcel:
        return await (await begun()).take(0.01)

    assert not any(asyncio.run(story()))


def test_what_waits_when_it_ends_is_still_sent() -> None:
    async def story() -> Parcel:
        viewer = await begun()
        viewer.put("last")
        viewer.close()
        viewer.put("too late")
        return await viewer.take(1.0)

    assert asyncio.run(story()) == Parcel(("last",), None, wants_state=False, closed=True)


def test_a_viewer_whose_server_is_gone_is_no_error() -> None:
    viewer = asyncio.run(begun())
    viewer.put("nobody hears it")
    viewer.show(b"nor sees it")
