"""A bundle whose vision matmuls use calibrated input scales: each wrong part is reported by the rule it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.builder import build_engine
from engines.bundle import graph_path
from engines.errors import BuildError, BundleError
from engines.gate import EngineLayer, check_layers, count_codes
from engines.manifest import Calibration, Manifest
from engines.target import load_target
from pvc_export.bundles.engines import asked_of
from pvc_export.controls.graph_edits import edit_graph
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.quantize import as_held
from pvc_export.parity.check import check_bundle
from pvc_export.parity.culprit.find import find_culprit
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.report import ParityReport
from pvc_export.parity.structure import compare_graphs
from pvc_export.parity.words.codes import cost_of_scales
from pvc_export.report.given import ReportInput

Edit = Callable[[onnx.ModelProto], None]
Edited = Callable[[str, Edit], tuple[Path, Evidence]]
PRODUCT = "trunk.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def fresh(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> FreshGraphs:
    return FreshGraphs(tiny.model, tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def held(bundle_static: Path, tiny: LoadedModel) -> LoadedModel:
    return as_held(tiny, Manifest.load(bundle_static))


@pytest.fixture
def edited(bundle_static: Path, held: LoadedModel, copy_bundle: Callable[[Path], Path], fresh: FreshGraphs) -> Edited:
    """Copy the bundle with one graph changed, and compare its graphs."""

    def change(graph: str, edit: Edit) -> tuple[Path, Evidence]:
        bundle = copy_bundle(bundle_static)
        edit_graph(bundle, graph, edit)
        return bundle, compare_graphs(bundle, Manifest.load(bundle), held, fresh)

    return change


def calibration_of(manifest: Manifest) -> Calibration:
    assert manifest.calibration is not None
    return manifest.calibration


def test_it_passes_its_check_and_says_what_its_scales_cost(
    bundle_static: Path, report_of: Callable[[Path], ParityReport], tiny: LoadedModel
) -> None:
    manifest, report = Manifest.load(bundle_static), report_of(bundle_static)
    assert manifest.rounding == "int8" and manifest.precision == "fp16"
    assert report.passed and f"{len(list(tiny.model.parameters()))} weights bit-equal" in report.summary()
    rules = {rule.name: rule for rule in report.rules}
    assert rules["operations"].passed
    assert "by error, on" in rules["scales of inputs"].detail and rules["scales of inputs"].passed
    command, _ = ReportInput(
        parity=replace(report, looked=True, stopped="as if"), manifest=manifest, bundle="OUT"
    ).next_command()
    assert "--int8 vision --quantize-by search --calibrate-by error -o" in command


def test_attention_stays_fused_and_engines_are_smaller(bundle_static: Path, bundle_fp16: Path) -> None:
    manifest = Manifest.load(bundle_static)
    fused = {name: entry.fused_attention for name, entry in manifest.engines.items()}
    assert fused["trunk"] == {"gemm": 2, "gemv": 0} and fused["temporal"] == {"gemm": 2, "gemv": 2}
    assert {name for name, spec in manifest.graphs.items() if spec.quantization} == {"trunk", "temporal", "compressor"}
    path = manifest.engines["compressor"].path
    assert (bundle_static / path).stat().st_size < 0.8 * (bundle_fp16 / path).stat().st_size


def a_scale_of_inputs(model: onnx.ModelProto) -> None:
    """Make the input scale of one matmul a twentieth too small."""
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = numpy_helper.to_array(constants[node.input[1]])
    model.graph.initializer.append(numpy_helper.from_array((scale * 0.95).astype(scale.dtype), "wrong"))
    values = next(other for other in model.graph.node if node.output[0] in other.input)
    node.input[1] = values.input[1] = "wrong"


def a_zero_point(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.int8(1), "wrong"))
    node.input[2] = "wrong"


def an_attention_product(model: onnx.ModelProto) -> None:
    """Compute attention scores in int8, which was not requested."""
    makers = {node.output[0]: node for node in model.graph.node}
    nodes = list(model.graph.node)
    index, node = next(
        (i, node)
        for i, node in enumerate(nodes)
        if node.op_type == "MatMul" and all(n in makers and makers[n].op_type != "DequantizeLinear" for n in node.input)
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float16(0.05), "wrong"))
    for side in (0, 1):
        source = node.input[side]
        pair = [
            helper.make_node("QuantizeLinear", [source, "wrong"], [f"q.{side}"]),
            helper.make_node("DequantizeLinear", [f"q.{side}", "wrong"], [f"d.{side}"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.int8(0), f"zero.{side}"))
        for one in pair:
            one.input.append(f"zero.{side}")
        node.input[side] = f"d.{side}"
        nodes[index:index] = pair
        index += 2
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def a_code(model: onnx.ModelProto) -> None:
    codes = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".codes"))
    values = numpy_helper.to_array(codes).copy()
    values.flat[7] += 1 if values.flat[7] < 100 else -1
    codes.CopyFrom(numpy_helper.from_array(values, codes.name))


def a_scale_of_weights(model: onnx.ModelProto) -> None:
    scales = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".scales"))
    values = numpy_helper.to_array(scales).copy()
    values.flat[3] = np.nextafter(values.flat[3], np.float16(1))
    scales.CopyFrom(numpy_helper.from_array(values, scales.name))


@pytest.mark.parametrize("edit", [a_code, a_scale_of_weights], ids=lambda edit: edit.__name__)
def test_a_wrong_part_of_a_weight_is_a_weight_that_differs(edit: Edit, edited: Edited) -> None:
    _, found = edited("trunk", edit)
    assert set(found.wrong_weights) == {"trunk"} and len(found.wrong_weights["trunk"]) == 1


@pytest.mark.parametrize("graph", ["trunk", "temporal", "compressor"])
@pytest.mark.parametrize("edit", [a_scale_of_inputs, a_zero_point], ids=lambda edit: edit.__name__)
def test_inputs_that_are_rounded_otherwise_are_another_structure(graph: str, edit: Edit, edited: Edited) -> None:
    _, found = edited(graph, edit)
    assert [rule.graph for rule in found.rules if rule.passed is False] == [graph]


@pytest.mark.parametrize(
    "edit", [a_scale_of_inputs, a_zero_point, an_attention_product], ids=lambda edit: edit.__name__
)
def test_the_operation_whose_inputs_are_rounded_otherwise_is_found(
    edit: Edit, bundle_static: Path, held: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_static)
    edit_graph(bundle, "trunk", edit)
    culprit = find_culprit(bundle, held, graphs=("trunk",))
    assert culprit is not None and culprit.graph == "trunk" and not culprit.is_precision


def test_a_manifest_of_other_scales_is_not_of_its_graphs(
    bundle_static: Path, tiny: LoadedModel, fresh: FreshGraphs
) -> None:
    manifest = Manifest.load(bundle_static)
    scales = dict(calibration_of(manifest).scales)
    scales[PRODUCT] *= 1.25
    other = replace(manifest, calibration=replace(calibration_of(manifest), scales=scales))
    found = compare_graphs(bundle_static, other, as_held(tiny, other), fresh)
    assert [rule.graph for rule in found.rules if rule.passed is False] == ["trunk"]
    assert not found.wrong_weights


@pytest.mark.parametrize("factor", [1 / 30, 30])
def test_scales_that_do_not_fit_what_a_product_is_fed_cost_too_much(
    factor: float, bundle_static: Path, tiny: LoadedModel
) -> None:
    """Graphs and manifest agree, so only the inputs of a matmul can reveal that its scale is wrong."""
    manifest = Manifest.load(bundle_static)
    assert cost_of_scales(tiny, manifest).passed
    scales = dict(calibration_of(manifest).scales)
    scales[PRODUCT] *= factor
    other = replace(manifest, calibration=replace(calibration_of(manifest), scales=scales))
    rule = cost_of_scales(tiny, other)
    assert rule.passed is False and PRODUCT.removesuffix(".weight") in rule.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {"calibration": None},
        lambda found: {"quantization": {}},
        lambda found: {"calibration": replace(found, scales=dict.fromkeys(found.scales, 0.0))},
    ],
    ids=["no calibration", "nothing to calibrate", "a scale of zero"],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    change: Callable[[Calibration], dict[str, object]], bundle_static: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_static)
    manifest = Manifest.load(bundle)
    replace(manifest, **change(calibration_of(manifest))).save(bundle)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="export the bundle again"):
        Manifest.load(bundle)


def engine_of(bundle: Path) -> tuple[EngineLayer, ...]:
    spec = Manifest.load(bundle).graphs["trunk"]
    return build_engine(bundle / graph_path("trunk"), spec, load_target("rtx")).layers


def hold_layers(layers: tuple[EngineLayer, ...], tiny: LoadedModel, bundle: Path) -> None:
    spec = Manifest.load(bundle).graphs["trunk"]
    asked = asked_of(cast_model(tiny.model, "fp16"), spec)
    check_layers(layers, spec, num_float32_weights=asked.num_float32_weights, num_codes=asked.num_codes)


def test_the_gate_refuses_an_attention_in_eight_bits(
    tiny: LoadedModel, bundle_static: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")
    hold_layers(engine_of(bundle_static), tiny, bundle_static)
    bundle = copy_bundle(bundle_static)
    edit_graph(bundle, "trunk", an_attention_product)
    with pytest.raises(BuildError, match="an attention was split into separate kernels"):
        hold_layers(engine_of(bundle), tiny, bundle)


def without_codes(model: onnx.ModelProto) -> None:
    """Turn the first matmul's weight back into values, its input unrounded, as a compiler that widens early does."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(".codes"))
    codes, scales = (numpy_helper.to_array(constants[name]) for name in node.input)
    model.graph.initializer.append(numpy_helper.from_array((codes * scales).astype(np.float16), "wide"))
    product = next(other for other in model.graph.node if node.output[0] in other.input)
    product.input[1] = "wide"
    values = next(other for other in model.graph.node if product.input[0] in other.output)
    rounding = next(other for other in model.graph.node if values.input[0] in other.output)
    product.input[0] = rounding.input[0]
    for dead in (node, values, rounding):
        model.graph.node.remove(dead)


def test_the_gate_refuses_weights_that_were_left_wide(
    tiny: LoadedModel, bundle_static: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")
    bundle = copy_bundle(bundle_static)
    edit_graph(bundle, "trunk", without_codes)
    layers = engine_of(bundle)
    assert 0 < count_codes(layers, 8) < count_codes(engine_of(bundle_static), 8)
    with pytest.raises(BuildError, match="int8 weights\nexpected.*\nlikely: this compiler widens"):
        hold_layers(layers, tiny, bundle)


def test_it_passes_layer_by_layer_too(bundle_static: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_static, tiny, by_layer=True)
    assert report.passed, report.failure_text()
