"""Streams that outlive their process: snapshots are complete, and another process continues from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.serving.handover import Snapshots
from apps.serving.kept import KeptStreams
from apps.serving.service import NoSession, Pushed
from apps.serving.stores import FolderStore, Store, open_store
from engines import Bundle, PVCStream, open_bundle
from engines.errors import FrameError, MediaError
from engines.many.handle import Busy
from engines.many.scheduler import OneByOne, Scheduler
from engines.synthetic import Frame, render_clip

QUESTION = "What?"
FRAMES = list(render_clip(24, seed=3, width=32, height=32))
EVERY = 4

Process = Callable[..., KeptStreams]


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


@pytest.fixture
def process(bundle: Bundle, tmp_path: Path) -> Iterator[Process]:
    """A process: a scheduler, and snapshots in a shared folder. A process that a test does not end is killed."""
    schedulers: list[Scheduler] = []

    def start(owner: str, *, store: Store | None = None, max_streams: int = 4, **options: Any) -> KeptStreams:
        schedulers.append(Scheduler(OneByOne(bundle=options.pop("bundle", bundle)), max_streams=max_streams))
        snapshots = Snapshots(store or FolderStore(tmp_path / "snapshots"), owner=owner)
        return KeptStreams(schedulers[-1], snapshots, **{"every": EVERY, "wait_s": 0.0} | options)

    yield start
    for scheduler in schedulers:
        scheduler.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def push(streams: KeptStreams, index: int | None, *, frame: Frame | None = None) -> Pushed:
    shown = FRAMES[index or 0] if frame is None else frame
    return await streams.push("door", lambda: shown, index)


async def settled(streams: KeptStreams) -> None:
    """Wait until all due snapshots are written."""
    while any(held.is_saving for held in streams._held.values()):
        await asyncio.sleep(0.005)


async def push_all(streams: KeptStreams, indices: range) -> None:
    for index in indices:
        await push(streams, index)
        await settled(streams)


async def answer(streams: KeptStreams) -> str:
    handle = await streams.handle("door")
    return (await asyncio.wrap_future(handle.ask(QUESTION, max_new_tokens=8))).text


def told(bundle: Bundle, *indices: int) -> str:
    """Return the answer of a stream that has seen these frames."""
    stream = PVCStream(bundle)
    for index in indices:
        stream.push(FRAMES[index])
    return stream.ask(QUESTION, max_new_tokens=8).text


# -- another process continues -----------------------------------------------------------------------------------------


def test_a_stream_whose_process_was_killed_continues_from_its_last_snapshot_and_says_what_was_lost(
    bundle: Bundle, process: Process
) -> None:
    async def work() -> None:
        first = process("a")
        assert (await first.open("door")).num_frames == 0
        await push_all(first, range(11))  # snapshots at frames 4 and 8
        second = process("b")
        assert (await push(second, 3)).is_repeated  # already in the snapshot: no frame is pushed twice
        pushed = await push(second, 11)
        assert pushed.lost == "frames 8 to 10 were lost with their replica"
        assert (pushed.num_frames, pushed.gap, pushed.is_repeated) == (9, 3, False)
        assert (await push(second, 12)).lost == "" and (await push(second, 11)).is_repeated
        assert await answer(second) == told(bundle, *range(8), 11, 12) != told(bundle, *range(13))

    run(work())


@pytest.mark.parametrize(
    ("next_frame", "lost"), [(8, ""), (9, "frame 8 was lost with"), (None, "snapshot at frame 8")]
)  # fmt: skip
def test_of_what_was_lost_no_more_is_reported_than_is_true(process: Process, next_frame: int | None, lost: str) -> None:
    async def work() -> None:
        first, second = process("a"), process("b")
        await first.open("door")
        await push_all(first, range(9))
        opened = await second.open("door")
        assert opened.num_frames == 8 and "snapshot at frame 8" in opened.lost
        pushed = await push(second, next_frame)
        assert (lost in pushed.lost if lost else pushed.lost == "") and pushed.num_frames == 9

    run(work())


def test_what_was_lost_is_reported_though_whoever_lost_it_was_asked_first_and_let_go_since(process: Process) -> None:
    async def work() -> None:
        first, second, third, fourth = (process(owner) for owner in "abcd")
        await first.open("door")
        await push_all(first, range(7))
        await answer(second)  # takes over the stream; no client learns of lost frames yet
        await second.release("door")
        lost = "frames 4 to 6 were lost with their replica"
        assert (await push(third, 7)).lost == lost
        repeated = await push(third, 7)  # the client did not receive the reply
        assert (repeated.is_repeated, repeated.lost) == (True, lost) and (await push(third, 6)).lost == ""
        await third.release("door")
        assert (await push(fourth, 7)).lost == lost and (await push(fourth, 8)).lost == ""

    run(work())


def test_a_stream_that_is_let_go_loses_nothing(bundle: Bundle, process: Process) -> None:
    async def work() -> None:
        first, second = process("a"), process("b")
        await first.open("door")
        await push_all(first, range(7))
        await asyncio.to_thread(first.release_all)
        with pytest.raises(Busy):
            await push(first, 7)
        pushed = await push(second, 7)
        assert (pushed.lost, pushed.gap, pushed.num_frames) == ("", 0, 8)
        assert await answer(second) == told(bundle, *range(8))

    run(work())


def test_a_stream_that_comes_back_is_as_the_other_process_left_it(bundle: Bundle, process: Process) -> None:
    """The stream moves from the first process to the second and back. The first still has its old copy."""

    async def work() -> None:
        first, second = process("a"), process("b")
        await first.open("door")
        await push_all(first, range(6))
        await push_all(second, range(6, 10))  # from the snapshot at 4, and saved after four more frames
        assert await answer(first) == told(bundle, *range(4), *range(6, 10))
        assert (await push(first, 10)).num_frames == 9

    run(work())


def test_a_process_that_was_cut_off_never_writes_over_the_one_that_took_its_stream(
    bundle: Bundle, process: Process, tmp_path: Path
) -> None:
    async def work() -> None:
        first, second = process("a"), process("b")
        await first.open("door")
        await push_all(first, range(5))
        assert (await push(second, 5)).num_frames == 5
        await push_all(first, range(5, 8))  # still routed here: the process learns of the handover when it saves
        await asyncio.to_thread(first.release_all)
        names = [path.name for path in (tmp_path / "snapshots" / "door").iterdir()]
        assert names == ["00000002-b.pvc"]
        assert await answer(second) == told(bundle, *range(4), 5)

    run(work())


def test_an_owner_that_lives_is_asked_and_waited_for(bundle: Bundle, process: Process) -> None:
    async def work() -> None:
        asked: list[str] = []
        first = process("a")

        async def ask_owner(session: str, owner: str) -> None:
            asked.append(owner)
            await first.release(session)

        second = process("b", wait_s=30.0, is_alive=lambda owner: owner == "a", ask_owner=ask_owner)
        await first.open("door")
        await push_all(first, range(7))
        assert (await push(second, 7)).lost == "" and asked == ["a"] and first.sessions == ()
        assert await answer(second) == told(bundle, *range(8))

        third = process("c", wait_s=0.2, is_alive=lambda owner: True)  # hangs, and is not waited for without end
        assert (await push(third, 9)).lost == "frames 7 to 8 were lost with their replica"

    run(work())


def test_frames_that_come_together_stand_as_they_came_and_a_retry_waits_for_its_frame(
    bundle: Bundle, process: Process
) -> None:
    async def work() -> None:
        streams = process("a")
        await streams.open("door")
        pushed = await asyncio.gather(*(push(streams, index) for index in (0, 1, 1, 2, 0)))
        assert [each.is_repeated for each in pushed] == [False, False, True, False, True]
        assert await answer(streams) == told(bundle, 0, 1, 2)

    run(work())


def test_a_frame_that_fails_may_come_again(bundle: Bundle, process: Process) -> None:
    async def work() -> None:
        streams = process("a")
        await streams.open("door")

        def unreadable() -> Frame:
            raise MediaError("this is no picture")

        with pytest.raises(MediaError):
            await streams.push("door", unreadable, 0)
        with pytest.raises(FrameError):
            await push(streams, 0, frame=np.zeros((3, 3), np.uint8))
        assert not (await push(streams, 0)).is_repeated
        assert await answer(streams) == told(bundle, 0)

    run(work())


def test_a_session_is_nowhere_before_it_is_opened_and_after_it_is_closed(process: Process, tmp_path: Path) -> None:
    async def work() -> None:
        streams = process("a")
        with pytest.raises(NoSession):
            await push(streams, 0)
        await streams.open("door")
        await push_all(streams, range(5))
        await streams.close("door")
        for each in (streams, process("b")):
            with pytest.raises(NoSession):
                await push(each, 5)
            with pytest.raises(NoSession):
                await each.close("door")
        assert list((tmp_path / "snapshots").iterdir()) == []

    run(work())


def test_a_process_that_is_full_lets_go_of_what_is_idle(
    bundle: Bundle, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        streams = process("a", max_streams=1)
        await streams.open("door")
        await push_all(streams, range(3))
        with pytest.raises(Busy):
            await streams.open("gate")
        monkeypatch.setattr("apps.serving.kept.IDLE_S", 0.0)
        await streams.open("gate")
        assert streams.sessions == ("gate",)
        assert (await push(streams, 3)).lost == "" and await answer(streams) == told(bundle, *range(4))

    run(work())


def test_streams_are_handed_over_through_an_object_store(bundle: Bundle, process: Process, tmp_path: Path) -> None:
    async def work() -> None:
        place = f"memory://{tmp_path}"
        first = process("a", store=open_store(place))
        await first.open("door")
        await push_all(first, range(6))
        second = process("b", store=open_store(place))
        assert (await push(second, 6)).lost == "frames 4 to 5 were lost with their replica"
        assert await answer(second) == told(bundle, *range(4), 6)

    run(work())


# -- snapshots that cannot be loaded -----------------------------------------------------------------------------------


def test_a_snapshot_that_is_damaged_or_of_another_bundle_is_refused_and_the_stream_starts_over(
    bundle: Bundle, process: Process, tmp_path: Path
) -> None:
    async def work(damage: Callable[[Path], None], said: str, other: Bundle) -> None:
        first = process("a")
        await first.open("door")
        await push_all(first, range(5))
        (path,) = (tmp_path / "snapshots" / "door").iterdir()
        damage(path)
        second = process("b", bundle=other)
        assert said in (await second.open("door")).lost
        pushed = await push(second, 5)
        assert (
            pushed.lost.startswith("the session starts from scratch, and its earlier frames are lost: ")
            and said in pushed.lost
        )
        assert (pushed.num_frames, pushed.is_repeated) == (1, False) and (await push(second, 6)).lost == ""
        assert await answer(second) == told(bundle, 5, 6)
        await second.close("door")

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-9])

    manifest = replace(bundle.manifest, limits=replace(bundle.manifest.limits, streams=1))
    run(work(cut, "is damaged", bundle))
    run(work(lambda path: path.write_bytes(b""), "is damaged", bundle))
    run(work(lambda path: None, "with another bundle", replace(bundle, manifest=manifest)))


def test_a_snapshot_that_cannot_be_written_is_reported_and_the_stream_continues(
    bundle: Bundle, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        said: list[str] = []
        streams = process("a", say=said.append)
        await streams.open("door")
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", full)
            await push_all(streams, range(5))
        assert said and "stream 'door' was not saved" in said[0] and "No space left" in said[0]
        await push_all(streams, range(5, 9))
        assert await answer(streams) == told(bundle, *range(9)) and (await process("b").open("door")).num_frames == 8

    run(work())


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")
