"""A Service over streams of this process: which frames reach a session, in which order and how often."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from apps.serving import local
from apps.serving.local import LocalLimits, LocalService
from apps.serving.pictures import decode_frame
from engines.bundle import Bundle
from engines.errors import MediaError, NonFiniteError
from engines.many.handle import Busy, QueueLimits
from engines.many.scheduler import Scheduler

from .streams import ASKED, FRAMES, PICTURES, Slow, expected, told


def test_a_session_remembers_all_frames_in_order_however_many_come_at_once(
    service: LocalService, bundle: Bundle
) -> None:
    async def watch() -> None:
        await service.open("door")
        results = await asyncio.gather(*(service.push("door", picture) for picture in PICTURES[:4]))
        assert [pushed.frame_index for pushed in results] == [0, 1, 2, 3]
        assert not any(pushed.gap or pushed.is_repeated or pushed.is_dropped for pushed in results)
        text, last = await told(service.ask("door", ASKED))
        assert text == expected(bundle, FRAMES[:4], as_session=True).text
        assert last.usage is not None and last.usage.num_frames == 4

    asyncio.run(watch())


def test_frames_stand_in_line_as_they_came_though_one_takes_longer_to_decode(
    service: LocalService, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(picture: bytes, *, size: int) -> Any:
        if picture == PICTURES[0]:
            threading.Event().wait(0.1)
        return decode_frame(picture, size=size)

    monkeypatch.setattr(local, "decode_frame", slowly)

    async def watch() -> str:
        await service.open("door")
        await asyncio.gather(*(service.push("door", picture, index) for index, picture in enumerate(PICTURES[:3])))
        return (await told(service.ask("door", ASKED)))[0]

    assert asyncio.run(watch()) == expected(bundle, FRAMES[:3], as_session=True).text


def test_a_retry_of_a_frame_pushes_nothing_also_while_the_first_is_on_its_way(
    service: LocalService, bundle: Bundle, slow: Slow
) -> None:
    async def watch() -> str:
        await service.open("door")
        slow.gate.clear()
        first = asyncio.ensure_future(service.push("door", PICTURES[0], 0))
        await asyncio.sleep(0.05)
        again = asyncio.ensure_future(service.push("door", PICTURES[0], 0))
        await asyncio.sleep(0.05)
        slow.gate.set()
        pushed, repeated = await first, await again
        assert not pushed.is_repeated and repeated.is_repeated and repeated.num_frames == pushed.num_frames == 1
        await service.push("door", PICTURES[1], 1)
        for index in (0, 1, 1):
            late = await service.push("door", PICTURES[index], index)
            assert late.is_repeated and late.num_frames == 2 and late.frame_index == index
        return (await told(service.ask("door", ASKED)))[0]

    assert asyncio.run(watch()) == expected(bundle, FRAMES[:2], as_session=True).text


def test_a_frame_whose_sender_went_is_part_of_the_session_and_its_retry_is_one(
    service: LocalService, slow: Slow
) -> None:
    async def watch() -> None:
        await service.open("door")
        slow.gate.clear()
        sending = asyncio.ensure_future(service.push("door", PICTURES[0], 0))
        await asyncio.sleep(0.05)
        sending.cancel()
        slow.gate.set()
        retried = await service.push("door", PICTURES[0], 0)
        assert retried.is_repeated and retried.num_frames == 1

    asyncio.run(watch())


def test_a_gap_is_reported_once_and_old_retries_are_known_for_long(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "KEPT_RESULTS", 2)

    async def watch() -> None:
        await service.open("door")
        gaps = [(await service.push("door", PICTURES[0], index)).gap for index in (0, 3, 4, 5)]
        assert gaps == [0, 2, 0, 0]
        for index in (0, 1, 3, 5):  # 1 was never received, and is too late now
            pushed = await service.push("door", PICTURES[0], index)
            assert pushed.is_repeated and pushed.num_frames == 4
        assert (await service.push("door", PICTURES[0])).frame_index == 6

    asyncio.run(watch())


def test_a_frame_that_fails_may_come_again(service: LocalService, bundle: Bundle) -> None:
    async def watch() -> str:
        await service.open("door")
        await service.push("door", PICTURES[0], 0)
        with pytest.raises(MediaError):
            await service.push("door", b"no picture", 1)
        handle = service._sessions["door"].handle
        push, handle.stream.push = handle.stream.push, _failing  # type: ignore[method-assign]
        with pytest.raises(NonFiniteError):
            await service.push("door", PICTURES[1], 1)
        handle.stream.push = push  # type: ignore[method-assign]
        pushed = await service.push("door", PICTURES[1], 1)
        assert not pushed.is_repeated and pushed.num_frames == 2 and pushed.gap == 0
        return (await told(service.ask("door", ASKED)))[0]

    assert asyncio.run(watch()) == expected(bundle, FRAMES[:2], as_session=True).text


def _failing(frame: Any) -> Any:
    raise NonFiniteError("NaN in the trunk")


@pytest.mark.parametrize("when_full", ["drop-oldest", "refuse"])
def test_a_full_queue_drops_the_oldest_frame_or_refuses_the_newest(slow: Slow, bundle: Bundle, when_full: Any) -> None:
    limits = LocalLimits(sessions=1, answers=1, queue=QueueLimits(frames=2, when_full=when_full))
    scheduler = Scheduler(slow, max_streams=2)
    service = LocalService(scheduler, limits=limits)

    async def watch() -> tuple[list[Any], str]:
        await service.open("door")
        await service.push("door", PICTURES[0])
        slow.gate.clear()
        on_its_way = asyncio.ensure_future(service.push("door", PICTURES[1]))
        await asyncio.sleep(0.1)  # the model is processing it
        sending = [asyncio.ensure_future(service.push("door", picture)) for picture in PICTURES[2:5]]
        await asyncio.sleep(0.1)
        slow.gate.set()
        await on_its_way
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        return list(outcomes), (await told(service.ask("door", ASKED)))[0]

    outcomes, text = asyncio.run(watch())
    if when_full == "refuse":
        assert isinstance(outcomes[2], Busy) and not any(each.is_dropped for each in outcomes[:2])
        seen = FRAMES[:4]
    else:
        assert [each.is_dropped for each in outcomes] == [True, False, False]
        seen = [*FRAMES[:2], *FRAMES[3:5]]
    assert text == expected(bundle, seen, as_session=True).text
    scheduler.close()
