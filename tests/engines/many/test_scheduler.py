"""Many streams taking turns: order, fairness, what is dropped, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import Answer, Bundle, PVCStream
from engines.errors import FrameError, StreamError
from engines.many.handle import Busy, QueueLimits, StreamHandle
from engines.many.passes import Passes
from engines.many.scheduler import OneByOne, Scheduler
from engines.many.turns import Step

from ..exact import LIMITS, exact_bundle

MANY = QueueLimits(frames=100, questions=100)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return exact_bundle(tmp_path, limits=replace(LIMITS, context=480))


class Gate:
    """A Together that waits at a gate, and records the number of steps per round."""

    def __init__(self, bundle: Bundle, *, most: int = 8) -> None:
        self.bundle, self.most = bundle, most
        self.opened = threading.Event()
        self.sizes: list[int] = []

    def run(self, steps: Sequence[Step]) -> None:
        assert self.opened.wait(10)
        self.sizes.append(len(steps))
        for step in steps:
            step()


@pytest.fixture
def gate(bundle: Bundle) -> Gate:
    return Gate(bundle)


@contextmanager
def scheduling(together: Any, *, max_streams: int = 4) -> Iterator[Scheduler]:
    scheduler = Scheduler(together, max_streams=max_streams, gather_s=0.0)
    try:
        yield scheduler
    finally:
        if isinstance(together, Gate):
            together.opened.set()
        scheduler.close()


def picture(value: int) -> np.ndarray:
    return np.full((40, 40, 3), value, np.uint8)


def seen(handle: StreamHandle, values: list[int]) -> None:
    """Record the frames pushed to the stream, by their value."""
    push = handle.stream.push

    def pushed(frame: Any) -> Any:
        values.append(int(frame[0, 0, 0]))
        return push(frame)

    handle.stream.push = pushed  # type: ignore[method-assign]


def talkative(bundle: Bundle) -> str:
    """Find a question about picture(1) with at least six answer tokens: most whole-number answers are shorter."""
    stream = PVCStream(bundle)
    stream.push(picture(1))
    words = (f"What {number}?" for number in range(1000))
    return next(each for each in words if len(stream.ask(each, max_new_tokens=6).token_ids) == 6)


def held_up(handle: StreamHandle) -> Future[Any]:
    """Keep the scheduler busy, so that whatever comes next waits."""
    future = handle.call(lambda stream: None)
    while not future.running() and not future.done() and handle.line:
        time.sleep(0.001)
    return future


def test_frames_are_seen_in_the_order_they_came_and_a_question_is_about_those_before_it(gate: Gate) -> None:
    with scheduling(gate) as scheduler:
        handle, values = scheduler.open(limits=MANY), list[int]()
        seen(handle, values)
        handle.push(picture(1))
        handle.push(picture(2))
        number = handle.call(lambda stream: stream.num_frames)
        answer = handle.ask("What moves?", max_new_tokens=2)
        handle.push(picture(3))
        last = handle.call(lambda stream: stream.num_frames)
        gate.opened.set()
        assert number.result(10) == 2 and last.result(10) == 3 and values == [1, 2, 3]
    alone = PVCStream(scheduler.bundle)
    for value in (1, 2):
        alone.push(picture(value))
    assert answer.result(10).token_ids == alone.ask("What moves?", max_new_tokens=2).token_ids


def test_frames_continue_while_an_answer_is_decoded_and_its_text_is_heard_token_by_token(gate: Gate) -> None:
    with scheduling(gate) as scheduler:
        handle = scheduler.open(limits=MANY)
        handle.push(picture(1))
        heard: list[tuple[int, str]] = []
        answer = handle.ask(
            talkative(scheduler.bundle), max_new_tokens=6,
            heard=lambda text: heard.append((handle.stream.num_frames, text)),
        )  # fmt: skip
        pushed = [handle.push(picture(value)) for value in range(2, 5)]
        gate.opened.set()
        done = answer.result(10)
        assert all(each.result(10) is not None for each in pushed)
    assert [number for number, _ in heard][:3] == [2, 3, 4]  # one frame between two tokens
    assert heard[-1][1] == done.text and len(heard) >= len(done.token_ids)


def test_frames_wait_rather_than_cut_an_answer_by_two_anchors(tmp_path: Path) -> None:
    gate = Gate(exact_bundle(tmp_path, trained_frames=3, limits=replace(LIMITS, context=480)))
    with scheduling(gate) as scheduler:
        handle = scheduler.open(limits=MANY, clock="reanchor", retain=2)
        handle.push(picture(1))
        answer = handle.ask(talkative(scheduler.bundle), max_new_tokens=6)
        pushed = [handle.push(picture(value)) for value in range(2, 14)]
        gate.opened.set()
        assert len(answer.result(10).token_ids) == 6
        assert all(each.result(10) is not None for each in pushed) and handle.stream.num_anchors > 8


@pytest.mark.parametrize("when_full", ["drop-oldest", "refuse"])
def test_a_camera_that_is_too_fast_loses_its_oldest_frames_or_is_told_to_wait(gate: Gate, when_full: Any) -> None:
    with scheduling(gate) as scheduler:
        handle, values = scheduler.open(limits=QueueLimits(frames=2, when_full=when_full)), list[int]()
        other = scheduler.open()
        seen(handle, values)
        held_up(other)
        pushed, refused = [], 0
        for value in range(6):
            try:
                pushed.append(handle.push(picture(value)))
            except Busy as error:
                refused += 1
                assert error.retry_after_s > 0
        gate.opened.set()
        results = [each.result(10) for each in pushed]
        handle.call(lambda stream: None).result(10)
    if when_full == "refuse":
        assert refused in (3, 4) and values == list(range(6 - refused)) and None not in results
    else:
        assert refused == 0 and values[-2:] == [4, 5] and results.count(None) == handle.num_dropped >= 3
        assert [result is None for result in results] == [value not in values for value in range(6)]


def test_a_stream_with_much_to_do_holds_up_no_other_one(gate: Gate) -> None:
    gate.most = 1
    with scheduling(gate) as scheduler:
        busy, quiet = scheduler.open(limits=MANY), scheduler.open()
        order: list[str] = []
        for index in range(20):
            busy.push(picture(index)).add_done_callback(lambda _: order.append("busy"))
        quiet.push(picture(1)).add_done_callback(lambda _: order.append("quiet"))
        quiet.ask("What moves?", max_new_tokens=3).add_done_callback(lambda _: order.append("answer"))
        gate.opened.set()
        busy.call(lambda stream: None).result(10)
    assert order.index("quiet") <= 2 and order.index("answer") <= 9


def test_what_is_ready_at_once_shares_a_round(gate: Gate) -> None:
    with scheduling(gate) as scheduler:
        handles = [scheduler.open() for _ in range(4)]
        held_up(handles[0])
        pushed = [handle.push(picture(1)) for handle in handles]
        gate.opened.set()
        assert [each.result(10) is not None for each in pushed] == [True] * 4
    assert gate.sizes[:2] == [1, 4] and scheduler.counts.frames == 4


def test_a_frame_that_is_none_fails_alone_and_so_does_a_question(bundle: Bundle) -> None:
    with scheduling(OneByOne(bundle=bundle)) as scheduler:
        handle = scheduler.open(limits=MANY)
        good, bad, after = handle.push(picture(1)), handle.push(np.zeros((4, 4), np.uint8)), handle.push(picture(2))
        with pytest.raises(FrameError):
            bad.result(10)
        assert good.result(10) is not None and after.result(10) is not None
        with pytest.raises(StreamError, match="special token"):
            handle.ask("<|im_end|>").result(10)
        assert handle.ask("What moves?", max_new_tokens=1).result(10).token_ids
        assert scheduler.counts.failures == 2


def test_a_question_that_nobody_waits_for_any_more_ends(gate: Gate) -> None:
    with scheduling(gate) as scheduler:
        handle = scheduler.open()
        handle.push(picture(1))
        heard: list[str] = []
        question = talkative(scheduler.bundle)
        first: Future[Answer] = handle.ask(question, max_new_tokens=50, heard=lambda text: give_up())
        waiting = handle.ask("Who?", max_new_tokens=50)

        def give_up() -> None:
            heard.append("")
            if len(heard) == 2:
                first.cancel()

        waiting.cancel()
        gate.opened.set()
        with pytest.raises(CancelledError):
            first.result(10)
        assert handle.call(lambda stream: stream.context.branch).result(10) is None
        assert len(heard) == 2 and scheduler.counts.answers == 0


def test_a_stream_that_is_closed_says_so_to_whoever_waits_and_its_caches_serve_the_next_as_new(gate: Gate) -> None:
    with scheduling(gate, max_streams=1) as scheduler:
        handle = scheduler.open(limits=MANY)
        stream = handle.stream
        waiting: list[Future[Any]] = [handle.push(picture(1)), handle.ask("What?"), handle.call(lambda stream: None)]
        handle.close()
        handle.close()
        with pytest.raises(StreamError, match="is closed"):
            handle.push(picture(1))
        gate.opened.set()
        for each in waiting[1:]:
            with pytest.raises(StreamError, match="was closed before"):
                each.result(10)
        while scheduler.handles:
            time.sleep(0.001)
        again = scheduler.open()
        assert again.stream is stream and handle.num_frames == 0
        assert again.call(lambda stream: (stream.num_frames, stream.context_rows)).result(10) == (0, 0)


def test_caches_that_wait_for_a_stream_of_their_options_make_room_for_one_of_others(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, limits=replace(LIMITS, streams=2))
    passes = Passes(replace(bundle, manifest=manifest), max_streams=1)
    with scheduling(passes, max_streams=1) as scheduler:
        for clock in ("reanchor", "run-on", "reanchor"):
            handle = scheduler.open(clock=clock)
            handle.push(picture(1)).result(10)
            handle.close().result(10)
            with pytest.raises(StreamError, match="is closed"):
                handle.stream.reset()


def test_no_more_streams_are_open_than_may_be(gate: Gate) -> None:
    with scheduling(gate, max_streams=2) as scheduler:
        scheduler.open()
        scheduler.open()
        with pytest.raises(Busy, match="2 streams are open") as caught:
            scheduler.open()
        assert caught.value.retry_after_s > 0
    with pytest.raises(StreamError, match="max_streams"):
        Scheduler(gate, max_streams=0)


def test_a_stream_continues_from_a_file(bundle: Bundle, tmp_path: Path) -> None:
    with scheduling(OneByOne(bundle=bundle)) as scheduler:
        handle = scheduler.open()
        handle.push(picture(1))
        handle.call(lambda stream: stream.save(tmp_path / "state.npz")).result(10)
        expected = handle.ask("What moves?", max_new_tokens=3).result(10)
        again = scheduler.open(saved=str(tmp_path / "state.npz"))
        assert again.ask("What moves?", max_new_tokens=3).result(10).token_ids == expected.token_ids


@pytest.mark.parametrize(("drain_s", "is_done"), [(10.0, True), (0.0, False)])
def test_it_ends_with_what_waits_done_or_refused(gate: Gate, drain_s: float, is_done: bool) -> None:
    scheduler = Scheduler(gate, max_streams=2, gather_s=0.0)
    handle = scheduler.open(limits=MANY)
    held_up(handle)
    pushed = [handle.push(picture(value)) for value in range(5)]
    threading.Timer(0.1, gate.opened.set).start()
    assert scheduler.close(drain_s=drain_s) is is_done
    with pytest.raises(StreamError, match="closed"):
        scheduler.open()
    assert all(each.done() for each in pushed)
    assert all((each.exception() is None) is is_done for each in pushed[1:])
