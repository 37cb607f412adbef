"""What fails or is interrupted while a stream starts anew: no frame is lost, none is seen twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import open_stream
from engines.bundle import Bundle
from engines.errors import NonFiniteError
from engines.ingest import Ingest
from engines.session import Session, Wrapped

from .doubles import ERRORS, lines_of, struck, with_sessions
from .exact import LIMITS, exact_bundle
from .test_reanchor import TRAINED, Frames, R, anchored, bundle, fresh, said_by, state_of

__all__ = ["bundle"]  # a fixture


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_a_replay_that_fails_anywhere_in_any_way_and_again_leaves_the_stream_as_it_was(
    bundle: Bundle, frames: Frames, ingest: Ingest
) -> None:
    failing, sessions = bundle, {}
    for graph in ("trunk", "temporal", "compressor", "embed"):
        failing, sessions[graph] = struck(failing, graph)
    stream = anchored(failing, frames[:TRAINED], ingest=ingest)
    stream.ask("Remember this.", max_new_tokens=3, keep=True)
    before = state_of(stream)
    places = [("trunk", 1), ("temporal", 1), ("temporal", R), ("temporal", R + 1), ("compressor", 2)]
    for graph, at in (*places, ("compressor", R + 1), ("embed", 1), ("embed", R + 1)):
        for error in ERRORS if graph != "embed" else ("lost",):
            sessions[graph].arm(error, at)
            with pytest.raises(ERRORS[error]):
                stream.push(frames[TRAINED])
            assert state_of(stream) == before, f"{error} in pass {at} of {graph}"
            assert (stream.num_frames, stream.num_anchors) == (TRAINED, 0)
            sessions[graph].arm("", 0)
    stream.push(frames[TRAINED])
    assert (stream.num_frames, stream.num_anchors) == (TRAINED + 1, 1)
    assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1], ingest=ingest))


@pytest.mark.parametrize("error", ["lost", "interrupt"])
@pytest.mark.parametrize("at", range(1, R + 2))
def test_an_llm_that_fails_behind_a_replay_loses_nothing(bundle: Bundle, frames: Frames, at: int, error: str) -> None:
    """The stream has started anew, the replayed frames that the LLM has not seen wait, and the new frame is not in."""
    for continued_by in ("a frame", "a question"):
        failing, session = struck(bundle, "llm")
        stream = anchored(failing, frames[:TRAINED])
        session.arm(error, at)
        with pytest.raises(ERRORS[error]):
            stream.push(frames[TRAINED])
        assert (stream.num_frames, stream.num_anchors) == (TRAINED, 1)
        assert (stream.num_context_frames, stream.num_waiting) == (R, R + 1 - at)
        twin = fresh(bundle, frames[TRAINED - R : TRAINED])
        assert stream.context_rows == twin.context_rows
        if continued_by == "a question":
            assert said_by(stream) == said_by(twin) and stream.num_waiting == 0
            continue
        for frame in frames[TRAINED : TRAINED + 2]:
            stream.push(frame)
            twin.push(frame)
        assert state_of(stream) == state_of(twin) and said_by(stream) == said_by(twin)


def test_a_lazy_llm_that_fails_behind_a_replay_takes_in_the_same_frames_later(bundle: Bundle, frames: Frames) -> None:
    failing, session = struck(bundle, "llm")
    stream = anchored(failing, frames[:TRAINED], ingest="lazy", max_waiting=2)
    session.arm("lost", 1)
    with pytest.raises(RuntimeError, match="device lost"):
        stream.push(frames[TRAINED])
    assert (stream.num_waiting, stream.num_anchors) == (R, 1)
    stream.push(frames[TRAINED])
    assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1], ingest="lazy", max_waiting=2))


@pytest.mark.parametrize("bad", range(R))
def test_a_replayed_frame_that_overflows_costs_one_call_and_itself(bundle: Bundle, frames: Frames, bad: int) -> None:
    """Else a stream could never get past it: it would be retried with every frame."""
    twin = fresh(bundle, frames[TRAINED - R : TRAINED], ingest="lazy")
    rows, text = twin.context.waiting[bad].rows, [frame.pending for frame in twin.context.waiting]

    def overflow(session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = session.run(inputs)
        if replayed and (inputs["inputs_embeds"] == rows[-1]).all(axis=-1).any():
            outputs["hidden"] = np.full_like(outputs["hidden"], np.nan)
        return outputs

    replayed = False
    stream = anchored(with_sessions(bundle, llm=Wrapped(bundle.sessions["llm"], overflow)), frames[:TRAINED])
    replayed = True
    with pytest.raises(NonFiniteError, match=f"frame {bad + 1}, which waited, was dropped"):
        stream.push(frames[TRAINED])
    assert (stream.num_frames, stream.num_anchors) == (TRAINED, 1)
    stream.push(frames[TRAINED])
    assert stream.num_waiting == 0 and stream.num_frames == TRAINED + 1
    expected = fresh(bundle, [], ingest="eager")
    for index, frame in enumerate(frames[TRAINED - R : TRAINED + 1]):
        expected.push(frame)
        if index == bad:  # the LLM never saw it, the vision side did
            expected.language.cache.truncate(expected.language.cache.length - len(rows))
            expected.context.pending = text[bad]
    assert state_of(stream) == state_of(expected)


@pytest.mark.parametrize("num_before", [TRAINED - 1, TRAINED], ids=["before", "at"])
@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_an_interrupt_before_any_line_loses_no_frame_and_doubles_none(
    frames: Frames, tmp_path: Path, ingest: Ingest, num_before: int
) -> None:
    """At an anchor, and in the frame before it, which must still be replayed right. On a model in whole numbers, for
    there are hundreds of lines."""
    bundle = exact_bundle(tmp_path, trained_frames=TRAINED, limits=replace(LIMITS, context=160, chunk=32))
    anchored(bundle, frames[:num_before], ingest=ingest).save(tmp_path / "s.npz")
    expected = state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1], ingest=ingest))
    stream = open_stream(tmp_path / "s.npz", bundle)
    before = state_of(stream)
    num_lines = lines_of(lambda: stream.push(frames[num_before]))
    seen = set()
    for at in range(1, num_lines + 1):
        stream = open_stream(tmp_path / "s.npz", bundle)
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda stream=stream: stream.push(frames[num_before]), interrupt_at=at)  # type: ignore[misc]
        seen.add((stream.num_frames - num_before, stream.num_anchors))
        if num_before == TRAINED and stream.num_anchors == 0:
            assert state_of(stream) == before
        for frame in frames[stream.num_frames : TRAINED + 1]:
            stream.push(frame)
        assert state_of(stream) == expected, f"line {at} of {num_lines}"
    at_anchor = {(0, 0), (0, 1), (1, 1)}  # before it all, started anew, and with the new frame
    assert seen == (at_anchor if num_before == TRAINED else {(0, 0), (1, 0)})


def test_a_stream_whose_llm_failed_behind_a_replay_is_saved_with_what_waits(
    bundle: Bundle, frames: Frames, tmp_path: Path
) -> None:
    failing, session = struck(bundle, "llm")
    stream = anchored(failing, frames[:TRAINED])
    session.arm("lost", 2)
    with pytest.raises(RuntimeError):
        stream.push(frames[TRAINED])
    stream.save(tmp_path / "s.npz")
    opened = open_stream(tmp_path / "s.npz", bundle)
    opened.push(frames[TRAINED])
    assert state_of(opened) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1]))
