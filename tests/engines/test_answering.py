"""An answer one token per step: its tokens, frames that come in between, and how it ends. On a whole-number model.

The stories of test_state_machine.py check that none of this leaves a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import NonFiniteError, StreamError, StreamFull

from .doubles import lines_of, struck
from .exact import exact_bundle
from .test_fork import FRAMES, pushed, state_of
from .test_interrupts import told

TRAINED = 4


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return exact_bundle(tmp_path, trained_frames=TRAINED)


@pytest.fixture
def stream(bundle: Bundle) -> PVCStream:
    return pushed(PVCStream(bundle, clock="run-on"), FRAMES[:2])


@pytest.mark.parametrize("keep", [False, True])
def test_step_by_step_it_is_what_ask_says(stream: PVCStream, keep: bool) -> None:
    twin = stream.fork()
    answering, texts = stream.begin("what?", max_new_tokens=5, keep=keep), []
    while not answering.step():
        texts.append(answering.text)
    expected, answer = twin.ask("what?", max_new_tokens=5, keep=keep), answering.answer
    assert answer is not None and (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
    assert len(texts) == len(answer.token_ids) - (not answer.finished) and answer.margin == expected.margin >= 0
    assert state_of(stream) == state_of(twin)


def test_the_margin_is_the_least_lead_of_the_first_tokens(stream: PVCStream) -> None:
    answer = stream.ask("what?", max_new_tokens=5)
    logits = np.sort(stream.score("what?", answer.token_ids))[:3]
    assert answer.margin == min(logits[:, -1] - logits[:, -2])


def test_it_is_about_the_frames_before_it_and_the_next_one_about_those_that_came(stream: PVCStream) -> None:
    before = stream.fork().ask("what?", max_new_tokens=3).token_ids
    answering = stream.begin("what?", max_new_tokens=3)
    answering.step()
    pushed(stream, FRAMES[2:5])
    while not answering.step():
        pass
    assert answering.answer is not None and answering.answer.token_ids == before
    after = pushed(PVCStream(stream._bundle, clock="run-on"), FRAMES[:5])
    assert stream.num_waiting > 0 and stream.num_frames == 5
    assert stream.ask("what?", max_new_tokens=3).token_ids == after.ask("what?", max_new_tokens=3).token_ids
    assert stream.num_waiting == 0


def test_an_answer_outlives_the_anchor_that_comes_meanwhile_and_not_the_one_after(bundle: Bundle) -> None:
    stream = pushed(PVCStream(bundle, clock="reanchor", retain=2), FRAMES[:TRAINED])
    expected = stream.fork().ask("what?", max_new_tokens=4).token_ids
    answering = stream.begin("what?", max_new_tokens=4)
    stream.push(FRAMES[4])
    assert stream.num_anchors == 1
    cut = stream.begin("and now?", max_new_tokens=4)  # part of the new episode, alongside the first answer
    while not answering.step():
        pass
    assert answering.answer is not None and answering.answer.token_ids == expected
    while stream.num_anchors < 3:
        stream.push(FRAMES[5])
    assert cut.is_cut
    with pytest.raises(StreamError, match="this answer is cut"):
        cut.step()


@pytest.mark.parametrize("end", [PVCStream.cancel, PVCStream.reset], ids=["cancel", "reset"])
def test_an_answer_that_is_cut_leaves_the_stream_free(stream: PVCStream, end: Callable[[PVCStream], None]) -> None:
    answering = stream.begin("what?", max_new_tokens=4, keep=True)
    answering.step()
    end(stream)
    assert answering.is_cut and answering.answer is None
    twin = PVCStream(stream._bundle, clock="run-on")
    assert state_of(stream) == state_of(twin if end is PVCStream.reset else pushed(twin, FRAMES[:2]))
    assert stream.ask("what?", max_new_tokens=1).margin > 0


def test_while_it_is_decoded_only_frames_are_taken(stream: PVCStream, tmp_path: Path) -> None:
    answering = stream.begin("what?", max_new_tokens=4)
    calls: tuple[Callable[[], object], ...] = (
        lambda: stream.ask("?"), lambda: stream.begin("?"), lambda: stream.score("?", []), stream.fork,
        lambda: stream.save(tmp_path / "s.npz"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(StreamError, match="a question is being answered"):
            call()
    assert not answering.is_cut and not list(tmp_path.glob("s.npz"))
    while not answering.step():
        pass
    with pytest.raises(StreamError, match="this answer is done"):
        answering.step()


@pytest.mark.parametrize("graph", ["llm", "head"])
def test_a_step_that_fails_cancels_the_answer_and_keeps_the_frames(bundle: Bundle, graph: str) -> None:
    failing, session = struck(bundle, graph)
    stream = pushed(PVCStream(failing, clock="run-on"), FRAMES[:2])
    answering = stream.begin("what?", max_new_tokens=4)
    stream.push(FRAMES[2])
    session.arm("overflow", 1)
    with pytest.raises(NonFiniteError):
        answering.step()
    assert answering.is_cut and stream.num_frames == 3
    twin = pushed(PVCStream(bundle, clock="run-on"), FRAMES[:4])
    assert state_of(pushed(stream, FRAMES[3:4])) == state_of(twin)


def test_rows_that_an_answer_may_keep_are_not_given_to_frames(bundle: Bundle) -> None:
    stream = pushed(PVCStream(bundle, clock="run-on"), FRAMES[:3])
    answering = stream.begin("what is it?", max_new_tokens=20, keep=True)
    with pytest.raises(StreamFull):
        pushed(stream, FRAMES[3:9])
    while not answering.step():
        pass
    assert stream.context_rows <= bundle.manifest.limits.context
    stream.score("", [])  # takes in the waiting rows: they all fit


def test_an_interrupt_before_any_line_of_a_step_leaves_the_answer_whole_or_no_trace_of_it(stream: PVCStream) -> None:
    before = told(stream)
    num_lines = lines_of(stream.fork().begin("what?", max_new_tokens=1).step)
    for at in range(1, num_lines + 1):
        struck_stream = stream.fork()
        answering = struck_stream.begin("what?", max_new_tokens=1)
        with pytest.raises(KeyboardInterrupt):
            lines_of(answering.step, interrupt_at=at)
        struck_stream.cancel()  # needed if the interrupt came before the step began
        assert told(struck_stream) == before, f"line {at} of {num_lines}"
