"""A bundle with int8 matmuls, compared operation by operation with a reference that rounds the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.manifest import Manifest
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.controls.graph_edits import edit_graph
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.quantize import as_held, as_written
from pvc_export.parity.check import check_bundle
from pvc_export.parity.culprit.find import find_culprit
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.report import ParityReport
from pvc_export.parity.rounding import Reference
from pvc_export.parity.structure import compare_graphs
from pvc_export.terminal.console import Console
from pvc_export.terminal.quantization import FewBits

Edit = Callable[[onnx.ModelProto], None]
Edited = Callable[[str, Edit], tuple[Path, Evidence]]


@pytest.fixture(scope="module")
def fresh(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> FreshGraphs:
    return FreshGraphs(tiny.model, tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def held(bundle_int8: Path, tiny: LoadedModel) -> LoadedModel:
    return as_held(tiny, Manifest.load(bundle_int8))


@pytest.fixture
def edited(bundle_int8: Path, held: LoadedModel, copy_bundle: Callable[[Path], Path], fresh: FreshGraphs) -> Edited:
    """Copy the bundle with one graph changed, and compare its graphs."""

    def change(graph: str, edit: Edit) -> tuple[Path, Evidence]:
        bundle = copy_bundle(bundle_int8)
        edit_graph(bundle, graph, edit)
        return bundle, compare_graphs(bundle, Manifest.load(bundle), held, fresh)

    return change


def test_it_passes_its_check_which_holds_every_operation(
    bundle_int8: Path, report_of: Callable[[Path], ParityReport], tiny: LoadedModel
) -> None:
    manifest = Manifest.load(bundle_int8)
    assert manifest.rounding == "int8" and manifest.precision == "fp32"
    quantized = {name: spec.quantization.inputs for name, spec in manifest.graphs.items() if spec.quantization}
    vision = dict.fromkeys(("trunk", "temporal", "compressor"), "tensor")
    assert quantized == {**vision, "llm": "rows", "head": "rows"}
    report = report_of(bundle_int8)
    assert report.passed and report.rounding == "int8"
    assert f"{len(list(tiny.model.parameters()))} weights bit-equal" in report.summary()
    rules = {rule.name: rule for rule in report.rules}
    assert rules["operations"].passed and rules["what codes cost"].passed


def test_it_passes_layer_by_layer_too(bundle_int8: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_int8, tiny, by_layer=True)
    assert report.passed, report.failure_text()


def test_a_reference_knows_that_it_rounds_its_inputs(held: LoadedModel, tiny: LoadedModel) -> None:
    assert Reference.of(held.model, "fp32").rounding == "int8"
    assert Reference.of(tiny.model, "fp16").rounding == "fp16"


def _change(model: onnx.ModelProto, end: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the values of the first constant whose name ends with `end`."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(end))
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def a_scale(model: onnx.ModelProto) -> None:
    _change(model, ".scales", lambda values: np.multiply(values, [1.001] + [1] * (values.size - 1), out=values))


def a_code(model: onnx.ModelProto) -> None:
    def change(values: np.ndarray) -> None:
        values[0, 0] -= 1 if values[0, 0] > 0 else -1

    _change(model, ".codes", change)


@pytest.mark.parametrize("graph", ["trunk", "llm"])
@pytest.mark.parametrize("edit", [a_scale, a_code], ids=lambda edit: edit.__name__)
def test_a_wrong_scale_or_code_is_a_weight_that_differs(edit: Edit, graph: str, edited: Edited) -> None:
    _, found = edited(graph, edit)
    assert set(found.wrong_weights) == {graph}
    assert all(rule.passed for rule in found.rules), "the graph's structure is correct"


def a_zero_point(model: onnx.ModelProto) -> None:
    """Shift the zero point of one matmul's input by one code."""
    product = next(node for node in model.graph.node if node.op_type == "MatMulInteger")
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(127), "wrong"))
    product.input[2] = "wrong"


def a_largest_code(model: onnx.ModelProto) -> None:
    """Scale rows to 120 codes. Nothing saturates, so results are correct but too coarse."""
    _change(model, "rows.step", lambda values: np.copyto(values, np.float32(1 / 120)))


def an_attention_product(model: onnx.ModelProto) -> None:
    """Compute attention scores in int8, which was not requested."""
    constants = {tensor.name for tensor in model.graph.initializer}
    index, node = next(
        (i, node)
        for i, node in enumerate(model.graph.node)
        if node.op_type == "MatMul" and not constants & set(node.input)
    )
    made = []
    for side in (0, 1):
        names = [f"{part}.{side}" for part in ("q", "s", "z")]
        made.append(helper.make_node("DynamicQuantizeLinear", [node.input[side]], names))
    made += [
        helper.make_node("MatMulInteger", ["q.0", "q.1", "z.0", "z.1"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["sums"], to=1),
        helper.make_node("Mul", ["s.0", "s.1"], ["both"]),
        helper.make_node("Mul", ["sums", "both"], list(node.output)),
    ]
    made[-1].metadata_props.extend(node.metadata_props)
    nodes = list(model.graph.node)
    nodes[index : index + 1] = made
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("graph", "edit"),
    [("llm", a_zero_point), ("llm", a_largest_code), ("trunk", an_attention_product)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_graph_that_rounds_otherwise_is_built_otherwise_and_its_operation_is_found(
    graph: str, edit: Edit, edited: Edited, held: LoadedModel
) -> None:
    bundle, found = edited(graph, edit)
    assert [rule.graph for rule in found.rules if rule.passed is False] == [graph]
    culprit = find_culprit(bundle, held, graphs=(graph,))
    assert culprit is not None and culprit.graph == graph


def test_a_bundle_that_says_it_rounds_otherwise_is_not_what_its_graphs_are(
    bundle_int8: Path, tiny: LoadedModel, fresh: FreshGraphs
) -> None:
    manifest = Manifest.load(bundle_int8)
    other = replace(
        manifest, quantization={part: replace(how, method="round") for part, how in manifest.quantization.items()}
    )
    found = compare_graphs(bundle_int8, other, as_held(tiny, other), fresh)
    assert set(found.wrong_weights) == {"trunk", "temporal", "compressor", "llm", "head"}


def test_weights_of_four_bits_whose_inputs_are_rounded_block_by_block_pass_whole_and_layer_by_layer(
    small: LoadedModel, tmp_path: Path
) -> None:
    quantization = FewBits(int4=["llm"]).of(load_target("cpu"), streams=1)
    assert quantization["llm"].inputs == "blocks"
    request = ExportRequest(
        out=tmp_path, target=load_target("cpu"), precision="fp32", limits=StreamLimits(window=3, context=256),
        quantization=quantization,
    )  # fmt: skip
    manifest = write_graphs(small, request, tmp_path, Console(quiet=True))
    assert manifest.rounding == "int8"
    report = check_bundle(tmp_path, small, ladder=False, num_questions=0)
    assert report.passed, report.failure_text()
    report = check_bundle(tmp_path, small, by_layer=True)
    assert report.passed, report.failure_text()
    # The file states floating-point inputs, so each operation is compared with those and not with rounded blocks.
    assert find_culprit(tmp_path, as_written(small, manifest)) is None
    assert find_culprit(tmp_path, as_held(small, manifest)) is not None


@pytest.mark.parametrize("streams", [1, 2])
def test_in_float16_every_operation_is_right_too_though_some_values_take_the_next_code(
    streams: int, small: LoadedModel, tmp_path: Path
) -> None:
    quantization = FewBits(int8=["vision", "llm"]).of(load_target("cpu"), streams=streams)
    request = ExportRequest(
        out=tmp_path, target=load_target("cpu"), precision="fp16", quantization=quantization,
        limits=StreamLimits(window=3, context=256, streams=streams),
    )  # fmt: skip
    manifest = write_graphs(small, request, tmp_path, Console(quiet=True))
    assert find_culprit(tmp_path, as_written(small, manifest)) is None
    edit_graph(tmp_path, "llm", a_scale if streams == 1 else a_zero_point)
    assert (find_culprit(tmp_path, as_written(small, manifest), graphs=("llm",)) is None) == (streams == 1)
