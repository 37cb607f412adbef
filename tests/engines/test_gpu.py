"""A stream on a GPU: the same numbers as on the CPU, and only new data is copied.

The GPU is a recording fake whose engines run their ONNX files with ONNX Runtime on the CPU. So both sides are equal bit
for bit, and every copy, wait and allocation of the runtime is counted. ONNX Runtime's CUDA session is tested in the
same way: its IO binding takes the fake's addresses, with the CPU provider instead of CUDA's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.bundle import Bundle, graph_path
from engines.errors import BackendUnavailable, BundleError, SpecError
from engines.fake import RecordingCuda
from engines.gpu import DTYPE_OF, OrtCudaSession, TrtSession
from engines.manifest import Manifest, hash_folder
from engines.memory import DeviceMemory, HostMemory, Memory
from engines.provenance import sign_engines
from engines.session import OrtSession
from engines.spec import ITEM_BYTES, GraphSpec, StateSpec, TensorSpec
from pvc_export.parity.recorded_sessions import Recorder

from .fake_trt import fake_plan, make_module

Frames = list[np.ndarray]
Open = Callable[[], tuple[Bundle, RecordingCuda]]
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def with_fake_engines(bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_fake_engines(bundle_fp16, tmp_path_factory.mktemp("gpu") / "fp16")


def on_fake_engines(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, with the fake runtime's engines instead of its own, and a manifest to match."""
    shutil.copytree(bundle, folder)
    manifest = Manifest.load(folder)
    for name, entry in manifest.engines.items():
        (folder / entry.path).write_bytes(fake_plan(folder / graph_path(name), manifest.graphs[name]))
    sign_engines(replace(manifest, files=hash_folder(folder))).save(folder)
    return folder


@pytest.fixture
def open_engines(with_fake_engines: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the bundle on engines, each time with a new GPU."""
    return lambda: opened_on_gpu(with_fake_engines, monkeypatch)


def opened_on_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, RecordingCuda]:
    cuda = RecordingCuda()
    version = Manifest.load(folder).engines["llm"].runtime_version
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx", version, cuda=cuda))
    return open_bundle(folder, runtime="target", trust_engines=True, cuda=cuda), cuda


def open_bindings(folder: Path) -> tuple[Bundle, RecordingCuda]:
    """Open a bundle on ONNX Runtime's IO binding, as target cuda does, but with the CPU provider."""
    cuda = RecordingCuda()
    memory, bundle = DeviceMemory(cuda), open_bundle(folder, runtime="cpu")
    sessions = {
        name: OrtSession(folder / graph_path(name), spec)
        if name == "embed"
        else OrtCudaSession(folder / graph_path(name), spec, memory, provider="CPUExecutionProvider")
        for name, spec in bundle.manifest.graphs.items()
    }
    return replace(bundle, sessions=sessions), cuda


@pytest.fixture(params=["engines fp16", "binding fp16", "binding fp32", "binding rows"])
def on_gpu(request: pytest.FixtureRequest, open_engines: Open) -> tuple[Bundle, RecordingCuda]:
    """TensorRT engines; IO binding with rings of both layouts, both cache updates, one stream and a dynamic batch."""
    kind, name = request.param.split()
    return open_engines() if kind == "engines" else open_bindings(request.getfixturevalue(f"bundle_{name}"))


def rings(stream: PVCStream) -> list[np.ndarray]:
    """Both caches of a stream, copied to the host."""
    memory: Memory = stream.vision._memory
    feeds = {f"vision.{k}": v for k, v in stream.vision.ring.feeds().items()}
    # Of the LLM's cache only the rows in use: on the host, a cache may have less space after them.
    feeds |= {f"llm.{k}": v for k, v in stream.language.cache.dump().items()}
    return [memory.to_host(feeds[name]).copy() for name in sorted(feeds)]


def live(bundle: Bundle, frames: Frames) -> tuple[list[Any], list[np.ndarray]]:
    """Run two interleaved streams that wrap their rings twice, with both kinds of questions and a reset. Returns their
    answers, and every output of every graph with the caches after every frame."""
    recorder = Recorder(bundle.sessions)
    bundle = replace(bundle, sessions=recorder.sessions)
    first, second = PVCStream(bundle), PVCStream(bundle)
    said: list[Any] = []
    caches: list[np.ndarray] = []
    for index in range(2 * bundle.manifest.limits.window + 3):
        first.push(frames[index])
        second.push(frames[-1 - index])
        caches += rings(first) + rings(second)
        if index in (2, 8):
            said.append(first.ask(QUESTION, max_new_tokens=6, keep=index == 8).token_ids)
        if index == 5:
            second.reset()
    said += [stream.ask("And now?", max_new_tokens=6).text for stream in (first, second)]
    said += [first.context_rows, second.context_rows, first.num_frames, second.num_frames]
    outputs = [array for graph in recorder.calls.values() for call in graph for array in call.values()]
    return said, [*outputs, *caches, *rings(first)]


def test_a_stream_on_a_gpu_is_the_stream_on_the_cpu_bit_for_bit(
    on_gpu: tuple[Bundle, RecordingCuda], frames: Frames
) -> None:
    bundle, _ = on_gpu
    said, arrays = live(bundle, frames)
    expected_said, expected = live(open_bundle(bundle.folder, runtime="cpu"), frames)
    assert said == expected_said and len(set(said[:2])) == 2
    assert len(arrays) == len(expected) > 300
    for array, want in zip(arrays, expected, strict=True):
        assert array.dtype == want.dtype and array.shape == want.shape and array.tobytes() == want.tobytes()


def test_every_dtype_that_a_spec_may_have_is_known_by_tensorrt_s_name_for_it() -> None:
    assert set(DTYPE_OF.values()) == set(ITEM_BYTES)
    assert all(hasattr(pytest.importorskip("tensorrt_rtx").DataType, name) for name in DTYPE_OF)


def test_what_is_remembered_in_codes_is_the_same_on_a_gpu_and_on_a_cpu(
    bundle_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Frames
) -> None:
    streams = []
    for bundle in (
        opened_on_gpu(on_fake_engines(bundle_states, tmp_path / "gpu"), monkeypatch)[0],
        open_bundle(bundle_states, runtime="cpu"),
    ):
        stream = PVCStream(bundle)
        for frame in frames[:7]:
            stream.push(frame)
        said = stream.ask(QUESTION, max_new_tokens=3, keep=True).token_ids
        streams.append((said, stream.vision.ring.dump() | stream.language.cache.dump()))
    (said, here), (expected, there) = streams
    assert said == expected and here.keys() == there.keys()
    assert {array.dtype.name for array in here.values()} == {"int8", "float32"}
    assert all(array.tobytes() == there[name].tobytes() and array.any() for name, array in here.items())


def num_bytes(tensor: TensorSpec, **dims: int) -> int:
    return int(np.zeros(tensor.resolve(dims), tensor.dtype).nbytes)


def placed(spec: GraphSpec) -> list[StateSpec]:
    """The caches whose rows the runtime copies; the graph itself writes into the others."""
    return [state for state in spec.states if state.update == "rows"]


def state_bytes(spec: GraphSpec, count: int = 1) -> int:
    return count * sum(state.row_bytes for state in placed(spec))


def pass_bytes(graphs: dict[str, GraphSpec], rows: int, past: int) -> tuple[int, int]:
    """(up, down) of one LLM pass over `rows` new rows, fed `past` rows of its cache."""
    llm = graphs["llm"]
    dims = {"batch": 1, "rows": rows, "past": past}
    caches = {state.input for state in llm.states}
    up = sum(num_bytes(tensor, **dims) for tensor in llm.inputs if tensor.name not in caches)
    return up, num_bytes(llm.output("hidden"), batch=1)


def fed_rows(bundle: Bundle, length: int) -> int:
    bucket = bundle.manifest.limits.bucket
    return max(-(-length // bucket), 1) * bucket


def test_a_frame_moves_its_own_bytes_and_no_cache(on_gpu: tuple[Bundle, RecordingCuda], frames: Frames) -> None:
    """Counted by the runtime, by the fake GPU, and from the specs: all three are equal."""
    bundle, cuda = on_gpu
    graphs, stream = bundle.manifest.graphs, PVCStream(bundle, clock="run-on")  # no features to retain
    trunk, temporal, compressor = (graphs[name] for name in ("trunk", "temporal", "compressor"))
    traffic = bundle.sessions["llm"].memory.traffic
    frame_up = num_bytes(trunk.input("frame"), batch=1) + num_bytes(compressor.input("frame_time"), batch=1)
    frame_up += sum(num_bytes(temporal.input(name), batch=1) for name in ("frame_time", "slot_mask"))
    for index in range(2 * bundle.manifest.limits.window + 2):
        before = stream.context_rows
        traffic.clear()
        cuda.calls.clear()
        stream.push(frames[index])
        rows = stream.context_rows - before
        llm_up, llm_down = pass_bytes(graphs, rows, fed_rows(bundle, before))
        new_rows = state_bytes(temporal) + state_bytes(graphs["llm"], rows)
        assert traffic.state == cuda.num_bytes("copy") == new_rows
        assert traffic.upload == cuda.num_bytes("upload") == frame_up + llm_up
        down = num_bytes(compressor.output("frame_embeds"), batch=1) + llm_down
        assert traffic.download == cuda.num_bytes("download") == down
        assert traffic.syncs == cuda.count("sync") == 2, "one for the embeddings, one for the hidden row"
        assert cuda.count("copy") == len(placed(temporal)) + len(placed(graphs["llm"])), "one copy per tensor"
        if index > 0:
            assert cuda.count("allocate") == cuda.count("fill") == 0


def test_a_cache_that_the_graph_updates_is_never_copied_by_the_runtime(open_engines: Open, frames: Frames) -> None:
    bundle, cuda = open_engines()
    llm, stream = bundle.manifest.graphs["llm"], PVCStream(bundle)
    assert llm.aliases and not placed(llm)
    stream.push(frames[0])
    cuda.calls.clear()
    embeds = stream.language.embed([1, 2, 3])
    stream.language.append(embeds)
    assert stream.context_rows > 3 and cuda.count("copy") == 0


def test_an_engine_that_updates_another_cache_is_refused(
    with_fake_engines: Path, copy_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    folder = copy_bundle(with_fake_engines)
    manifest = Manifest.load(folder)
    path = folder / manifest.engines["llm"].path
    plan = json.loads(path.read_bytes())
    plan["aliases"]["present.0.key"] = "past.0.value"
    path.write_bytes(json.dumps(plan).encode())
    sign_engines(replace(manifest, files=hash_folder(folder))).save(folder)
    cuda = RecordingCuda()
    trt = make_module("tensorrt_rtx", manifest.engines["llm"].runtime_version, cuda=cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    with pytest.raises(BundleError, match="'present.0.key' is written over 'past.0.value'") as info:
        open_bundle(folder, runtime="target", trust_engines=True, cuda=cuda)
    assert info.value.expected.startswith("over 'past.0.key'")


def test_decode_runs_in_the_profile_of_one_row_and_everything_else_in_the_other(
    open_engines: Open, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = open_engines()
    llm = session_of(bundle, "llm")
    ran: list[int] = []
    for context in llm._contexts:
        run = context.execute_async_v3
        monkeypatch.setattr(
            context,
            "execute_async_v3",
            lambda s, run=run, context=context: (ran.append(context.profile_index), run(s))[1],
        )
    stream = PVCStream(bundle)
    stream.push(frames[0])
    stream.ask(QUESTION, max_new_tokens=3)
    assert ran == [0, 0, 1, 1, 1], "a frame, a question, three tokens"


def test_a_token_moves_its_own_bytes_and_no_cache(on_gpu: tuple[Bundle, RecordingCuda], frames: Frames) -> None:
    bundle, cuda = on_gpu
    graphs, stream = bundle.manifest.graphs, PVCStream(bundle)
    traffic = bundle.sessions["llm"].memory.traffic
    head = graphs["head"]
    token_up = num_bytes(head.input("hidden"), batch=1) + pass_bytes(graphs, 1, fed_rows(bundle, 1))[0]
    token_down = num_bytes(head.output("logits"), batch=1) + pass_bytes(graphs, 1, 1)[1]
    stream.push(frames[0])
    stream.ask(QUESTION, max_new_tokens=1)
    seen = []
    for num_tokens in (2, 5):
        traffic.clear()
        cuda.calls.clear()
        answer = stream.ask(QUESTION, max_new_tokens=num_tokens)
        assert len(answer.token_ids) == num_tokens, "the random model must not stop by itself here"
        assert cuda.count("allocate") == 0
        assert traffic.upload == cuda.num_bytes("upload") and traffic.download == cuda.num_bytes("download")
        seen.append((traffic.state, traffic.upload, traffic.download, traffic.syncs))
    a_token = [(b - a) / 3 for a, b in zip(*seen, strict=True)]
    assert a_token == [state_bytes(graphs["llm"]), token_up, token_down, 2], "logits and hidden row: two waits"


def test_the_cpu_places_no_more_than_the_new_rows(
    bundle_fp16: Path, bundle_fp32: Path, bundle_rows: Path, frames: Frames
) -> None:
    """The same count on the host, where a cache is the very array that the graph reads."""
    for folder in (bundle_fp16, bundle_fp32, bundle_rows):
        bundle = open_bundle(folder, runtime="cpu")
        stream, memory = PVCStream(bundle, clock="run-on"), bundle.sessions["temporal"].memory
        assert isinstance(memory, HostMemory) and memory is bundle.sessions["llm"].memory
        for frame in frames[:10]:
            before = stream.context_rows
            memory.traffic.clear()
            stream.push(frame)
            graphs, rows = bundle.manifest.graphs, stream.context_rows - before
            new_rows = state_bytes(graphs["temporal"]) + state_bytes(graphs["llm"], rows)
            assert new_rows <= memory.traffic.state <= 1.05 * new_rows
        assert all(np.shares_memory(a, b) for a, b in zip(*(feed(stream) for _ in range(2)), strict=True))


def feed(stream: PVCStream) -> list[np.ndarray]:
    feeds = {**stream.vision.ring.feeds(), **{f"llm.{k}": v for k, v in stream.language.cache.feeds(1).items()}}
    return [array for name, array in feeds.items() if "past." in name and isinstance(array, np.ndarray)]


def test_a_dropped_bundle_gives_its_memory_back(open_engines: Open, frames: Frames) -> None:
    import gc

    bundle, cuda = open_engines()
    stream = PVCStream(bundle)
    stream.push(frames[0])
    assert cuda.allocated() > 0
    del bundle, stream
    gc.collect()
    assert cuda.allocated() == 0


def test_a_failed_engine_leaves_the_stream_as_it_was(open_engines: Open, frames: Frames) -> None:
    bundle, _ = open_engines()
    stream = PVCStream(bundle)
    stream.push(frames[0])
    rows, before = stream.context_rows, rings(stream)
    llm: Any = bundle.sessions["llm"]
    context = llm._contexts[0]
    run, context.execute_async_v3 = context.execute_async_v3, lambda _: False
    with pytest.raises(BackendUnavailable, match="the engine of 'llm' could not run"):
        stream.push(frames[1])
    assert (stream.num_frames, stream.context_rows) == (1, rows)
    assert all(np.array_equal(a, b) for a, b in zip(before, rings(stream), strict=True))
    context.execute_async_v3 = run
    stream.push(frames[1])
    assert stream.num_frames == 2


def session_of(bundle: Bundle, name: str) -> Any:
    session = bundle.sessions[name]
    assert isinstance(session, TrtSession)
    return session


def test_an_engine_runs_on_its_memory_s_own_stream(open_engines: Open, frames: Frames) -> None:
    bundle, _ = open_engines()
    session = session_of(bundle, "trunk")
    session.memory.stream += 7
    with pytest.raises(SpecError, match="stream 8 is not open"):
        PVCStream(bundle).push(frames[0])
    session.memory.stream -= 7
    assert not session._contexts[0].execute_async_v3(5)


def test_a_shape_outside_the_profile_is_refused_with_the_engine_s_reason(open_engines: Open) -> None:
    bundle, _ = open_engines()
    llm = session_of(bundle, "llm")
    feeds = {t.name: np.zeros(t.resolve({"batch": 1, "rows": 257}), t.dtype) for t in llm.spec.inputs}
    with pytest.raises(SpecError, match="rows is 257"):
        llm.run(feeds)
    feeds = {t.name: np.zeros(t.resolve({"batch": 1, "rows": 2}), t.dtype) for t in llm.spec.inputs}
    low, high = llm._engine.plan["profiles"][0]["position_ids"]
    llm._engine.plan["profiles"][0]["position_ids"] = ([1, 3], high)
    with pytest.raises(SpecError, match=r"the engine rejects 'position_ids' as \(1, 2\)") as info:
        llm.run(feeds)
    assert "profile" in info.value.cause


def test_an_engine_without_all_addresses_does_not_run(open_engines: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake's own check: a forgotten output would be a write to address zero."""
    bundle, _ = open_engines()
    head = session_of(bundle, "head")
    (context,) = head._contexts
    bind = context.set_tensor_address
    monkeypatch.setattr(context, "set_tensor_address", lambda n, a: n == "logits" or bind(n, a))
    with pytest.raises(BackendUnavailable, match=r"could not run: address or shape not set: \['logits'\]"):
        head.run({"hidden": np.zeros(head.spec.input("hidden").resolve({}), np.float16)})


def test_a_tensor_that_does_not_fit_the_spec_never_reaches_the_engine(on_gpu: tuple[Bundle, RecordingCuda]) -> None:
    bundle, cuda = on_gpu
    with pytest.raises(SpecError, match="tensor 'hidden' is float64"):
        bundle.sessions["head"].run({"hidden": np.zeros((1, 1, 64))})
    assert cuda.count("upload") == 0
