"""ONNX Runtime's CUDA provider, without a GPU: what it is given, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.bundle import graph_path
from engines.errors import BackendUnavailable
from engines.fake import RecordingCuda
from engines.gpu import OrtCudaSession, require_placed
from engines.manifest import Manifest
from engines.memory import DeviceMemory, HostMemory
from engines.session import OrtSession
from engines.spec import GraphSpec, TensorSpec

from .test_gpu import Frames


def test_without_the_cuda_provider_its_session_is_refused(bundle_rows: Path) -> None:
    """If a target's provider is missing, that is an error, never a slower run."""
    for runtime in ("target", "auto"):
        with pytest.raises(BackendUnavailable, match="not CUDAExecutionProvider") as caught:
            open_bundle(bundle_rows, runtime=runtime, cuda=RecordingCuda())  # type: ignore[arg-type]
        assert caught.value.exit_code == 4 and "'.[ort-gpu]'" in caught.value.fix
    assert open_bundle(bundle_rows, runtime="cpu").runs_on == "ONNX Runtime CPU"


def test_target_cuda_opens_every_graph_on_the_gpu_but_the_table(
    bundle_rows: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    monkeypatch.setattr("engines.gpu.OrtCudaSession", partial(OrtCudaSession, provider="CPUExecutionProvider"))
    bundle = open_bundle(bundle_rows, cuda=RecordingCuda())
    assert bundle.runs_on == "ort-cuda on SM89"
    assert {name for name, s in bundle.sessions.items() if isinstance(s.memory, HostMemory)} == {"embed"}
    assert len({id(s.memory) for s in bundle.sessions.values()}) == 2
    PVCStream(bundle).push(frames[0])


def test_a_cuda_session_that_fell_back_is_refused(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("engines.gpu.open_onnx", lambda ort, path, spec, providers: Fallen())
    spec = Manifest.load(bundle_fp16).graphs["head"]
    with pytest.raises(BackendUnavailable, match=r"fell back to \['CPUExecutionProvider'\]") as caught:
        OrtCudaSession(bundle_fp16 / graph_path("head"), spec, DeviceMemory(RecordingCuda()))
    assert caught.value.exit_code == 4


class Fallen:
    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_the_cuda_provider_gets_our_stream_and_no_tf32(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[Any] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("engines.gpu.open_onnx", lambda ort, path, spec, providers: asked.append(providers) or Fallen())
    memory = DeviceMemory(RecordingCuda())
    with pytest.raises(BackendUnavailable):
        OrtCudaSession(bundle_fp16 / graph_path("head"), Manifest.load(bundle_fp16).graphs["head"], memory)
    ((provider, options),) = asked[0]
    assert provider == "CUDAExecutionProvider"
    assert options["user_compute_stream"] == str(memory.stream) and options["use_tf32"] == "0"


def test_bfloat16_tensors_are_bound_by_their_onnx_type(tmp_path: Path) -> None:
    """ONNX Runtime's CPU can at least copy bfloat16."""
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "copy", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "c.onnx")
    x, y = (TensorSpec(name=name, dtype="bfloat16", shape=(1, 4)) for name in ("x", "y"))
    memory = DeviceMemory(RecordingCuda())
    spec = GraphSpec(name="copy", inputs=(x,), outputs=(y,), dims={})
    session = OrtCudaSession(tmp_path / "c.onnx", spec, memory, provider="CPUExecutionProvider")
    array = np.array([[1, -2.5, 3e38, 0]], ml_dtypes.bfloat16)
    assert memory.to_host(session.run({"x": array})["y"]).tobytes() == array.tobytes()


class Placed:
    """ONNX Runtime's information on where nodes are placed, and a session with it."""

    def __init__(self, ep_name: str, *op_types: str) -> None:
        self.ep_name, self._nodes = ep_name, [SimpleNamespace(op_type=op, name=f"node_{op}") for op in op_types]

    def get_nodes(self) -> list[SimpleNamespace]:
        return self._nodes


def session_with(*placed: Placed) -> SimpleNamespace:
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: list(placed))


def test_a_computing_node_on_the_cpu_is_no_cuda_session() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    good = session_with(Placed(cuda, "MatMul", "Softmax"), Placed(cpu, "Shape", "Gather"))
    assert require_placed(good, cuda, "llm")
    bad = session_with(Placed(cuda, "Softmax"), Placed(cpu, "Shape", "MatMul"))
    with pytest.raises(BackendUnavailable, match=r"graph 'llm': .*no kernel for 1 .*'node_MatMul' \(CPU") as caught:
        require_placed(bad, cuda, "llm")
    assert caught.value.exit_code == 4
    assert not require_placed(SimpleNamespace(), cuda, "llm")  # an older version cannot tell; the label shows it


def test_onnx_runtime_really_tells_where_its_nodes_are(bundle_fp32: Path) -> None:
    """Unlike the stand-in above: the real session of a real graph, with matmuls on the CPU."""
    spec = Manifest.load(bundle_fp32).graphs["temporal"]
    session = OrtSession(bundle_fp32 / graph_path("temporal"), spec)._session
    assert require_placed(session, "CPUExecutionProvider", "temporal")
    with pytest.raises(BackendUnavailable, match=r"no kernel for \d\d of its operators.*\(CPUExecutionProvider\)"):
        require_placed(session, "CUDAExecutionProvider", "temporal")
