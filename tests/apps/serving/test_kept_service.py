"""Sessions that outlive their process, as the routes use them: pictures in, answer pieces out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.serving.handover import Snapshots
from apps.serving.kept import KeptStreams
from apps.serving.kept_service import KeptService
from apps.serving.local import LocalLimits, session_options
from apps.serving.pictures import encode_frame
from apps.serving.service import NoSession, Piece, Wanted
from apps.serving.stores import FolderStore
from engines import Bundle, PVCStream, open_bundle
from engines.many.handle import StreamHandle
from engines.many.scheduler import OneByOne, Scheduler
from engines.synthetic import render_clip

FRAMES = list(render_clip(6, seed=3, width=32, height=32))
LIMITS, WANTED = LocalLimits(sessions=2, answers=1), Wanted(question="What?", max_new_tokens=8)


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


@pytest.fixture
def services(bundle: Bundle, tmp_path: Path) -> Iterator[list[KeptService]]:
    schedulers = [Scheduler(OneByOne(bundle=bundle), max_streams=LIMITS.streams) for _ in "ab"]
    yield [
        KeptService(
            scheduler,
            KeptStreams(
                scheduler, Snapshots(FolderStore(tmp_path), owner=owner), most=LIMITS.sessions, wait_s=0.0,
                **session_options(bundle),
            ),
            limits=LIMITS,
        )
        for scheduler, owner in zip(schedulers, "ab", strict=True)
    ]  # fmt: skip
    for scheduler in schedulers:
        scheduler.close()


async def said(service: KeptService, session: str) -> tuple[str, Piece]:
    pieces = [piece async for piece in service.ask(session, WANTED)]
    return "".join(piece.text for piece in pieces), pieces[-1]


def told(bundle: Bundle, num_frames: int) -> str:
    stream = PVCStream(bundle, **session_options(bundle))
    for frame in FRAMES[:num_frames]:
        stream.push(frame)
    return stream.ask(WANTED.question, max_new_tokens=WANTED.max_new_tokens).text


def test_a_session_is_asked_where_it_is_now(bundle: Bundle, services: list[KeptService]) -> None:
    async def work() -> None:
        first, second = services
        session = (await first.open()).id
        for index, frame in enumerate(FRAMES[:3]):
            assert (await first.push(session, encode_frame(frame), index)).frame_index == index
        text, last = await said(first, session)
        assert text == told(bundle, 3) and last.usage is not None and last.usage.num_frames == 3
        await first.kept.release(session)
        assert (first.num_sessions, (await said(second, session))[0]) == (0, text)
        assert (await second.push(session, encode_frame(FRAMES[3]), 3)).num_frames == 4
        await second.close(session)
        with pytest.raises(NoSession):
            await said(first, session)

    asyncio.run(work())


def test_a_question_that_finds_its_stream_let_go_is_asked_of_the_one_that_was_taken_up(
    bundle: Bundle, services: list[KeptService], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        first, _ = services
        await first.open("door")
        await first.push("door", encode_frame(FRAMES[0]), 0)
        find, found = first.kept.handle, list[StreamHandle]()

        async def let_go_since(session: str) -> StreamHandle:
            handle = await find(session)
            if not found:
                await first.kept.release(session)
            found.append(handle)
            return handle

        monkeypatch.setattr(first.kept, "handle", let_go_since)
        assert (await said(first, "door"))[0] == told(bundle, 1) and len(found) == 2

    asyncio.run(work())


def test_sessions_leave_room_for_questions_without_one(bundle: Bundle, services: list[KeptService]) -> None:
    async def work() -> None:
        first, _ = services
        await first.open("a")
        await first.open("b")
        pieces = [piece async for piece in first.complete((encode_frame(FRAMES[0]),), WANTED)]
        assert "".join(piece.text for piece in pieces) == told(bundle, 1)

    asyncio.run(work())
