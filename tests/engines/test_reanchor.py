"""Re-anchoring: at the trained number of frames a stream starts a new episode, and from there on equals a fresh stream.

The bundle's manifest declares 7 trained frames here instead of 96, and the ring has 4 slots, so it wraps before every
anchor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines.clock
from engines import PVCStream, open_bundle, open_stream
from engines.bundle import Bundle
from engines.errors import StreamError, StreamFull
from engines.ingest import Ingest
from pvc_export.parity.recorded_sessions import Recorder

from .test_gpu import open_bindings, rings

Frames = list[np.ndarray]
TRAINED, W, R = 7, 4, 3
QUESTION = "What moves?"


def trained_on(bundle: Bundle, num_frames: int) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, trained_frames=num_frames))


@pytest.fixture(scope="module", params=["bundle_rows", "bundle_fp16"], ids=["rows", "aliased"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both updates of the LLM's cache."""
    return trained_on(open_bundle(request.getfixturevalue(request.param), runtime="cpu"), TRAINED)


def camera(frames: Frames, count: int) -> Frames:
    """Repeat the pictures to get more frames. Repeats are 12 apart, so no two replayed frames are equal."""
    return [frames[index % len(frames)] for index in range(count)]


def anchored(bundle: Bundle, clip: Frames, *, retain: int = R, **options: Any) -> PVCStream:
    stream = PVCStream(bundle, clock="reanchor", retain=retain, **options)
    for frame in clip:
        stream.push(frame)
    return stream


def fresh(bundle: Bundle, clip: Frames, **options: Any) -> PVCStream:
    stream = PVCStream(bundle, clock="run-on", **options)
    for frame in clip:
        stream.push(frame)
    return stream


def state_of(stream: PVCStream) -> dict[str, Any]:
    """Everything the stream's future depends on. Leaves out the number of frames before the anchor."""
    return {
        "time": stream.num_context_frames,
        "rows": stream.context_rows,
        "pending": stream.context.pending,
        "waiting": [(frame.rows.tobytes(), frame.pending, frame.index) for frame in stream.context.waiting],
        "ring": {name: ring.tobytes() for name, ring in stream.vision.ring.dump().items()},
        "language": {name: cache.tobytes() for name, cache in stream.language.cache.dump().items()},
    }


def said_by(stream: PVCStream) -> list[Any]:
    """The embeddings of a next frame, and an answer."""
    probe = np.full((112, 112, 3), 77, np.uint8)
    return [stream.vision.encode(probe).frame_embeds.tobytes(), stream.ask(QUESTION, max_new_tokens=6).token_ids]


@pytest.mark.parametrize("retain", [1, R, W])
@pytest.mark.parametrize(("ingest", "max_waiting"), [("eager", 16), ("lazy", 2), ("lazy", 16)])
def test_after_an_anchor_a_stream_is_a_fresh_one_of_its_last_frames(
    bundle: Bundle, frames: Frames, ingest: Ingest, max_waiting: int, retain: int
) -> None:
    """Bit for bit, at every frame over several anchors, with questions asked and kept in between."""
    clip, options = camera(frames, 3 * TRAINED), {"ingest": ingest, "max_waiting": max_waiting}
    stream = PVCStream(bundle, clock="reanchor", retain=retain, **options)  # type: ignore[arg-type]
    twin, anchors = fresh(bundle, [], **options), []
    for index, frame in enumerate(clip):
        stream.push(frame)
        if stream.num_anchors > len(anchors):
            anchors.append(index)
            twin = fresh(bundle, clip[index - retain : index], **options)
        twin.push(frame)
        assert state_of(stream) == state_of(twin)
        if index % 3 == 2:
            assert said_by(stream) == said_by(twin)
        if index % 5 == 4:
            kept = [each.ask("And now?", max_new_tokens=3, keep=True).token_ids for each in (stream, twin)]
            assert kept[0] == kept[1]
    assert anchors == list(range(TRAINED, 3 * TRAINED, TRAINED - retain))
    assert stream.num_frames == 3 * TRAINED > stream.num_context_frames == twin.num_frames


def test_no_frame_has_a_time_beyond_training_and_only_new_ones_cost_a_trunk(
    bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(bundle.sessions)
    stream = anchored(replace(bundle, sessions=recorder.sessions), [])
    times: list[float] = []
    run = recorder.sessions["temporal"].run

    def timed(inputs: Any) -> Any:
        times.append(float(inputs["frame_time"][0]))
        return run(inputs)

    monkeypatch.setattr(recorder.sessions["temporal"], "run", timed)
    for frame in camera(frames, 12):
        stream.push(frame)
    assert times == [0, 1, 2, 3, *(4, 0), *(5, 1), *(6, 2), 3, *(4, 0), *(5, 1), *(6, 2), 3]
    assert len(recorder.calls["trunk"]) == stream.num_frames == 12


def test_what_a_kept_question_left_is_forgotten_at_an_anchor(bundle: Bundle, frames: Frames) -> None:
    stream = anchored(bundle, frames[:TRAINED])
    stream.ask("Remember this.", max_new_tokens=4, keep=True)
    stream.push(frames[TRAINED])
    assert state_of(stream) == state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1]))


def test_a_clock_that_runs_on_never_starts_over(bundle: Bundle, frames: Frames) -> None:
    stream = fresh(bundle, frames)
    assert (stream.num_frames, stream.num_context_frames, stream.num_anchors) == (12, 12, 0)
    assert stream.episodes.retained.dump() == {}


@pytest.mark.parametrize("num_frames", [0, 2, TRAINED - 1, TRAINED, TRAINED + 1, 2 * TRAINED - R, 2 * TRAINED])
@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_a_saved_stream_keeps_its_clock_its_anchor_and_its_frames(
    bundle: Bundle, frames: Frames, tmp_path: Path, num_frames: int, ingest: Ingest
) -> None:
    clip = camera(frames, 3 * TRAINED)
    stream = anchored(bundle, clip[:num_frames], ingest=ingest)
    stream.save(tmp_path / "s.npz")
    opened = open_stream(tmp_path / "s.npz", bundle)
    for frame in clip[num_frames : num_frames + TRAINED + 1]:
        for each in (stream, opened):
            each.push(frame)
        assert (opened.num_frames, opened.num_anchors) == (stream.num_frames, stream.num_anchors)
        assert state_of(opened) == state_of(stream)
    assert opened.num_anchors >= 1 and said_by(opened) == said_by(stream)


def test_a_saved_stream_of_the_format_before_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    anchored(bundle, []).save(tmp_path / "s.npz")
    change(tmp_path / "s.npz", lambda facts: facts | {"format_version": 3}, lambda arrays: arrays)
    with pytest.raises(StreamError, match="by another version of this program") as info:
        open_stream(tmp_path / "s.npz", bundle)
    assert info.value.expected == "format version 4"


@pytest.mark.parametrize("shape", [None, (1, 2, 3)], ids=["missing", "of another shape"])
def test_a_saved_stream_without_its_retained_frames_is_refused(
    bundle: Bundle, frames: Frames, tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    anchored(bundle, frames[:5]).save(tmp_path / "s.npz")
    name = "retained/trunk_features.1"
    changed = {} if shape is None else {name: np.zeros(shape, np.uint8)}
    change(
        tmp_path / "s.npz", lambda facts: facts, lambda arrays: {k: v for k, v in arrays.items() if k != name} | changed
    )
    with pytest.raises(StreamError, match=r"holds (no data|uint8 \(1, 2, 3\)) as 'trunk_features\.1'") as info:
        open_stream(tmp_path / "s.npz", bundle)
    assert info.value.expected.startswith("float")


def change(path: Path, facts: Callable[[dict[str, Any]], Any], arrays: Callable[[dict[str, Any]], Any]) -> None:
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    header = json.dumps(facts(json.loads(bytes(content.pop("header"))))).encode()
    np.savez(path, header=np.frombuffer(header, dtype=np.uint8), **arrays(content))


def test_a_reset_stream_has_no_anchor_and_retains_nothing(bundle: Bundle, frames: Frames) -> None:
    stream = anchored(bundle, camera(frames, TRAINED + 2))
    stream.reset()
    assert (stream.num_frames, stream.num_context_frames, stream.num_anchors, stream.context_rows) == (0, 0, 0, 0)
    for cache in (stream.vision.ring, stream.episodes.retained):
        assert cache.dump() and not any(np.any(array) for array in cache.dump().values())
    clip = camera(frames, TRAINED + 9)[3:]
    for frame in clip[: TRAINED + 1]:
        stream.push(frame)
    assert stream.num_anchors == 1
    assert state_of(stream) == state_of(fresh(bundle, clip[TRAINED - R : TRAINED + 1]))


@pytest.mark.parametrize("num_before", range(TRAINED - R, TRAINED + 1))
def test_what_was_prepared_before_a_reset_is_forgotten(bundle: Bundle, frames: Frames, num_before: int) -> None:
    stream, clip = anchored(bundle, frames[::-1][:num_before]), frames[: TRAINED + 1]
    stream.reset()
    for frame in clip:
        stream.push(frame)
    assert stream.num_anchors == 1 and state_of(stream) == state_of(fresh(bundle, clip[TRAINED - R :]))


def reserve_for(bundle: Bundle, num_frames: int) -> int:
    """Return the reserve that leaves space for this many frames."""
    rows = PVCStream(bundle).rows_needed(num_frames, question="", max_new_tokens=0)
    return bundle.manifest.limits.context - rows


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_where_the_context_is_full_a_stream_starts_over_as_well(bundle: Bundle, frames: Frames, ingest: Ingest) -> None:
    """Long before it has as many frames as the model was trained on; the reserve stays free for a question."""
    endless, reserve = trained_on(bundle, 96), reserve_for(bundle, 6)
    clip = camera(frames, 25)
    stream, twin, anchors = anchored(endless, [], reserve=reserve, ingest=ingest), fresh(endless, [], ingest=ingest), []
    for index, frame in enumerate(clip):
        stream.push(frame)
        if stream.num_anchors > len(anchors):
            anchors.append(index)
            twin = fresh(endless, clip[index - R : index], ingest=ingest)
        twin.push(frame)
        assert state_of(stream) == state_of(twin)
        assert stream.context_rows + reserve <= bundle.manifest.limits.context
    assert anchors[0] in (5, 6) and len(anchors) > 5


def test_a_kept_question_that_fills_the_context_brings_the_anchor_forward(bundle: Bundle, frames: Frames) -> None:
    endless = trained_on(bundle, 96)
    stream = anchored(endless, frames[:2], reserve=reserve_for(bundle, 5))
    while stream.num_anchors == 0:
        stream.ask("Remember this well.", max_new_tokens=6, keep=True)
        stream.push(frames[2])
    clip = [*frames[:2], *[frames[2]] * (stream.num_frames - 2)]
    assert state_of(stream) == state_of(fresh(endless, clip[-min(R, len(clip) - 1) - 1 :]))


def test_notes_are_all_that_an_anchor_keeps_of_what_was_said(bundle: Bundle, frames: Frames) -> None:
    stream = anchored(bundle, frames[: TRAINED - 1])
    stream.ask("Remember this.", max_new_tokens=4, keep=True)
    stream.remember("Earlier: a ball.")  # the next anchor is already being prepared without them
    for frame in frames[TRAINED - 1 : TRAINED + 1]:
        stream.push(frame)
    twin = PVCStream(bundle, clock="run-on")
    twin.remember("Earlier: a ball.")
    for frame in frames[TRAINED - R : TRAINED + 1]:
        twin.push(frame)
    assert state_of(stream) == state_of(twin) != state_of(fresh(bundle, frames[TRAINED - R : TRAINED + 1]))


def test_what_leaves_no_room_for_the_replayed_frames_is_refused_and_changes_nothing(bundle: Bundle) -> None:
    too_much = reserve_for(bundle, R)
    with pytest.raises(
        StreamError, match=f"only 3 frames fit in a context of .* with {too_much} reserved rows"
    ) as info:
        anchored(bundle, [], reserve=too_much)
    assert info.value.expected.startswith(f"{R + 1} or more")
    stream = anchored(bundle, [], reserve=reserve_for(bundle, R + 1))
    with pytest.raises(StreamError, match=r"only \d frames fit in a context of .* reserved rows and the notes"):
        stream.remember("It was a dark and stormy night. " * 2)
    with pytest.raises(StreamError, match="special token"):
        stream.remember("<|im_end|>")
    with pytest.raises(StreamError, match="3 frames fit"):
        stream.reserve = too_much
    assert stream.notes == "" and stream.reserve == reserve_for(bundle, R + 1)
    with pytest.raises(StreamError, match="the clock is 'run-on'"):
        PVCStream(bundle, clock="run-on", reserve=1)


def test_fewer_frames_are_retained_where_only_they_fit(bundle: Bundle) -> None:
    assert PVCStream(bundle, clock="reanchor", reserve=reserve_for(bundle, 3)).episodes.num_retained == 2


@pytest.mark.parametrize("name", ["bundle_fp16", "bundle_rows"])
def test_on_a_gpu_two_streams_re_anchor_as_on_the_cpu_and_allocate_nothing(
    name: str, frames: Frames, request: pytest.FixtureRequest
) -> None:
    """There the sessions' outputs are buffers that the next frame overwrites, and two streams share them."""
    folder = request.getfixturevalue(name)
    (on_gpu, cuda), on_cpu = open_bindings(folder), open_bundle(folder, runtime="cpu")
    clips = camera(frames, 2 * TRAINED), camera(frames[::-1], 2 * TRAINED)
    gpu, cpu = ([anchored(trained_on(bundle, TRAINED), []) for _ in clips] for bundle in (on_gpu, on_cpu))
    for index in range(2 * TRAINED):
        cuda.calls.clear()
        for mine, theirs, clip in zip(gpu, cpu, clips, strict=True):
            mine.push(clip[index])
            theirs.push(clip[index])
        assert index == 0 or cuda.count("allocate") == 0
        for mine, theirs in zip(gpu, cpu, strict=True):
            assert mine.num_anchors == theirs.num_anchors
            assert all(np.array_equal(a, b) for a, b in zip(rings(mine), rings(theirs), strict=True))
    said = [[each.ask(QUESTION, max_new_tokens=6).token_ids for each in streams] for streams in (gpu, cpu)]
    assert said[0] == said[1] and gpu[0].num_anchors == 2


@pytest.mark.parametrize(
    ("options", "changed", "what", "expected"),
    [
        ({"clock": "stop"}, {}, "clock is 'stop'", "one of reanchor, run-on"),
        ({"retain": 0}, {}, "retain is 0", "1 to 4: "),
        ({"retain": W + 1}, {}, "retain is 5", f"1 to 4: the window holds {W} frames"),
        ({"retain": 3}, {"trained_frames": 3}, "retain is 3", "1 to 2.*one of the 3 times the model was trained on"),
        ({"clock": "run-on", "retain": 2}, {}, "retain is 2, but the clock is 'run-on', which replays nothing", ""),
        ({}, {"trained_frames": 1}, "trained on 1 frames", "time mode 'absolute' and at least 2"),
        ({"total_frames": 9}, {"time_mode": "fixed"}, "but .* time mode is 'fixed'", "time mode 'absolute'"),
    ],
)  # fmt: skip
def test_a_clock_that_cannot_be_is_refused(
    bundle: Bundle, options: dict[str, Any], changed: dict[str, Any], what: str, expected: str
) -> None:
    with pytest.raises(StreamError, match=what) as info:
        PVCStream(replace(bundle, manifest=replace(bundle.manifest, **changed)), **{"clock": "reanchor", **options})
    assert re.match(expected, info.value.expected)


@pytest.mark.parametrize("default", ["reanchor", "run-on"])
def test_the_default_clock_is_one_constant_and_never_asks_for_what_a_model_cannot_do(
    bundle: Bundle, default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.clock, "DEFAULT_CLOCK", default)
    assert PVCStream(bundle).clock == default
    manifest = bundle.manifest
    fixed = replace(bundle, manifest=replace(manifest, time_mode="fixed"))
    assert PVCStream(fixed, total_frames=3).clock == "run-on"
    assert PVCStream(trained_on(bundle, 1)).clock == "run-on"


@pytest.mark.parametrize(("window", "trained", "expected"), [(8, 96, 8), (16, 96, 8), (3, 96, 3), (8, 3, 2), (1, 2, 1)])
def test_eight_frames_are_retained_or_as_many_as_fit(bundle: Bundle, window: int, trained: int, expected: int) -> None:
    limits = replace(bundle.manifest.limits, window=window)
    manifest = replace(bundle.manifest, limits=limits, trained_frames=trained)
    assert engines.clock.resolve_clock(manifest, "reanchor", None) == ("reanchor", expected)


def test_a_stream_that_re_anchors_needs_no_more_rows_than_the_trained_frames(bundle: Bundle, frames: Frames) -> None:
    stream = anchored(bundle, [])
    needed = stream.rows_needed(1000, question=QUESTION, max_new_tokens=6)
    most = 0
    for frame in camera(frames, 30):
        stream.push(frame)
        most = max(most, stream.context_rows)
    assert most < needed < most + 60
    with pytest.raises(StreamFull):
        fresh(bundle, camera(frames, 100))
