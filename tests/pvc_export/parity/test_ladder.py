"""The ladder: each rung is compared with its neighbour, and each fault appears at the step that caused it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.bundle import graph_path
from engines.errors import BundleError
from engines.fake import RecordingCuda
from engines.manifest import Manifest, hash_folder
from engines.provenance import sign_engines
from engines.session import OrtSession
from engines.spec import GraphSpec, StreamLimits, TensorSpec
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.controls.engine_edits import exchange_engines
from pvc_export.controls.graph_edits import edit_graph, perturb_one_weight
from pvc_export.graphs import machine
from pvc_export.graphs import sessions as graph_sessions
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.spellings import SplitTemporalAttention
from pvc_export.parity import ladder, recording
from pvc_export.parity.bfloat16_on_cpu import widen
from pvc_export.parity.check import check_bundle
from pvc_export.parity.clip import check_clip
from pvc_export.parity.float16_on_cpu import Float16Products
from pvc_export.parity.limits import kl_limit
from pvc_export.parity.places import Rung
from pvc_export.parity.recording import SAMPLED_FRAMES
from pvc_export.parity.report import ParityReport
from pvc_export.terminal.console import Console
from pvc_ref import PVC, PVCConfig

from ...conftest import SharedBundle
from ...engines.fake_trt import fake_plan, make_module

pytestmark = pytest.mark.usefixtures("stream_alone")


@pytest.fixture(scope="module")
def bundle_bf16(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    limits = StreamLimits(window=4, context=512)
    request = ExportRequest(out=Path(), target=load_target("cuda"), precision="bf16", limits=limits)
    return shared_bundle("bf16", tiny, request)


def failed_stages(report: ParityReport) -> list[str]:
    return sorted({str(row.rung) for row in report.rows if not row.passed})


def left_out(report: ParityReport) -> list[str]:
    """Return what was not executed, except the conversations, which `stream_alone` leaves out."""
    return [name for name in report.not_executed if not name.startswith("prompts about")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_rung_is_compared_with_its_neighbour(
    precision: str, report_of: Callable[[Path], ParityReport], request: object
) -> None:
    folder: Path = request.getfixturevalue(f"bundle_{precision}")  # type: ignore[attr-defined]
    manifest = Manifest.load(folder)
    stages = ["torch fp32", "onnx fp32"] if precision == "fp32" else [
        "torch fp32", f"torch {precision}", "onnx fp32", f"onnx {precision}",
    ]  # fmt: skip
    assert manifest.parity["stages"] == [*stages, f"bundle {precision}"]
    report = report_of(folder)
    assert report.passed, report.failure_text()
    vision = {f"{name}/{t.name}" for name in ladder.VISION_GRAPHS for t in manifest.graphs[name].outputs}
    num_frames = 2 * manifest.limits.window + 2 + 2
    for stage in stages:
        rows = [row for row in report.rows if str(row.rung) == stage and row.graph in ladder.VISION_GRAPHS]
        assert {f"{row.graph}/{row.tensor}" for row in rows} == vision
        for row in rows:
            found = [one for one in report.differences if (one.rung, one.name) == (row.rung, row.worst.name)]
            assert sum(one.where.kind == "frame" for one in found) == num_frames
    assert len(report.to_json()["frames"]) == len(report.differences)


def test_what_a_person_reads_says_what_was_compared_with_what_and_in_what_it_was_computed(
    bundle_fp16: Path, report_of: Callable[[Path], ParityReport]
) -> None:
    lines = report_of(bundle_fp16).table()
    assert [line for line in lines if ", against " in line] == [
        "torch fp32, against torch fp64",
        "torch fp16, against torch fp32",
        "onnx fp32, against torch fp32",
        "onnx fp16 (computed in float32), against torch fp16",
        "bundle fp16 (computed in float32), against torch fp32, a whole stream on the CPU",
        f"conversations (computed in float32), against torch fp32; KL / mean square limit {kl_limit('fp16'):.1e}",
    ]
    levels = lines.index("levels")
    kinds = {conversation.kind for conversation in report_of(bundle_fp16).conversations}
    assert sum(line.startswith("  ok ") for line in lines[:levels]) == 3 * 4 + 2 * 8 + len(kinds)
    shown = [line.split()[:2] for line in lines[levels + 1 : levels + 12]]
    assert [level for _, level in shown] == list("ABCDEFGHIJK")
    assert [level for word, level in shown if word == "--"] == ["H"]  # one stream
    assert lines[-1].startswith("engine: not executed: ")


def test_an_engine_that_was_not_executed_is_named_and_not_passed(bundle_fp16: Path, bundle_fp32: Path) -> None:
    receipt = Manifest.load(bundle_fp16).parity
    assert "CUDA runtime" in receipt["not_executed"]["engine"]
    assert not any(stage.startswith("engine") for stage in receipt["stages"])
    assert Manifest.load(bundle_fp32).parity["not_executed"] == {}


class FakeGPU:
    """Replaces the bundle's engines by fakes that run their ONNX files on a recording CUDA runtime."""

    def __init__(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle = bundle
        manifest = Manifest.load(bundle)
        for name, entry in manifest.engines.items():
            (bundle / entry.path).write_bytes(fake_plan(bundle / graph_path(name), manifest.graphs[name]))
        sign_engines(replace(manifest, files=hash_folder(bundle))).save(bundle)
        cuda = RecordingCuda()
        version = manifest.engines["llm"].runtime_version
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx", version, cuda=cuda))
        monkeypatch.setattr(ladder, "LibCudart", lambda: cuda)
        monkeypatch.setattr("engines.bundle.LibCudart", lambda: cuda)


def test_on_a_gpu_the_engines_are_rungs_of_their_own(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: Callable[[Path], Path]
) -> None:
    gpu = FakeGPU(copy_bundle(bundle_fp16), monkeypatch)
    report = check_bundle(gpu.bundle, tiny)
    assert report.passed, report.failure_text()
    assert [str(rung) for rung in report.kinds() if rung.kind in ("engine", "gpu")] == ["engine fp16", "gpu fp16"]
    rows = [row for row in report.rows if row.rung == Rung("engine", "fp16")]
    assert rows and all(row.worst.max_abs == 0 for row in rows)  # the same arithmetic in both
    assert left_out(report) == ["llm and head on the GPU"]


@pytest.mark.usefixtures("stream_alone")
def test_engines_of_another_machine_are_not_run_on_this_one(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: Callable[[Path], Path]
) -> None:
    """Engines are executable code from an unknown source."""
    gpu = FakeGPU(copy_bundle(bundle_fp16), monkeypatch)
    manifest = Manifest.load(gpu.bundle)
    foreign = {name: replace(entry, built_on="f" * len(entry.built_on)) for name, entry in manifest.engines.items()}
    replace(manifest, engines=foreign).save(gpu.bundle)
    report = check_bundle(gpu.bundle, tiny)
    assert report.not_executed["engine"].startswith("not verified: built on another machine")
    assert not any(rung.kind in ("engine", "gpu") for rung in report.kinds())


def test_a_wrong_engine_fails_at_its_own_rung(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: Callable[[Path], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    other = Path(shutil.copytree(bundle_fp16, tmp_path / "other"))
    edit_graph(other, "temporal", perturb_one_weight)
    gpu = FakeGPU(copy_bundle(bundle_fp16), monkeypatch)
    manifest = Manifest.load(gpu.bundle)
    wrong = fake_plan(other / graph_path("temporal"), manifest.graphs["temporal"])
    (gpu.bundle / manifest.engines["temporal"].path).write_bytes(wrong)
    sign_engines(replace(manifest, files=hash_folder(gpu.bundle))).save(gpu.bundle)
    rows = [row for row in check_bundle(gpu.bundle, tiny).rows if row.rung == Rung("engine", "fp16")]
    wrong_rows = [row for row in rows if row.worst.max_abs > 0]
    assert {row.graph for row in wrong_rows} == {"temporal", "compressor"}


def test_an_engine_that_the_runtime_refuses_is_an_error_and_no_rung_left_out(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: Callable[[Path], Path]
) -> None:
    gpu = FakeGPU(copy_bundle(bundle_fp16), monkeypatch)
    manifest = Manifest.load(gpu.bundle)
    (gpu.bundle / manifest.engines["trunk"].path).write_bytes(b"not a plan")
    sign_engines(replace(manifest, files=hash_folder(gpu.bundle))).save(gpu.bundle)
    with pytest.raises(BundleError, match="trunk.engine was rejected"):
        check_bundle(gpu.bundle, tiny)


def test_engines_that_changed_places_fail_the_check_and_are_not_run(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: Callable[[Path], Path]
) -> None:
    gpu = FakeGPU(copy_bundle(bundle_fp16), monkeypatch)
    exchange_engines(gpu.bundle)
    report = check_bundle(gpu.bundle, tiny)
    assert [fault.part for fault in report.faults()] == ["engines"] and report.levels()["A"].passed is False
    assert left_out(report) == ["engine"] and not any(rung.kind in ("engine", "gpu") for rung in report.kinds())


def test_a_graph_that_was_exported_for_one_rung_is_only_opened_for_the_next(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def counted(module: torch.nn.Module, spec: GraphSpec, path: Path) -> None:
        exported.append(spec.name)
        export_graph(module, spec, path)

    monkeypatch.setattr(graph_sessions, "export_graph", counted)
    for names in (("embed",), ("embed", "head")):
        sessions = graph_sessions.open_graphs(tiny.model, names, load_target("cpu"), StreamLimits(), tmp_path)
        assert tuple(sessions) == names
    assert exported == ["embed", "head"]


def test_a_cast_model_shares_what_stays_and_casts_buffers_too() -> None:
    tiny_config = PVCConfig.preset("tiny")
    model = PVC.random(replace(tiny_config, compressor=replace(tiny_config.compressor, kind="pool")))
    half = cast_model(model, "fp16")
    assert half.compressor.weights.dtype == half.compressor.mlp.fc1.weight.dtype == torch.float16
    assert half.compressor.norm.weight is model.compressor.norm.weight  # an island
    assert model.compressor.weights.dtype == torch.float64 and model.compressor.mlp.fc1.weight.dtype == torch.float32


def test_of_a_large_model_a_few_frames_are_computed_in_float64(
    bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LARGEST_FP64", 1000)
    report = check_bundle(bundle_fp32, tiny)
    assert report.passed and left_out(report) == []
    frames = {
        one.where.index for one in report.differences if one.rung == Rung("torch", "fp32") and one.graph == "trunk"
    }
    assert frames == set(range(SAMPLED_FRAMES))


def test_a_fault_of_the_exporter_fails_at_the_onnx_rung_in_float32(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, copy_bundle: object
) -> None:
    """The bundle is correct here, but the ladder's float32 export is not."""
    graph_module = graph_sessions.graph_module

    def tanh_gelu(model: object, *args: object) -> torch.nn.Module:
        module = graph_module(model, *args)
        monkeypatch.setattr(
            "pvc_ref.layers.MLP.forward",
            lambda self, x: self.fc2(torch.nn.functional.gelu(self.fc1(x), approximate="tanh")),
        )
        return module

    monkeypatch.setattr(graph_sessions, "graph_module", tanh_gelu)
    report = check_bundle(bundle_fp16, tiny)
    assert "onnx fp32" in failed_stages(report) and "torch fp16" not in failed_stages(report)


def test_a_model_that_rounds_too_much_by_itself_fails_at_the_torch_rung_and_is_no_fault_of_the_export(
    bundle_fp16: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features are off by half in float16, before anything is exported."""
    run_torch = recording.run_torch

    def run(model: PVC, *args: object) -> recording.Recording:
        found = run_torch(model, *args)  # type: ignore[arg-type]
        if next(model.trunk.parameters()).dtype == torch.float16:
            for frame in found:
                frame["temporal/features"] = frame["temporal/features"] * np.float16(1.5)
        return found

    monkeypatch.setattr(recording, "run_torch", run)
    report = check_bundle(bundle_fp16, tiny)
    assert failed_stages(report) == ["torch fp16"]
    assert report.cause().kind == "model" and "too coarse in fp16" in report.failure_text()


def test_the_split_spelling_is_held_to_the_reference_at_the_onnx_rung(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = SplitTemporalAttention.forward

    def unscaled(self: SplitTemporalAttention, x: torch.Tensor, past: object, bias: torch.Tensor) -> object:
        return forward(self, x * 1.001, past, bias)  # type: ignore[arg-type]

    monkeypatch.setattr(SplitTemporalAttention, "forward", unscaled)
    request = ExportRequest(
        out=tmp_path, target=load_target("cpu"), precision="fp32", limits=StreamLimits(window=2, context=256)
    )
    write_graphs(small, request, tmp_path, Console(quiet=True))
    report = check_bundle(tmp_path, small)
    assert failed_stages(report) == ["bundle fp32", "onnx fp32"]
    assert report.first_failed_graph == "temporal"


def test_products_of_float16_are_summed_in_float32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 40, 40, generator=generator).half() for _ in range(2))
    with Float16Products():
        got, linear = a @ b, torch.nn.functional.linear(a[0], b[0], a[0, 0])
        kept = (a.float() @ b.float()).dtype
    assert torch.equal(got, (a.float() @ b.float()).half()) and got.dtype == torch.float16
    assert torch.equal(linear, torch.nn.functional.linear(a[0].float(), b[0].float(), a[0, 0].float()).half())
    assert not torch.equal(linear, (a[0].float() @ b[0].float().T).half() + a[0, 0])  # rounded twice
    assert kept == torch.float32


def bfloat16_graph() -> onnx.ModelProto:
    """x -> Relu(x W) + x, and a Cast inside, all bfloat16."""
    weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4).astype(ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["f"], ["y"]),
        helper.make_node("Identity", ["r"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("z", TensorProto.BFLOAT16, [2, 4]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


def test_a_widened_graph_rounds_to_bfloat16_after_every_operator(tmp_path: Path) -> None:
    model = bfloat16_graph()
    onnx.save(model, tmp_path / "narrow.onnx")
    widen(tmp_path / "narrow.onnx", tmp_path / "wide.onnx")
    spec = GraphSpec(
        name="g",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 4)),),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=(2, 4)),
            TensorSpec(name="z", dtype="float32", shape=(2, 4)),
        ),
        dims={},
    )
    x = np.array([[1.5, 2.25, -0.3, 4.1], [0.1, 0.7, 3.3, 0.9]], dtype=np.float32)
    got = OrtSession(tmp_path / "wide.onnx", spec).run({"x": x})
    narrow = x.astype(ml_dtypes.bfloat16)
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    product = (narrow.astype(np.float32) @ weight).astype(ml_dtypes.bfloat16)
    relu = np.maximum(product.astype(np.float32), 0).astype(ml_dtypes.bfloat16)
    total = (relu.astype(np.float32) + narrow.astype(np.float32)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got["z"], relu.astype(np.float32))
    np.testing.assert_array_equal(got["y"], np.sqrt(total.astype(np.float32)))
    (y, z) = ReferenceEvaluator(model).run(None, {"x": narrow})  # a third-party oracle
    np.testing.assert_allclose(np.asarray(y, np.float32), got["y"], rtol=1e-2)
    np.testing.assert_allclose(np.asarray(z, np.float32), got["z"], rtol=1e-2, atol=1e-2)


def test_a_widened_graph_does_not_round_what_is_only_moved_nor_adds_unused_casts(tmp_path: Path) -> None:
    """A state with new rows appended: the rows are rounded, and the state is returned unchanged, without any cast."""
    text = """
<ir_version: 10, opset_import: ["" : 20]>
g (bfloat16[2, 3] rows, bfloat16[4, 3] past) => (bfloat16[6, 3] present, bfloat16[3, 6] y) {
  present = Concat <axis = 0> (past, rows)
  turned = Transpose <perm = [1, 0]> (present)
  y = Add(turned, turned)
}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "narrow.onnx")
    past = np.full((4, 3), 1 + 2**-7, np.float32)
    rows = np.full((2, 3), 1 + 2**-9, np.float32)  # rounds to 1 in bfloat16
    want = np.concatenate([past, np.ones_like(rows)])
    for exact, casts in (((), 6), (("past",), 4)):
        widen(tmp_path / "narrow.onnx", tmp_path / "wide.onnx", exact=exact)
        model = onnx.load(tmp_path / "wide.onnx")
        assert [node.op_type for node in model.graph.node].count("Cast") == casts
        present, y = ReferenceEvaluator(model).run(None, {"rows": rows, "past": past})
        np.testing.assert_array_equal(present, want)
        np.testing.assert_array_equal(y, 2 * want.T)


def test_a_bfloat16_bundle_runs_on_no_cpu_and_says_what_does(bundle_bf16: Path) -> None:
    from engines import open_bundle
    from engines.errors import BackendUnavailable

    with pytest.raises(BackendUnavailable, match="bfloat16") as info:
        open_bundle(bundle_bf16)
    assert "pvc-export check " in info.value.fix and "--fp16 or --fp32" in info.value.fix


def test_the_clip_of_a_check_is_half_rendered_and_half_real() -> None:
    clip = check_clip(10)
    assert [frame.shape for frame in clip] == [(144, 192, 3)] * 5 + [(320, 180, 3)] * 5
    assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in clip)
    blue, green, red = clip[5].reshape(-1, 3).mean(0)  # a red panda on grass, in BGR: more green than blue
    assert red > blue and green > blue
