"""A bundle whose LLM has int4 weights: it is compared with its own codes, and each wrong code is a difference."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.bundle import graph_path
from engines.manifest import Manifest
from engines.spec import Quantization
from pvc_export.controls.graph_edits import edit_graph, widen_rms_epsilon
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.quantize import as_held
from pvc_export.graphs.weights_file import weight_values
from pvc_export.parity.check import check_bundle, explain
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.report import ParityReport
from pvc_export.parity.structure import compare_graphs
from pvc_export.parity.words.codes import cost_of_codes
from pvc_export.report.given import ReportInput
from pvc_export.terminal.console import Console

HOW = Quantization(block=32, zero_points=True, method="search")


@pytest.fixture(scope="module")
def fresh(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> FreshGraphs:
    """Shared by all tests here, which only change files of the bundle."""
    return FreshGraphs(tiny.model, tmp_path_factory.mktemp("fresh"))


def test_it_passes_its_check_and_its_manifest_says_what_it_is(
    bundle_int4: Path, report_of: Callable[[Path], ParityReport], tiny: LoadedModel
) -> None:
    manifest = Manifest.load(bundle_int4)
    assert manifest.quantization == {"llm": HOW}
    assert {name for name, spec in manifest.graphs.items() if spec.quantization == HOW} == {"llm"}
    report = report_of(bundle_int4)
    assert report.passed
    assert f"{len(list(tiny.model.parameters()))} weights bit-equal" in report.summary()
    (cost,) = (rule for rule in report.rules if rule.name == "what codes cost")
    assert cost.passed and "KL" in cost.detail
    kl = float(re.search(r"KL ([\d.e-]+) nats", cost.detail)[1])  # type: ignore[index]
    assert 0 < kl < 0.1, "codes must cost something"


def test_codes_of_another_model_cost_too_much(bundle_int4: Path, tiny: LoadedModel) -> None:
    manifest = Manifest.load(bundle_int4)
    louder = copy.deepcopy(tiny.model)
    with torch.no_grad():
        louder.llm.lm_head.weight *= -30
    rule = cost_of_codes(tiny, replace(tiny, model=louder), manifest, per_kind=1)
    assert rule.passed is False and rule.level == "J"


def test_where_no_prompt_fits_no_cost_is_given(bundle_int4: Path, tiny: LoadedModel) -> None:
    manifest = Manifest.load(bundle_int4)
    short = replace(manifest, limits=replace(manifest.limits, context=1, bucket=1, chunk=1))
    assert cost_of_codes(tiny, tiny, short, per_kind=1).passed is None


def test_it_passes_layer_by_layer_too(bundle_int4: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_int4, tiny, by_layer=True)
    assert report.passed, report.failure_text()


def test_a_fault_beside_the_codes_is_found_and_the_command_that_exports_again_asks_for_them(
    bundle_int4: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_int4)
    edit_graph(bundle, "llm", widen_rms_epsilon)
    report = check_bundle(bundle, tiny, ladder=False, num_questions=0)
    report = explain(report, bundle, tiny, Console(quiet=True))
    assert not report.passed and report.culprit is not None
    assert report.culprit.layer == "llm.layers.0.attn_norm"
    command, _ = ReportInput(parity=report, manifest=Manifest.load(bundle), bundle="OUT").next_command()
    assert "--int4 llm --int4-block 32 --quantize-by search" in command


Edit = Callable[[onnx.ModelProto], None]


def _part(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return the first constant of that kind."""
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(f".{name}"))


def _put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def a_scale(model: onnx.ModelProto) -> None:
    tensor = _part(model, "scales")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] *= 1.001
    _put(tensor, values)


def a_zero_point(model: onnx.ModelProto) -> None:
    tensor = _part(model, "zero_points")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = 15 - values[0, 0].astype(int)
    _put(tensor, values)


def a_code(model: onnx.ModelProto) -> None:
    tensor = _part(model, "codes")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = 15 - values[0, 0].astype(int)
    _put(tensor, values)


def a_block(model: onnx.ModelProto) -> None:
    """Make each scale serve two blocks, as if the block size were twice as large."""
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:]:
            _put(tensor, onnx.numpy_helper.to_array(tensor)[::2].copy())
    next(entry for entry in node.attribute if entry.name == "block_size").i *= 2


def no_zero_points(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    del node.input[2]


WRONG: dict[str, Edit] = {
    "scale": a_scale, "zero point": a_zero_point, "code": a_code, "block": a_block, "no zero points": no_zero_points,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_of_a_code_is_a_weight_that_differs(
    name: str, bundle_int4: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path], fresh: FreshGraphs
) -> None:
    bundle = copy_bundle(bundle_int4)
    edit_graph(bundle, "llm", WRONG[name])
    manifest = Manifest.load(bundle)
    held = as_held(tiny, manifest)
    found = compare_graphs(bundle, manifest, held, fresh)
    assert set(found.wrong_weights) == {"llm"} and found.wrong_weights["llm"]
    structural = [rule for rule in found.rules if rule.passed is False]
    assert bool(structural) == (name in ("block", "no zero points"))


def test_a_bundle_that_says_another_method_or_block_is_not_what_its_graphs_are(
    bundle_int4: Path, tiny: LoadedModel, fresh: FreshGraphs
) -> None:
    manifest = Manifest.load(bundle_int4)
    for how in (replace(HOW, method="round"), replace(HOW, block=64)):
        other = replace(manifest, quantization={"llm": how})
        held = as_held(tiny, other)
        found = compare_graphs(bundle_int4, other, held, fresh)
        assert found.wrong_weights


def test_codes_of_four_bits_are_two_in_a_byte(bundle_int4: Path) -> None:
    path = bundle_int4 / graph_path("llm")
    constants = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    codes = next(tensor for name, tensor in constants.items() if name.endswith(".codes"))
    whole = next(tensor for tensor in onnx.load(path).graph.initializer if tensor.name == codes.name)
    want = onnx.numpy_helper.to_array(whole).ravel()
    assert np.array_equal(weight_values(codes, path.parent).astype(int).ravel(), want.astype(int))
