"""Lazy ingest: frames wait for a question, in limited number, and no answer changes by it. Also scores of an answer."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_bundle, open_stream
from engines.bundle import Bundle
from engines.errors import NonFiniteError, StreamError, StreamFull
from engines.ingest import Ingest
from engines.session import Session, Wrapped
from pvc_export.parity.recorded_sessions import Recorder

from .doubles import struck, with_sessions

Frames = list[np.ndarray]
QUESTION = "What moves?"


@pytest.fixture(scope="module", params=["bundle_rows", "bundle_fp16"], ids=["rows", "aliased"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both cache updates."""
    return open_bundle(request.getfixturevalue(request.param), runtime="cpu")


def pushed(bundle: Bundle, frames: Frames, ingest: Ingest, max_waiting: int = 16) -> PVCStream:
    stream = PVCStream(bundle, ingest=ingest, max_waiting=max_waiting)
    for frame in frames:
        stream.push(frame)
    return stream


@pytest.mark.parametrize("max_waiting", [1, 3, 16])
def test_a_lazy_stream_says_what_an_eager_one_says(bundle: Bundle, frames: Frames, max_waiting: int) -> None:
    lazy, eager = pushed(bundle, frames[:7], "lazy", max_waiting), pushed(bundle, frames[:7], "eager")
    assert lazy.context_rows == eager.context_rows and eager.num_waiting == 0
    for question, keep in ((QUESTION, False), ("And before?", True), ("And now?", False)):
        said = [stream.ask(question, max_new_tokens=8, keep=keep).token_ids for stream in (lazy, eager)]
        assert said[0] == said[1]
        assert lazy.num_waiting == 0 and lazy.context_rows == eager.context_rows
        for stream in (lazy, eager):
            stream.push(frames[8])


def test_never_more_frames_wait_than_are_allowed_and_none_is_dropped(bundle: Bundle, frames: Frames) -> None:
    stream = PVCStream(bundle, ingest="lazy", max_waiting=3)
    waited, taken_in = [], []
    for frame in frames[:8]:
        stream.push(frame)
        waited.append(stream.num_waiting)
        taken_in.append(stream.language.cache.length > 0)
    assert waited == [1, 2, 3, 1, 2, 3, 1, 2] and taken_in == [False] * 3 + [True] * 5


def test_frames_that_waited_share_one_pass(bundle: Bundle, frames: Frames) -> None:
    recorder = Recorder(bundle.sessions)
    stream = pushed(replace(bundle, sessions=recorder.sessions), frames[:6], "lazy")
    assert recorder.calls["llm"] == []
    stream.ask(QUESTION, max_new_tokens=1)
    assert len(recorder.calls["llm"]) == 2, "six frames with the question, then the answer's token"


def test_a_lazy_stream_is_full_at_the_frame_that_an_eager_one_is(bundle: Bundle, frames: Frames) -> None:
    counts = []
    for ingest in ("lazy", "eager"):
        stream = PVCStream(bundle, ingest=ingest, max_waiting=1000)  # type: ignore[arg-type]
        with pytest.raises(StreamFull, match="--context"):
            while True:
                stream.push(frames[stream.num_frames % 12])
        counts.append((stream.num_frames, stream.context_rows))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("at", [1, 2], ids=["taking in what waits", "the first token"])
def test_a_failed_question_leaves_what_waits_where_it_was(bundle: Bundle, frames: Frames, at: int) -> None:
    failing, _ = struck(bundle, "llm", "lost", at)
    stream = pushed(failing, frames[:4], "lazy")
    rows = stream.context_rows
    with pytest.raises(RuntimeError, match="device lost"):
        stream.ask(QUESTION, max_new_tokens=4)
    assert (stream.num_frames, stream.context_rows) == (4, rows)
    assert stream.num_waiting == (4 if at == 1 else 0)
    expected = pushed(bundle, frames[:4], "eager").ask(QUESTION, max_new_tokens=6).token_ids
    assert stream.ask(QUESTION, max_new_tokens=6).token_ids == expected


def test_a_failed_frame_of_a_lazy_stream_changes_nothing(bundle: Bundle, frames: Frames) -> None:
    stream = pushed(bundle, frames[:3], "lazy")
    commit = stream.vision.commit

    def fail(encoded: object) -> None:
        raise KeyboardInterrupt

    stream.vision.commit = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stream.push(frames[3])
    stream.vision.commit = commit  # type: ignore[method-assign]
    assert (stream.num_frames, stream.num_waiting) == (3, 3)
    expected = pushed(bundle, frames[:3], "eager").ask(QUESTION, max_new_tokens=6).token_ids
    assert stream.ask(QUESTION, max_new_tokens=6).token_ids == expected


def test_frames_that_wait_are_saved_with_their_stream(bundle: Bundle, frames: Frames, tmp_path: Path) -> None:
    stream = pushed(bundle, frames[:6], "lazy", max_waiting=4)
    stream.save(tmp_path / "s.npz")
    opened = open_stream(tmp_path / "s.npz", bundle)
    assert opened.num_waiting == stream.num_waiting == 2 and opened.context_rows == stream.context_rows
    for each in (stream, opened):
        for frame in frames[6:9]:
            each.push(frame)
    assert opened.num_waiting == stream.num_waiting == 1, "the bound must be saved too"
    scores = [each.score(QUESTION, [1, 2, 3]) for each in (stream, opened)]
    assert np.array_equal(*scores)


def test_a_reset_lazy_stream_waits_for_nothing(bundle: Bundle, frames: Frames) -> None:
    stream = pushed(bundle, frames[:3], "lazy")
    stream.reset()
    assert (stream.num_waiting, stream.context_rows, stream.num_frames) == (0, 0, 0)


@pytest.mark.parametrize(("ingest", "max_waiting"), [("later", 4), ("lazy", 0)])
def test_an_ingest_that_cannot_be_is_refused(bundle: Bundle, ingest: Any, max_waiting: int) -> None:
    with pytest.raises(StreamError) as info:
        PVCStream(bundle, ingest=ingest, max_waiting=max_waiting)
    assert info.value.expected.startswith("one of eager, lazy" if ingest == "later" else "at least 1")


def test_an_answer_without_room_for_a_token_is_refused(bundle: Bundle) -> None:
    with pytest.raises(StreamError, match="max_new_tokens is 0"):
        PVCStream(bundle).ask(QUESTION, max_new_tokens=0)


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_the_scores_of_an_answer_prefer_each_of_its_tokens(bundle: Bundle, frames: Frames, ingest: Ingest) -> None:
    """Teacher-forced with the model's greedy answer: in every row the likeliest token is the next one."""
    stream = pushed(bundle, frames[:5], ingest)
    answer = stream.ask(QUESTION, max_new_tokens=6)
    rows = stream.context_rows
    logits = stream.score(QUESTION, answer.token_ids)
    assert logits.shape == (7, bundle.manifest.shape.vocab_size) and logits.dtype == np.float32
    assert tuple(logits[:-1].argmax(axis=-1)) == answer.token_ids
    assert stream.context_rows == rows, "the question must be rolled back"


MARK = np.float32(12345.0)


def overflowing_at(bundle: Bundle, bad: int) -> Bundle:
    """Make the LLM return NaN whenever it is fed the frame from the compressor's nth run."""
    runs = count(1)

    def mark(session: Session, inputs: Any) -> Any:
        outputs = dict(session.run(inputs))
        if next(runs) == bad:
            outputs["frame_embeds"] = np.array(outputs["frame_embeds"])
            outputs["frame_embeds"][0, 0, 0] = MARK
        return outputs

    def overflow(session: Session, inputs: Any) -> Any:
        outputs = dict(session.run(inputs))
        if np.any(inputs["inputs_embeds"] > 12000):
            outputs["hidden"] = np.full_like(outputs["hidden"], np.nan)
        return outputs

    sessions = bundle.sessions
    return with_sessions(
        bundle, compressor=Wrapped(sessions["compressor"], mark), llm=Wrapped(sessions["llm"], overflow)
    )


@pytest.mark.parametrize("bad", [1, 3, 4], ids=["the first", "one between", "the last"])
@pytest.mark.parametrize("found_by", ["a question", "a frame"])
def test_a_frame_that_overflows_costs_a_lazy_stream_one_call_and_itself(
    bundle: Bundle, frames: Frames, bad: int, found_by: str
) -> None:
    """The conversation around it stays intact: the same text as if the frame had never waited."""
    stream = PVCStream(overflowing_at(bundle, bad), ingest="lazy", max_waiting=4)
    for frame in frames[:4]:
        stream.push(frame)
    with pytest.raises(NonFiniteError, match=f"waiting frame {bad} was dropped: graph 'llm'"):
        stream.push(frames[4]) if found_by == "a frame" else stream.ask(QUESTION)
    assert (stream.num_waiting, stream.num_frames) == (3, 4) and stream.language.cache.length == 0
    healthy = PVCStream(bundle, ingest="lazy")
    for index, frame in enumerate(frames[:4], start=1):
        context = healthy.context
        before = context.mark()
        healthy.push(frame)
        if index == bad:
            context.rewind(before)
    assert stream.context_rows == healthy.context_rows
    said = [each.ask(QUESTION, max_new_tokens=6).token_ids for each in (stream, healthy)]
    assert said[0] == said[1]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, nth: int) -> None:
    """Raise Ctrl-C at the nth time a cache is cleared."""
    memory, calls = type(bundle.sessions["llm"].memory), [0]
    clear = memory.clear

    def interrupted(self: Any, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == nth:
            raise KeyboardInterrupt
        clear(self, *args)

    monkeypatch.setattr(memory, "clear", interrupted)


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
@pytest.mark.parametrize("nth", [1, 3])
def test_an_interrupt_while_a_score_is_rolled_back_leaves_no_trace_of_it(
    bundle: Bundle, frames: Frames, nth: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pushed(bundle, frames[:3], ingest)
    stream.ask(QUESTION, max_new_tokens=1)  # the waiting frames are in the cache now
    rows = stream.context_rows
    with monkeypatch.context() as patch:
        interrupt_at(patch, bundle, nth)
        with pytest.raises(KeyboardInterrupt):
            stream.score(QUESTION, [1, 2])
    assert stream.context_rows == rows
    expected = pushed(bundle, frames[:3], "eager").ask(QUESTION, max_new_tokens=6).token_ids
    assert stream.ask(QUESTION, max_new_tokens=6).token_ids == expected


@pytest.mark.parametrize("nth", range(1, 9))
def test_an_interrupted_reset_is_a_reset(
    bundle: Bundle, frames: Frames, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rings and four caches are cleared, one after another."""
    stream = pushed(bundle, frames[:5], "eager")
    with monkeypatch.context() as patch:
        interrupt_at(patch, bundle, nth)
        with pytest.raises(KeyboardInterrupt):
            stream.reset()
    assert (stream.num_frames, stream.context_rows) == (0, 0)
    for frame in frames[5:8]:
        stream.push(frame)
    expected = pushed(bundle, frames[5:8], "eager").ask(QUESTION, max_new_tokens=6).token_ids
    assert stream.ask(QUESTION, max_new_tokens=6).token_ids == expected


@pytest.mark.parametrize("token", [-1, 264, 10**9, 1.5, "a"])
def test_what_is_no_token_id_cannot_be_scored(bundle: Bundle, token: Any) -> None:
    with pytest.raises(StreamError, match="is not a token id") as info:
        PVCStream(bundle).score(QUESTION, [1, token])
    assert info.value.expected == "integers from 0 to 263"


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :10], lambda x: x.astype(np.uint8), lambda x: x[0]], ids=["narrow", "bytes", "flat"]
)
def test_waiting_frames_of_another_shape_are_no_saved_stream(
    bundle: Bundle, frames: Frames, tmp_path: Path, change: Any
) -> None:
    pushed(bundle, frames[:2], "lazy").save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:
        content = {name: file[name] for name in file.files}
    content["waiting/1"] = change(content["waiting/1"])
    np.savez(tmp_path / "s.npz", **content)
    with pytest.raises(StreamError, match="as a waiting frame") as info:
        open_stream(tmp_path / "s.npz", bundle)
    assert re.fullmatch(r"float\d\d \(.*, 64\)", info.value.expected)
