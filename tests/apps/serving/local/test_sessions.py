"""A Service over streams of this process: who gets a session, and how long it lasts."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from apps.serving import local
from apps.serving.local import LocalLimits, LocalService, fitting, model_id_of, session_options, stream_bytes
from apps.serving.service import NoSession, Wanted
from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import StreamError, StreamFull
from engines.many.handle import Busy
from engines.many.scheduler import Scheduler
from engines.sampling import Sampling

from .streams import ASKED, FRAMES, PICTURES, SAMPLING, Slow, expected, told


def test_sessions_do_not_mix_with_each_other_or_with_clips(service: LocalService, bundle: Bundle) -> None:
    async def watch() -> None:
        for name in ("a", "b"):
            await service.open(name)
        await asyncio.gather(
            *(service.push("a", picture) for picture in PICTURES[:3]),
            *(service.push("b", picture) for picture in PICTURES[3:7]),
            told(service.complete(tuple(PICTURES[7:]), ASKED)),
        )
        texts = await asyncio.gather(*(told(service.ask(name, ASKED)) for name in ("a", "b")))
        wanted = [expected(bundle, frames, as_session=True).text for frames in (FRAMES[:3], FRAMES[3:7])]
        assert [text for text, _ in texts] == wanted

    asyncio.run(watch())


def test_what_is_kept_is_part_of_what_is_asked_later(service: LocalService, bundle: Bundle) -> None:
    stream = PVCStream(bundle, **session_options(bundle))
    stream.push(FRAMES[0])
    stream.ask("hm?", max_new_tokens=3, keep=True)

    async def watch() -> str:
        await service.open("door")
        await service.push("door", PICTURES[0])
        await told(service.ask("door", Wanted(question="hm?", max_new_tokens=3, keep=True)))
        return (await told(service.ask("door", ASKED)))[0]

    assert asyncio.run(watch()) == stream.ask("what?", max_new_tokens=6, sampling=SAMPLING).text


def test_a_session_continues_without_an_end(service: LocalService) -> None:
    async def watch() -> int:
        await service.open("door")
        for number in range(40):
            await service.push("door", PICTURES[number % 12])
            if number % 7 == 0:
                await told(service.ask("door", ASKED))
        return (await service.open("door")).num_frames

    assert asyncio.run(watch()) == 40


def test_there_are_so_many_sessions_and_one_that_is_closed_makes_room(service: LocalService) -> None:
    async def come_and_go() -> None:
        for name in ("a", "b", "c"):
            await service.open(name)
        with pytest.raises(Busy, match="3 sessions are open"):
            await service.open("d")
        assert (await service.open("a")).id == "a"  # already open
        previous = "a"
        for name in ("d", "e", "f", "g"):
            await service.close(previous)
            previous = (await service.open(name)).id
            assert (await service.push(name, PICTURES[0])).num_frames == 1
        assert service.num_sessions == 3

    asyncio.run(come_and_go())


def test_many_who_open_at_once_get_no_more_than_there_are(service: LocalService) -> None:
    async def rush() -> list[Any]:
        return await asyncio.gather(*(service.open() for _ in range(10)), return_exceptions=True)

    outcomes = asyncio.run(rush())
    assert sum(isinstance(outcome, Busy) for outcome in outcomes) == 7 and service.num_sessions == 3


def test_two_who_open_the_same_one_at_once_have_the_same(service: LocalService) -> None:
    async def rush() -> None:
        await asyncio.gather(*(service.open("door") for _ in range(3)))
        await service.push("door", PICTURES[0])
        assert (await service.open("door")).num_frames == 1

    asyncio.run(rush())
    assert service.num_sessions == 1


def test_a_session_that_nobody_uses_is_closed_and_one_in_use_is_not(
    service: LocalService, now: list[float], slow: Slow
) -> None:
    async def wait() -> None:
        for name in ("used", "idle", "asked"):
            await service.open(name)
        now[0] += 40
        await service.push("used", PICTURES[0])
        slow.gate.clear()
        asked = asyncio.ensure_future(told(service.ask("asked", ASKED)))
        await asyncio.sleep(0.05)
        now[0] += 40
        assert (await service.open("used")).num_frames == 1
        with pytest.raises(NoSession):
            await service.push("idle", PICTURES[0])
        slow.gate.set()
        await asked
        assert service.num_sessions == 2

    asyncio.run(wait())


def test_idle_sessions_are_closed_though_nobody_comes(
    service: LocalService, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SWEEP_S", 0.02)

    async def wait() -> None:
        await service.open("door")
        now[0] += 61
        await asyncio.sleep(0.2)

    asyncio.run(wait())
    assert service.num_sessions == 0


def test_whoever_asks_a_session_that_is_closed_meanwhile_is_told_so(service: LocalService, slow: Slow) -> None:
    async def watch() -> None:
        await service.open("door")
        slow.gate.clear()
        asked = asyncio.ensure_future(told(service.ask("door", ASKED)))
        await asyncio.sleep(0.05)
        closing = asyncio.ensure_future(service.close("door"))
        await asyncio.sleep(0)
        slow.gate.set()
        await closing
        with pytest.raises(NoSession, match="was closed before"):
            await asked
        with pytest.raises(NoSession):
            await service.close("door")

    asyncio.run(watch())


def test_a_listener_that_leaves_ends_the_answer_and_frames_continue(
    service: LocalService, slow: Slow, bundle: Bundle
) -> None:
    """The full answer would have 40 tokens, each taking as long as `slow` makes it."""
    endless = Wanted(question="what?", max_new_tokens=40, sampling=Sampling(temperature=1e9, seed=4))
    whole = expected(bundle, FRAMES[:1], as_session=True, max_new_tokens=40, sampling=endless.sampling)
    assert len(whole.token_ids) > 30

    async def watch() -> None:
        await service.open("door")
        await service.push("door", PICTURES[0])
        slow.step_s = 0.02
        pieces = service.ask("door", endless)
        await anext(pieces)
        await pieces.aclose()
        assert (await service.push("door", PICTURES[1])).num_frames == 2
        handle = service._sessions["door"].handle
        while handle.asked is not None or handle.line:
            await asyncio.sleep(0.01)

    asyncio.run(watch())
    assert service._scheduler.counts.tokens < 15


@pytest.mark.parametrize(
    ("name", "model_id"),
    [("shapes", "shapes"), ("/home/me/PVC InternVL2-8B/", "PVC-InternVL2-8B"), ("..", "model"), ("a/é", "model")],
)
def test_a_model_has_a_name_that_fits_in_an_address(name: str, model_id: str) -> None:
    assert model_id_of(name) == f"pvc-vision-{model_id}"


def test_there_are_as_many_sessions_as_memory_has_room_for(bundle: Bundle) -> None:
    limits, each = LocalLimits(sessions=8, answers=2), stream_bytes(bundle)
    stream = PVCStream(bundle, **session_options(bundle))
    ring = sum(array.nbytes for array in stream.vision.ring.dump().values())
    rows = stream.language.cache.capacity * bundle.manifest.graphs["llm"].row_bytes
    assert each == 2 * (ring + rows)
    assert fitting(limits, bundle, None) == limits == fitting(limits, bundle, 1000 * each)
    assert fitting(limits, bundle, 5 * each + 1).sessions == 3
    with pytest.raises(StreamFull, match=r"--memory \d+\.\d MiB has no room for a session") as info:
        fitting(limits, bundle, 3 * each - 1)
    least = re.match(r"(\d+\.\d) MiB or more", info.value.expected)
    assert least and fitting(limits, bundle, round(float(least[1]) * 2**20)).sessions >= 1


def test_a_scheduler_that_is_too_small_is_refused(slow: Slow) -> None:
    scheduler = Scheduler(slow, max_streams=2)
    with pytest.raises(StreamError, match="2 streams"):
        LocalService(scheduler, limits=LocalLimits(sessions=2, answers=1))
    scheduler.close()
