"""A Service over streams of this process, with a model in whole numbers: what each session remembers is exact.

What the streams themselves do is held by tests/engines; here it is which frames reach which, in what order, how often.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from apps.serving import local
from apps.serving.local import LocalLimits, LocalService, fitting, model_id_of, session_options, stream_bytes
from apps.serving.pictures import decode_frame
from apps.serving.service import NoSession, Piece, Said, Wanted
from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import MediaError, NonFiniteError, StreamError, StreamFull
from engines.many.handle import Busy, QueueLimits
from engines.many.scheduler import OneByOne, Scheduler
from engines.prompt import Turn
from engines.sampling import Sampling

from ...engines.exact import exact_bundle
from .fakes import picture_of

T = TypeVar("T")
RNG = np.random.default_rng(3)
FRAMES = [RNG.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(12)]
PICTURES = [picture_of(frame) for frame in FRAMES]
SAMPLING = Sampling(temperature=1e4, seed=1)
ASKED = Wanted(question="what?", max_new_tokens=6, sampling=SAMPLING)
"""Warm enough that every change of what was seen changes the answer."""
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return exact_bundle(tmp_path, trained_frames=6)


class Slow:
    """OneByOne, but a step waits while the gate is closed, and takes step_s more."""

    most = 1

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.gate, self.step_s = bundle, threading.Event(), 0.0
        self.gate.set()

    def run(self, steps: Any) -> None:
        self.gate.wait(10.0)
        time.sleep(self.step_s)
        OneByOne(bundle=self.bundle).run(steps)


@pytest.fixture
def slow(bundle: Bundle) -> Slow:
    return Slow(bundle)


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def service(slow: Slow, now: list[float]) -> Iterator[LocalService]:
    limits = LocalLimits(sessions=3, answers=2, waiting=2, idle_s=60.0)
    scheduler = Scheduler(slow, max_streams=5)
    yield LocalService(scheduler, limits=limits, clock=lambda: now[0])
    slow.gate.set()
    scheduler.close()


async def told(pieces: AsyncGenerator[Piece, None]) -> tuple[str, Piece]:
    texts = []
    async for piece in pieces:
        texts.append(piece.text)
    return "".join(texts), piece


def expected(bundle: Bundle, frames: list[np.ndarray], *, as_session: bool = False, **asked: Any) -> Any:
    stream = PVCStream(bundle, **(session_options(bundle) if as_session else {}))
    for frame in frames:
        stream.push(frame)
    return stream.ask(**{"question": "what?", "max_new_tokens": 6, "sampling": SAMPLING, **asked})


# -- without a session ---------------------------------------------------------------------------------------------


def test_a_clip_is_answered_as_a_stream_of_its_frames_and_the_next_one_does_not_see_it(
    service: LocalService, bundle: Bundle
) -> None:
    async def ask() -> None:
        for number in (4, 2, 0, 4):
            answer = expected(bundle, FRAMES[:number])
            text, last = await told(service.complete(tuple(PICTURES[:number]), ASKED))
            assert text == answer.text and last.usage is not None and last.usage.num_frames == number
            assert last.usage.completion_tokens == len(answer.token_ids)
            assert last.usage.prompt_tokens == answer.num_prompt_rows > 2 * number
            assert last.finish == ("stop" if answer.finished else "length")

    asyncio.run(ask())


def test_images_sampling_stop_and_what_was_said_before_reach_the_model(service: LocalService, bundle: Bundle) -> None:
    sampling = Sampling(temperature=1e9, seed=3)
    wanted = Wanted(
        question="and?", images=(PICTURES[0],), max_new_tokens=4, sampling=sampling,
        earlier=(Said(question="hi", answer="yes", images=(PICTURES[1],)),),
    )  # fmt: skip
    answer = expected(
        bundle, FRAMES[2:4], question="and?", images=FRAMES[:1], max_new_tokens=4, sampling=sampling,
        earlier=[Turn(question="hi", answer="yes", images=FRAMES[1:2])],
    )  # fmt: skip
    text, _ = asyncio.run(told(service.complete(tuple(PICTURES[2:4]), wanted)))
    assert text == answer.text != ""
    stop = answer.text[1]
    text, last = asyncio.run(told(service.complete(tuple(PICTURES[2:4]), Wanted(**_fields(wanted), stop=(stop,)))))
    assert text == answer.text[: answer.text.index(stop)] and last.finish == "stop"


def _fields(wanted: Wanted) -> dict[str, Any]:
    names = ("question", "images", "max_new_tokens", "sampling", "earlier")
    return {name: getattr(wanted, name) for name in names}


def test_questions_wait_for_a_stream_and_one_too_many_is_told_to_come_again(
    service: LocalService, bundle: Bundle, slow: Slow
) -> None:
    async def ask() -> list[Any]:
        slow.gate.clear()
        asked = [asyncio.ensure_future(told(service.complete((), ASKED))) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy) as caught:
            await told(service.complete((), ASKED))
        assert caught.value.retry_after_s > 0
        slow.gate.set()
        return await asyncio.gather(*asked)

    assert {text for text, _ in asyncio.run(ask())} == {expected(bundle, []).text}


def test_a_question_that_nobody_waits_for_gives_its_stream_back(service: LocalService, bundle: Bundle) -> None:
    async def ask() -> str:
        for _ in range(6):  # three times as many as there are streams
            pieces = service.complete(tuple(PICTURES[:3]), Wanted(question="what?", max_new_tokens=40))
            await anext(pieces)
            await pieces.aclose()
        return (await told(service.complete(tuple(PICTURES[:2]), ASKED)))[0]

    assert asyncio.run(ask()) == expected(bundle, FRAMES[:2]).text


def test_a_picture_that_is_none_fails_its_own_question_alone(service: LocalService, bundle: Bundle) -> None:
    async def ask() -> str:
        for frames, images in (((b"x",), ()), ((PICTURES[0], PICTURES[0][:30]), ()), ((), (b"x",))):
            with pytest.raises(MediaError):
                await told(service.complete(frames, Wanted(question="what?", images=images)))
        return (await told(service.complete((PICTURES[0],), ASKED)))[0]

    assert asyncio.run(ask()) == expected(bundle, FRAMES[:1]).text


def test_an_answer_is_as_long_as_fits(service: LocalService) -> None:
    _, last = asyncio.run(told(service.complete((), Wanted(question="what?", max_new_tokens=4096))))
    assert last.usage is not None and last.finish is not None
    with pytest.raises(StreamFull):
        asyncio.run(told(service.complete((), Wanted(question="what? " * 50, max_new_tokens=4096))))


# -- a session's frames --------------------------------------------------------------------------------------------


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


def test_a_gap_is_said_once_and_old_retries_are_known_for_long(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "KEPT_RESULTS", 2)

    async def watch() -> None:
        await service.open("door")
        gaps = [(await service.push("door", PICTURES[0], index)).gap for index in (0, 3, 4, 5)]
        assert gaps == [0, 2, 0, 0]
        for index in (0, 1, 3, 5):  # 1 never came: it comes too late
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
        await asyncio.sleep(0.1)  # it is with the model
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


# -- sessions ------------------------------------------------------------------------------------------------------


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


def test_a_session_goes_on_without_an_end(service: LocalService) -> None:
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
        assert (await service.open("a")).id == "a"  # it is open already
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


def test_whoever_stops_listening_ends_the_answer_and_frames_go_on(
    service: LocalService, slow: Slow, bundle: Bundle
) -> None:
    """Its answer would have 40 tokens, of which each takes as long as it is let."""
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
    with pytest.raises(StreamFull, match="no room for a session"):
        fitting(limits, bundle, 3 * each - 1)


def test_a_scheduler_that_is_too_small_is_refused(slow: Slow) -> None:
    scheduler = Scheduler(slow, max_streams=2)
    with pytest.raises(StreamError, match="2 streams"):
        LocalService(scheduler, limits=LocalLimits(sessions=2, answers=1))
    scheduler.close()
