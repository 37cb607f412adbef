"""A Service over streams of this process: clips and images, which leave no state."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from apps.serving.local import LocalService
from apps.serving.service import Said, Wanted
from engines.bundle import Bundle
from engines.errors import MediaError, StreamFull
from engines.many.handle import Busy
from engines.prompt import Turn
from engines.sampling import Sampling

from .streams import ASKED, FRAMES, PICTURES, Slow, expected, told


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
