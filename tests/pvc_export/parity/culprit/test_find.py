"""The culprit search names the operation that is wrong on the reference's inputs, and the repair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.errors import ModelError
from engines.gate import NO_WIDE_ATTENTION, WideAttention
from engines.manifest import Manifest
from engines.session import OrtSession
from engines.spec import Precision, StreamLimits
from engines.target import load_target
from pvc_export.bundles.engines import asked_of, wide_attention
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.bundles.repair import repair
from pvc_export.controls import graph_edits as edits
from pvc_export.controls.defects import PRECISION_DEFECTS, PrecisionDefect
from pvc_export.graphs.models import LoadedModel, load_model, loaded_model
from pvc_export.graphs.modules import graph_module
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.parity.culprit.find import LIMIT, find_culprit, pieces_of
from pvc_export.parity.culprit.inputs import expected_calls, float32_specs, reference_stream
from pvc_export.terminal.console import Console

from ...conftest import Run

LIMITS = StreamLimits(window=4, context=512)


def request_for(precision: Precision, *, target: str = "cpu", islands: tuple[str, ...] = ()) -> ExportRequest:
    chosen = load_target(target)
    chosen = chosen if target == "rtx" else replace(chosen, engine_graphs=(), builder=None)
    return ExportRequest(out=Path("unused"), target=chosen, precision=precision, limits=LIMITS, islands=islands)


def planted(loaded: LoadedModel, defect: PrecisionDefect) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    defect.change_model(model)
    return loaded_model(model, loaded.tokenizer, name=loaded.source.name)


@pytest.mark.usefixtures("shared_graphs")
@pytest.mark.parametrize("defect", PRECISION_DEFECTS, ids=lambda d: d.name)
def test_of_the_bundled_model_s_overflows_the_layer_the_operation_and_the_island_are_named(
    defect: PrecisionDefect, tmp_path: Path
) -> None:
    shapes = planted(load_model("shapes"), defect)
    request = replace(request_for("fp16"), limits=StreamLimits())  # the faultless graphs are the demo's
    write_graphs(shapes, request, tmp_path, Console(quiet=True))
    culprit = find_culprit(tmp_path, shapes)
    assert culprit is not None
    assert (culprit.layer, culprit.operation, culprit.island) == (defect.layer, defect.operation, defect.island)
    assert culprit.is_precision and culprit.peak > culprit.largest == 65504
    assert f"--island {defect.island}" in culprit.text() and "NaN or infinite" in culprit.text()


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_suggested_island_is_proven_by_an_export_with_it(tiny: LoadedModel, tmp_path: Path) -> None:
    found = repair(
        planted(tiny, PRECISION_DEFECTS[0]), request_for("fp16"), scratch=tmp_path, console=Console(quiet=True)
    )
    assert found.passed and found.islands == ("trunk.layers.1.attn",) and len(found.culprits) == 1
    assert "with --island trunk.layers.1.attn passes the check" in found.text() and not list(tmp_path.iterdir())


EDITS: dict[str, tuple[str, edits.Edit, str, str]] = {
    "gelu": ("trunk", edits.approximate_gelu, "trunk.layers.0.mlp", "gelu"),
    "scale": ("temporal", edits.scale_attention, "temporal.layers.0.attn", "mul"),
    "causal": ("llm", edits.see_the_next_row, "llm", "le"),
    "clock": ("compressor", edits.forget_the_time, "compressor.time_embedding", "unsqueeze"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_operation_that_a_graph_has_otherwise_is_named_and_no_island_suggested(
    name: str, bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    graph, edit, layer, operation = EDITS[name]
    bundle = copy_bundle(bundle_fp32)
    edits.edit_graph(bundle, graph, edit)
    culprit = find_culprit(bundle, tiny)
    assert culprit is not None
    assert (culprit.graph, culprit.layer, culprit.operation) == (graph, layer, operation)
    assert not culprit.is_precision and culprit.island is None and "Export the bundle again" in culprit.text()
    assert ("a mask, an index or a zero differs" in culprit.text()) == (name == "causal")


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_of_a_faithful_bundle_no_operation_is_to_blame(
    bundle_name: str, tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    assert find_culprit(request.getfixturevalue(bundle_name), tiny) is None


def test_every_operation_of_a_narrow_graph_is_measured_and_has_a_margin(
    bundle_fp16: Path, tiny: LoadedModel, tmp_path: Path
) -> None:
    manifest = Manifest.load(bundle_fp16)
    spec = float32_specs(manifest)["temporal"]
    twin = tmp_path / "twin" / "temporal.onnx"
    twin.parent.mkdir()
    export_graph(graph_module(tiny.model, spec, load_target(manifest.target).spelling), spec, twin)
    path = bundle_fp16 / "graphs" / "temporal.onnx"
    for call in expected_calls(manifest, tiny, "temporal", reference_stream(manifest, tiny)):
        pieces, _ = pieces_of(path, twin, call.feeds)
        assert {"linear", "softmax", "layer_norm", "gelu", "matmul", "add"} <= {p.origin.operation for p in pieces}
        worst = max(piece.error for piece in pieces)
        assert 0.5 < worst < LIMIT / 3  # it rounds, but is far from counting as a fault
        assert all(piece.dtype == "fp16" for piece in pieces if piece.origin.operation in ("linear", "matmul")
                   and "time_embedding" not in piece.origin.scope)  # fmt: skip


def test_what_the_reference_would_feed_a_graph_is_what_the_runtime_feeds_it(
    bundle_fp32: Path, tiny: LoadedModel
) -> None:
    """Compares two sides that share no code: culprit/inputs.py, and the runtime's caches and masks."""
    from engines.bundle import open_bundle
    from engines.vision import VisionEncoder
    from pvc_export.parity.recording import check_frames

    bundle = open_bundle(bundle_fp32, runtime="cpu", unchecked=True)
    fed: list[dict[str, np.ndarray]] = []
    run = OrtSession.run

    def tapped(self: OrtSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.spec.name == "temporal":
            fed.append({name: np.array(value) for name, value in inputs.items()})
        return run(self, inputs)  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtSession, "run", tapped)
        encoder = VisionEncoder(bundle.sessions)
        frames = check_frames(bundle.manifest)
        for pixels in frames.pixels:
            encoder.commit(encoder.encode(pixels))
    for call in expected_calls(bundle.manifest, tiny, "temporal", reference_stream(bundle.manifest, tiny)):
        mine = fed[call.where.index]
        assert np.array_equal(mine["slot_mask"], call.feeds["slot_mask"])
        readable = np.moveaxis(mine["past.1.value"], bundle.manifest.graphs["temporal"].states[0].slot_axis, 1)
        expected = np.moveaxis(call.feeds["past.1.value"], bundle.manifest.graphs["temporal"].states[0].slot_axis, 1)
        seen = call.feeds["slot_mask"][0]
        assert np.allclose(readable[:, seen], expected[:, seen], atol=1e-5)  # worst 2e-6


# -- islands -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_graphs")
@pytest.mark.parametrize("target", ["cpu", "rtx", "cuda"])
def test_an_island_keeps_its_weights_and_everything_inside_in_float32(
    target: str, tiny: LoadedModel, small: LoadedModel, tmp_path: Path
) -> None:
    loaded = tiny if target == "rtx" else small  # engines must show that attention in other layers stays fused
    names = ("trunk.layers.0.attn", "temporal.layers.0.temporal_attn", "llm.layers.0.attn")
    write_graphs(loaded, request_for("fp16", target=target, islands=names), tmp_path, Console(quiet=True))
    assert Manifest.load(tmp_path).islands == names
    for graph, part in (("trunk", "layers.0.attn"), ("llm", "layers.0.attn")):
        model = onnx.load(tmp_path / "graphs" / f"{graph}.onnx", load_external_data=False)
        biases = {t.name: t.data_type for t in model.graph.initializer if t.name.endswith("bias")}
        kept = [kind for name, kind in biases.items() if part in name]
        assert kept and set(kept) == {onnx.TensorProto.FLOAT}
        others = [kind for name, kind in biases.items() if "layers" in name and part not in name and "norm" not in name]
        assert set(others) == {onnx.TensorProto.FLOAT16} or (graph, loaded) == ("llm", small)  # has only one layer
    engines = Manifest.load(tmp_path).engines  # for rtx they build, and the gate exempts only these attentions
    assert {name: engines[name].fused_attention for name in ("trunk", "llm") if engines} == (
        {"trunk": {"gemm": 1, "gemv": 0}, "llm": {"gemm": 1, "gemv": 1}} if target == "rtx" else {}
    )


def test_the_gate_on_engines_lets_go_of_attention_in_islands_alone(tiny: LoadedModel, bundle_fp16: Path) -> None:
    specs = Manifest.load(bundle_fp16).graphs
    assert all(wide_attention(tiny.model, spec, ()) == NO_WIDE_ATTENTION for spec in specs.values())
    islands = ("trunk.layers.1.attn", "temporal.layers.0.temporal_attn", "llm.layers.1", "llm.layers.0.mlp")
    found = {name: wide_attention(tiny.model, spec, islands) for name, spec in specs.items()}
    assert found["trunk"] == WideAttention(num_rows=1)
    assert found["temporal"] == WideAttention(states=frozenset({"past.0.key", "past.0.value"}))
    assert found["llm"] == WideAttention(num_rows=1, states=frozenset({"past.1.key", "past.1.value"}))
    assert found["compressor"] == found["embed"] == found["head"] == NO_WIDE_ATTENTION
    assert wide_attention(tiny.model, specs["trunk"], ("trunk.layers.1.attn.qkv",)) == WideAttention(num_rows=1)
    assert wide_attention(tiny.model, specs["trunk"], ("trunk",)) == WideAttention(num_rows=2)
    assert asked_of(tiny.model, specs["trunk"], ("trunk",)).wide == NO_WIDE_ATTENTION  # a float32 graph


def test_an_island_rounds_its_result_and_nothing_inside(tiny: LoadedModel) -> None:
    narrow = cast_model(tiny.model, "fp16", ("trunk.layers.0.mlp",))
    x = torch.randn(1, 5, tiny.config.vision.hidden_size).half()
    with torch.no_grad():
        got, want = narrow.trunk.layers[0].mlp(x), tiny.model.trunk.layers[0].mlp(x.float()).half()
    assert got.dtype == torch.float16 and torch.equal(got, want)
    assert cast_model(tiny.model, "fp32", ("trunk.layers.0.mlp",)).trunk.layers[0].mlp(x.float()).dtype == torch.float32


def test_what_cannot_be_an_island_is_refused_with_the_nearest_that_can(tiny: LoadedModel, pvc_export: Run) -> None:
    with pytest.raises(ModelError, match="Did you mean 'trunk.layers.0.mlp'"):
        cast_model(tiny.model, "fp16", ("trunk.layers.0.mpl",))
    with pytest.raises(ModelError, match="no module of that name that is called as a whole"):
        cast_model(tiny.model, "fp16", ("temporal.layers.0",))  # its parts are called, it is not
    pvc_export("onnx", "-m", "tiny", "--fp32", "--island", "trunk.layers.0.mlp").says(2, "with --fp32 all of them are")
