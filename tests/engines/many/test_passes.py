"""Several streams in one pass: each gives the answers and keeps the state that it has alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import Answer, Bundle, PVCStream, open_bundle
from engines.episode import Episode
from engines.errors import BackendUnavailable, NonFiniteError, StreamError
from engines.fake import RecordingCuda
from engines.many.passes import Passes, PassSession
from engines.memory import Array, DeviceMemory, HostMemory, Tensor
from engines.session import Session, Wrapped

from ..exact import LIMITS, exact_bundle
from ..test_gpu import open_bindings

NUM_STREAMS, NUM_FRAMES, TRAINED = 4, 9, 5
TOLERANCE = 1e-5
"""Limit for a shared against a single pass in ONNX Runtime, float32 values of order 1. Zero for whole numbers."""


KINDS: dict[str, dict[str, Any]] = {
    "rows": {"cache_update": "rows", "spelling": "concat"},
    "in place": {"cache_update": "aliased", "spelling": "split"},
}


@pytest.fixture(params=[*product(("host", "gpu"), KINDS)], ids=", ".join)
def exact(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """A whole-number bundle for two streams per pass."""
    where, kind = request.param
    memory = DeviceMemory(RecordingCuda()) if where == "gpu" else HostMemory()
    limits = replace(LIMITS, streams=2)
    return exact_bundle(tmp_path, trained_frames=TRAINED, memory=memory, limits=limits, **KINDS[kind])


@pytest.fixture
def on_cpu(tmp_path: Path) -> Bundle:
    return exact_bundle(tmp_path, limits=replace(LIMITS, streams=2, chunk=64), **KINDS["in place"])


def pictures(stream: int) -> list[Array]:
    rng = np.random.default_rng(stream)
    return [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(NUM_FRAMES)]


def around(bundle: Bundle, graph: str, run: Callable[[Session, Mapping[str, Tensor]], dict[str, Tensor]]) -> Bundle:
    """Return the bundle with one graph whose every run goes through `run`."""
    return replace(bundle, sessions={**bundle.sessions, graph: Wrapped(bundle.sessions[graph], run)})


def held(stream: PVCStream) -> dict[str, Array]:
    """The stream's rings in slot order, and the LLM's rows in use, on the host."""
    return stream.vision.ring.dump() | stream.language.cache.dump()


def require_alike(stream: PVCStream, alone: PVCStream, *, tolerance: float = TOLERANCE) -> None:
    assert (stream.num_frames, stream.num_anchors, stream.context_rows) == (
        alone.num_frames, alone.num_anchors, alone.context_rows,
    )  # fmt: skip
    found = held(stream)
    for name, expected in held(alone).items():
        np.testing.assert_allclose(found[name], expected, atol=tolerance, rtol=0, err_msg=name)


def ask(stream: PVCStream, answers: list[Answer]) -> None:
    answers.append(stream.ask("What moves?", max_new_tokens=4))


def push(stream: PVCStream, frame: Any) -> None:
    stream.push(frame)


def steps_of(function: Callable[..., None], *arguments: Any) -> list[Callable[[], None]]:
    """One step per stream: function(a[i], b[i], ...)."""
    return [lambda each=each: function(*each) for each in zip(*arguments, strict=True)]  # type: ignore[misc]


@pytest.mark.parametrize("clock", ["run-on", "reanchor"])
def test_streams_of_different_lengths_and_clocks_say_and_hold_what_each_does_alone(exact: Bundle, clock: Any) -> None:
    streams, alone = staggered(exact, clock=clock)
    for stream, reference in zip(streams, alone, strict=True):
        require_alike(stream, reference, tolerance=0)
        assert clock == "run-on" or stream.num_anchors > 0


def test_so_they_do_by_onnx_runtime(bundle_fp32: Path, bundle_rows: Path) -> None:
    for bundle in (open_bundle(bundle_fp32), open_bundle(bundle_rows, runtime="cpu"), open_bindings(bundle_fp32)[0]):
        manifest = replace(bundle.manifest, trained_frames=TRAINED)
        streams, alone = staggered(replace(bundle, manifest=manifest), clock="reanchor")
        for stream, reference in zip(streams, alone, strict=True):
            require_alike(stream, reference)


def staggered(bundle: Bundle, *, clock: Any) -> tuple[list[PVCStream], list[PVCStream]]:
    """Run streams that share passes, and the same streams alone; check that the answers are equal. Each stream starts
    one frame after the previous one, and asks after its sixth and its last frame."""
    passes = Passes(bundle, max_streams=NUM_STREAMS)
    streams = [PVCStream(passes.bundle, clock=clock) for _ in range(NUM_STREAMS)]
    alone = [PVCStream(bundle, clock=clock) for _ in range(NUM_STREAMS)]
    shown = [pictures(index) for index in range(NUM_STREAMS)]
    said: list[list[Answer]] = [[] for _ in range(NUM_STREAMS)]
    for turn in range(NUM_FRAMES + NUM_STREAMS):
        now = [index for index in range(NUM_STREAMS) if 0 <= turn - index < NUM_FRAMES]
        passes.run(steps_of(push, [streams[i] for i in now], [shown[i][turn - i] for i in now]))
        asks = [index for index in now if turn - index in (5, 8)]
        passes.run(steps_of(ask, [streams[i] for i in asks], [said[i] for i in asks]))
    for index in range(NUM_STREAMS):
        expected: list[Answer] = []
        for number, frame in enumerate(shown[index]):
            alone[index].push(frame)
            if number in (5, 8):
                ask(alone[index], expected)
        assert [one.token_ids for one in said[index]] == [one.token_ids for one in expected]
    return streams, alone


def test_a_pass_takes_as_many_streams_as_the_bundle_was_exported_for(on_cpu: Bundle) -> None:
    sizes: Counter[tuple[str, int]] = Counter()

    def counting(graph: str) -> Callable[[Session, Mapping[str, Tensor]], dict[str, Tensor]]:
        def run(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            sizes[graph, next(iter(inputs.values())).shape[0]] += 1
            return session.run(inputs)

        return run

    bundle = on_cpu
    for graph in ("trunk", "temporal", "compressor", "llm", "head"):
        bundle = around(bundle, graph, counting(graph))
    passes = Passes(bundle, max_streams=NUM_STREAMS)
    streams = [PVCStream(passes.bundle) for _ in range(NUM_STREAMS)]
    passes.run(steps_of(push, streams, [pictures(index)[0] for index in range(NUM_STREAMS)]))
    assert sizes == {(graph, 2): 2 for graph in ("trunk", "temporal", "compressor", "llm")}
    sizes.clear()
    answers: list[list[Answer]] = [[] for _ in range(3)]
    passes.run(steps_of(ask, streams[:3], answers))
    tokens = [len(each[0].token_ids) for each in answers]
    assert sizes["llm", 2] >= 1 + min(tokens) and sizes["llm", 1] >= 1 + min(tokens)
    assert sizes["llm", 2] * 2 + sizes["llm", 1] == sum(1 + number for number in tokens)


def test_a_frame_that_overflows_fails_alone(on_cpu: Bundle) -> None:
    bad = np.full((40, 40, 3), 255, np.uint8)

    def overflow(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(inputs)
        features = np.array(outputs["trunk_features"])
        features[np.asarray(inputs["frame"]).min(axis=(1, 2, 3)) == 255] = np.nan
        return {"trunk_features": features}

    passes = Passes(around(on_cpu, "trunk", overflow), max_streams=2)
    streams, errors = [PVCStream(passes.bundle) for _ in range(2)], list[Exception]()
    alone = [PVCStream(on_cpu) for _ in range(2)]

    def careful(stream: PVCStream, frame: Array) -> None:
        try:
            stream.push(frame)
        except NonFiniteError as error:
            errors.append(error)

    first, second = pictures(0), pictures(1)
    passes.run(steps_of(careful, streams, [first[0], second[0]]))
    passes.run(steps_of(careful, streams, [first[1], bad]))
    passes.run(steps_of(careful, streams, [first[2], second[1]]))
    assert len(errors) == 1
    for stream, frames in zip(alone, (first[:3], second[:2]), strict=True):
        for frame in frames:
            stream.push(frame)
    for stream, reference in zip(streams, alone, strict=True):
        require_alike(stream, reference)


@pytest.mark.parametrize("graph", ["trunk", "temporal", "compressor", "llm"])
@pytest.mark.parametrize("what", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_fails_leaves_every_stream_as_it_was(on_cpu: Bundle, graph: str, what: type[BaseException]) -> None:
    is_broken = False

    def break_it(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if is_broken:
            raise what("the pass failed")
        return session.run(inputs)

    passes = Passes(around(on_cpu, graph, break_it), max_streams=2)
    streams, errors = [PVCStream(passes.bundle) for _ in range(2)], list[BaseException]()

    def careful(stream: PVCStream, frame: Array) -> None:
        try:
            stream.push(frame)
        except BaseException as error:
            errors.append(error)

    shown = [pictures(0), pictures(1)]
    passes.run(steps_of(careful, streams, [frames[0] for frames in shown]))
    before = [held(stream) for stream in streams]
    is_broken = True
    if what is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            passes.run(steps_of(careful, streams, [frames[1] for frames in shown]))
    else:
        passes.run(steps_of(careful, streams, [frames[1] for frames in shown]))
    assert len(errors) == 2
    for stream, was in zip(streams, before, strict=True):
        assert all(np.array_equal(now, was[name]) for name, now in held(stream).items())
    is_broken = False
    passes.run(steps_of(careful, streams, [frames[1] for frames in shown]))
    assert len(errors) == 2 and [stream.num_frames for stream in streams] == [2, 2]


def test_a_stream_runs_alone_too_and_its_images_need_no_slot(on_cpu: Bundle) -> None:
    passes = Passes(on_cpu, max_streams=1)
    stream, alone = PVCStream(passes.bundle), PVCStream(on_cpu)
    image = pictures(7)[0]
    for each in (stream, alone):
        each.push(pictures(0)[0])
    assert stream.ask("What?", images=[image]).token_ids == alone.ask("What?", images=[image]).token_ids
    answers: list[Answer] = []
    passes.run([lambda: answers.append(stream.ask("What?", images=[image]))])
    assert answers[0].token_ids == alone.ask("What?", images=[image]).token_ids
    require_alike(stream, alone)


def test_slots_serve_one_stream_after_another_and_no_more_than_there_are(on_cpu: Bundle) -> None:
    passes = Passes(on_cpu, max_streams=2)
    first, second = PVCStream(passes.bundle), PVCStream(passes.bundle)
    with pytest.raises(StreamError, match=r"all 2 slots .* are taken"):
        PVCStream(passes.bundle)
    for frame in pictures(0):
        first.push(frame)
    second.push(pictures(1)[0])
    kept = held(second)
    del first  # freed immediately by reference counting
    third, alone = PVCStream(passes.bundle), PVCStream(on_cpu)
    assert not any(array.any() for array in third.vision.ring.dump().values())
    assert all(np.array_equal(array, kept[name]) for name, array in held(second).items())
    for stream in (third, alone):
        stream.push(pictures(2)[0])
    require_alike(third, alone)


def test_what_waits_on_a_gpu_is_not_overwritten_by_a_pass_of_others(bundle_fp32: Path) -> None:
    """Three streams, and two neighbours share a pass: the third's outputs lie in the buffers that theirs used."""
    bundle, _ = open_bindings(bundle_fp32)
    passes = Passes(bundle, max_streams=3)
    streams, alone = [PVCStream(passes.bundle) for _ in range(3)], [PVCStream(bundle) for _ in range(3)]
    for number in range(3):
        passes.run(steps_of(push, streams, [pictures(index)[number] for index in range(3)]))
        passes.run(steps_of(push, [streams[2], streams[0]], [pictures(9)[number], pictures(8)[number]]))
    for index, extra in ((0, 8), (1, None), (2, 9)):
        for number in range(3):
            alone[index].push(pictures(index)[number])
            if extra is not None:
                alone[index].push(pictures(extra)[number])
        require_alike(streams[index], alone[index])


def test_a_bundle_of_one_stream_says_how_to_export_one_of_several(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="export it again with --streams"):
        Passes(exact_bundle(tmp_path), max_streams=2)


def test_without_greenlet_it_says_what_to_install(on_cpu: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(BackendUnavailable, match=r"pip install"):
        Passes(on_cpu, max_streams=2)


def everybody_gets_the_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    own = PassSession._own
    monkeypatch.setattr(PassSession, "_own", lambda self, outputs, index, request: own(self, outputs, 0, request))


def neighbours_are_fed_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = PassSession._joined
    monkeypatch.setattr(PassSession, "_joined", lambda self, name, tensors: joined(self, name, tensors[::-1]))


def a_slab_grows_over_the_rows_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = HostMemory.laid_out

    def moved(self: HostMemory, whole: Any, state: Any, count: int, new_count: int) -> Any:
        return laid_out(self, whole, state, min(count, new_count), new_count)

    monkeypatch.setattr(HostMemory, "laid_out", moved)


def caches_are_fed_as_they_lay_when_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassSession, "_caches", lambda self, requests: {
        name: np.concatenate([request.inputs[name] for request in requests]) for name in self._states
    })  # fmt: skip


def an_anchor_leaves_the_frames_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(self: Episode, other: Episode) -> None:
        self.context.language.cache.truncate(0)
        self.copy_from(other)
        self.vision.ring.num_frames += 1
        self.context.pending = other.context.pending

    monkeypatch.setattr(Episode, "become", become)


def an_anchor_forgets_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    become = Episode.become

    def without(self: Episode, other: Episode) -> None:
        become(self, other)
        self.context.pending = ""

    monkeypatch.setattr(Episode, "become", without)


@pytest.mark.parametrize(
    "plant",
    [
        everybody_gets_the_first_part,
        neighbours_are_fed_in_another_order,
        a_slab_grows_over_the_rows_of_others,
        caches_are_fed_as_they_lay_when_they_were_asked_for,
        an_anchor_leaves_the_frames_of_before,
        an_anchor_forgets_what_waits,
    ],
)
def test_a_planted_fault_is_found(plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, streams=2, context=480)
    bundle = exact_bundle(tmp_path, trained_frames=TRAINED, limits=limits, **KINDS["in place"])
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        for stream, reference in zip(*staggered(bundle, clock="reanchor"), strict=True):
            require_alike(stream, reference, tolerance=0)
