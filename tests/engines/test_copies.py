"""A CPU session hands its inputs to ONNX Runtime as they are: none is copied, cast or copied into a new layout.

The runtime counts the rows it places (test_gpu.py), but that count does not include copies a session makes of its
inputs. So here ONNX Runtime is watched: where each input that reaches it lies, whatever the call.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.memory import Array
from engines.session import OrtSession
from engines.spec import GRAPH_NAMES, GraphSpec, TensorSpec
from engines.vision import VisionEncoder

Frames = list[np.ndarray]


@dataclass
class Watched:
    """ONNX Runtime's side of a session, and how many bytes of inputs did not lie where the caller had them.

    copied  by the session, or by ONNX Runtime, which copies non-contiguous inputs into a new layout
    """

    session: OrtSession
    given: dict[str, Array] = field(default_factory=dict)
    copied: Counter[str] = field(default_factory=Counter)
    num_runs: int = 0

    def __post_init__(self) -> None:
        self._run, self._native = self.session.run, self.session._session
        self.session.run = self._given  # type: ignore[method-assign]
        self.session._session = self

    def _given(self, inputs: Any) -> Any:
        self.given = dict(inputs)
        return self._run(inputs)

    def _count(self, name: str, address: int, is_dense: bool) -> None:
        mine = self.given[name]
        if address != mine.ctypes.data or not is_dense:
            self.copied[name] += mine.nbytes

    def run(self, names: list[str], arrays: dict[str, Array]) -> list[Array]:
        self.num_runs += 1
        for name, array in arrays.items():
            same = array.dtype == self.given[name].dtype and array.flags.c_contiguous
            self._count(name, array.ctypes.data, same)
        return self._native.run(names, arrays)  # type: ignore[no-any-return]

    def run_with_ort_values(self, names: list[str], values: dict[str, Any]) -> list[Any]:
        self.num_runs += 1
        for name, value in values.items():
            self._count(name, value.data_ptr(), True)
        return self._native.run_with_ort_values(names, values)  # type: ignore[no-any-return]

    def io_binding(self) -> Any:
        return Binding(self, self._native.io_binding())

    def run_with_iobinding(self, binding: Binding) -> None:
        self.num_runs += 1
        self._native.run_with_iobinding(binding.native)


@dataclass
class Binding:
    """An IO binding with watched inputs."""

    watched: Watched
    native: Any

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.watched._count(name, value.data_ptr(), True)
        self.native.bind_ortvalue_input(name, value)

    def bind_cpu_input(self, name: str, array: Array) -> None:
        self.watched._count(name, array.ctypes.data, array.flags.c_contiguous)
        self.native.bind_cpu_input(name, array)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)


def watch(bundle: Bundle) -> dict[str, Watched]:
    found = {}
    for name, session in bundle.sessions.items():
        assert isinstance(session, OrtSession)
        found[name] = Watched(session)
    return found


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_a_stream_s_inputs_reach_onnx_runtime_where_they_lie(
    name: str, frames: Frames, request: pytest.FixtureRequest
) -> None:
    """Both cache updates and ring layouts, in both dtypes: frames past a wrap, both kinds of questions, a replay."""
    bundle = open_bundle(request.getfixturevalue(name), runtime="cpu")
    watched, stream = watch(bundle), PVCStream(bundle, ingest="lazy", max_waiting=2)
    for index, frame in enumerate(frames[:6]):
        stream.push(frame)
        if index % 2:
            stream.ask("What moves?", images=[frame], max_new_tokens=3, keep=index == 3)
    stream.score("And now?", [1, 2])
    assert {graph: dict(each.copied) for graph, each in watched.items()} == dict.fromkeys(GRAPH_NAMES, {})
    assert all(each.num_runs >= 6 for each in watched.values())


Fault = Callable[[Array], Array]


def copied(array: Array) -> Array:
    return array.copy()


def cast(array: Array) -> Array:
    return array.astype(array.dtype)


def laid_out_anew(array: Array) -> Array:
    return np.ascontiguousarray(np.asfortranarray(array))


@pytest.mark.parametrize("fault", [copied, cast, laid_out_anew], ids=lambda fault: fault.__name__.replace("_", " "))
def test_a_session_that_copies_its_inputs_is_seen(
    fault: Fault, bundle_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OrtSession.run
    monkeypatch.setattr(OrtSession, "run", lambda self, inputs: run(self, {n: fault(a) for n, a in inputs.items()}))
    bundle = open_bundle(bundle_rows, runtime="cpu")
    watched = watch(bundle)["temporal"]
    VisionEncoder(bundle.sessions).encode(np.zeros((bundle.manifest.shape.image_size,) * 2 + (3,), np.uint8))
    spec = watched.session.spec
    ring = sum(watched.given[state.input].nbytes for state in spec.states)
    assert sum(watched.copied.values()) > ring > 0


def test_an_in_place_session_that_binds_a_copy_is_seen(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    share = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array: share(array.copy()))
    bundle = open_bundle(bundle_fp32)
    watched, stream = watch(bundle)["llm"], PVCStream(bundle)
    stream.ask("Who?", max_new_tokens=1)
    assert set(watched.copied) == {tensor.name for tensor in watched.session.spec.inputs}


def test_an_input_that_onnx_runtime_has_to_lay_out_again_is_seen(bundle_rows: Path) -> None:
    session = open_bundle(bundle_rows, runtime="cpu").sessions["compressor"]
    assert isinstance(session, OrtSession)
    watched, spec = Watched(session), session.spec
    features = np.zeros(spec.input("features").resolve({"batch": 1}), np.float32)
    session.run({"features": np.asfortranarray(features), "frame_time": np.zeros(1, np.float32)})
    assert dict(watched.copied) == {"features": features.nbytes}


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_rows"])
def test_a_decoded_token_allocates_no_more_than_it_returns(name: str, request: pytest.FixtureRequest) -> None:
    """This would also reveal a copy that goes nowhere; the smallest cache is far larger than everything else."""
    bundle = open_bundle(request.getfixturevalue(name), runtime="cpu")
    stream, session = PVCStream(bundle), bundle.sessions["llm"]
    stream.ask("Who?", max_new_tokens=1, keep=True)
    inputs = {"inputs_embeds": stream.language.embed([1])[None], **stream.language.cache.feeds(1)}
    smallest = min(np.asarray(inputs[state.input]).nbytes for state in session.spec.states)
    assert smallest > 2 * (most := peak_of(session.run, inputs)), f"peak of {most} bytes"
    assert peak_of(lambda given: session.run({n: a.copy() for n, a in given.items()}), inputs) > smallest


def test_a_cache_is_wrapped_once_per_place_and_not_kept_alive(bundle_fp32: Path) -> None:
    bundle = open_bundle(bundle_fp32, runtime="cpu")
    session = bundle.sessions["llm"]
    assert isinstance(session, OrtSession)
    made = list[str]()
    value_of = session._value_of_cache

    def counted(name: str, array: Array) -> Any:
        before = len(session._values)
        value = value_of(name, array)
        made.extend([name] * (len(session._values) - before))
        return value

    session._value_of_cache = counted  # type: ignore[method-assign]
    caches = {state.input for state in session.spec.states}
    stream = PVCStream(bundle)
    stream.ask("Who?", max_new_tokens=1, keep=True)
    assert set(made) == caches
    made.clear()
    stream.language.append(stream.language.embed([1, 2, 3]))
    assert not made
    other = PVCStream(bundle)
    other.ask("Who?", max_new_tokens=1, keep=True)
    assert set(made) == caches, "another stream's caches are elsewhere"
    cache = weakref.ref(stream.language.cache.feeds(1)[min(caches)])
    del stream
    gc.collect()
    assert cache() is None


def test_remembered_caches_do_not_add_up(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.session.MOST_VALUES", 6)
    bundle = open_bundle(bundle_fp32, runtime="cpu")
    session = bundle.sessions["llm"]
    assert isinstance(session, OrtSession)
    streams = [PVCStream(bundle) for _ in range(4)]
    texts = {stream.ask("Who?", max_new_tokens=3).text for stream in streams}
    assert len(session._values) <= 6 and len(texts) == 1


def peak_of(run: Callable[[Mapping[str, Any]], object], inputs: Mapping[str, Any]) -> int:
    """Return the peak of bytes that Python and numpy allocate during a run, the lowest of five runs.

    A single run may include a few kilobytes of the interpreter itself: a growing table, a frame kept for reuse.
    """
    run(inputs)
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(5):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            run(inputs)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return min(peaks)
    finally:
        tracemalloc.stop()


def test_bfloat16_reaches_onnx_runtime_where_it_lies(tmp_path: Path) -> None:
    """ONNX Runtime's CPU can at least copy bfloat16 to an output."""
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "copy", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "c.onnx")
    x, y = (TensorSpec(name=name, dtype="bfloat16", shape=(1, 4)) for name in ("x", "y"))
    session = OrtSession(tmp_path / "c.onnx", GraphSpec(name="copy", inputs=(x,), outputs=(y,), dims={}), threads=1)
    watched, array = Watched(session), np.array([[1, -2.5, 3e38, 0]], ml_dtypes.bfloat16)
    outputs = session.run({"x": array})
    assert np.asarray(outputs["y"]).tobytes() == array.tobytes()
    assert not watched.copied and watched.num_runs == 1
