"""Failures and interrupts while a stream starts a new episode: no frame is lost, none is seen twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import open_stream
from engines.bundle import Bundle
from engines.ingest import Ingest
from engines.session import Session, Wrapped

from .doubles import ERRORS, lines_of, struck, with_sessions
from .exact import LIMITS, exact_bundle
from .test_reanchor import TRAINED, Frames, R, anchored, bundle, fresh, state_of

__all__ = ["bundle"]  # a fixture


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared ahead", "all at once"])
def test_an_anchor_that_fails_anywhere_in_any_way_and_again_leaves_the_stream_as_it_was(
    bundle: Bundle, frames: Frames, ingest: Ingest, prepared: bool
) -> None:
    failing, sessions = bundle, {}
    for graph in ("trunk", "temporal", "compressor", "embed", "llm"):
        failing, sessions[graph] = struck(failing, graph)
    stream = anchored(failing, frames[:TRAINED], ingest=ingest)
    before, last = state_of(stream), 1 if prepared else R + 1
    places = [("trunk", 1), ("temporal", 1), ("temporal", last), ("compressor", last), ("embed", 1), ("embed", last)]
    places += [("llm", 1), ("llm", last)] if ingest == "eager" else []
    for graph, at in places:
        for error in ERRORS if graph != "embed" else ("lost",):
            if error == "overflow" and at < last:
                continue  # that of a replayed frame: see below
            stream = anchored(failing, frames[:TRAINED], ingest=ingest)
            stream = stream if prepared else stream.fork()  # a fork does not copy prepared frames
            sessions[graph].arm(error, at)
            with pytest.raises(ERRORS[error]):
                stream.push(frames[TRAINED])
            assert state_of(stream) == before, f"{error} in pass {at} of {graph}"
            assert (stream.num_frames, stream.num_anchors) == (TRAINED, 0)
            sessions[graph].arm("", 0)
            stream.push(frames[TRAINED])
            assert (stream.num_frames, stream.num_anchors) == (TRAINED + 1, 1)
            assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1], ingest=ingest))


@pytest.mark.parametrize("graph", ["temporal", "llm"])
@pytest.mark.parametrize("error", ["lost", "overflow"])
def test_what_fails_once_while_an_anchor_is_prepared_is_done_again(
    bundle: Bundle, frames: Frames, graph: str, error: str
) -> None:
    """The pushed frame is in the stream nevertheless."""
    failing, session = struck(bundle, graph)
    stream = anchored(failing, frames[: TRAINED - R])
    session.arm(error, 2)  # the first pass is for the frame itself
    stream.push(frames[TRAINED - R])
    assert stream.num_frames == TRAINED - R + 1 and session.num_runs_left <= 0
    for frame in frames[TRAINED - R + 1 : TRAINED + 1]:
        stream.push(frame)
    assert stream.num_anchors == 1 and stream.episodes.num_left_out == 0
    assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1]))


@pytest.mark.parametrize("bad", range(R))
def test_a_replayed_frame_that_overflows_is_left_out_with_what_was_before_it(
    bundle: Bundle, frames: Frames, bad: int
) -> None:
    """Otherwise a stream could never get past it: it would be replayed with every frame."""
    twin = fresh(bundle, frames[TRAINED - R : TRAINED], ingest="lazy")
    rows = twin.context.waiting[bad].rows

    def overflow(session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = session.run(inputs)
        if (inputs["inputs_embeds"] == rows[-1]).all(axis=-1).any():
            outputs["hidden"] = np.full_like(outputs["hidden"], np.nan)
        return outputs

    stream = anchored(with_sessions(bundle, llm=Wrapped(bundle.sessions["llm"], overflow)), frames[: TRAINED + 1])
    assert (stream.num_frames, stream.num_anchors, stream.episodes.num_left_out) == (TRAINED + 1, 1, bad + 1)
    assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R + bad + 1 : TRAINED + 1]))


@pytest.mark.parametrize("num_before", [TRAINED - 1, TRAINED], ids=["before", "at"])
@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_an_interrupt_before_any_line_loses_no_frame_and_doubles_none(
    frames: Frames, tmp_path: Path, ingest: Ingest, num_before: int
) -> None:
    """At an anchor, and at the frame before it, which must still be replayed correctly. On a whole-number model,
    because there are hundreds of lines."""
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
    assert seen == ({(0, 0), (1, 1)} if num_before == TRAINED else {(0, 0), (1, 0)})
