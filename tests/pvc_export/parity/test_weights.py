"""Every weight is compared where its operation reads it: elsewhere or in another order, it counts as wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from engines.manifest import Manifest
from pvc_export.controls.defects import DEFECTS
from pvc_export.controls.graph_edits import edit_graph, read_instead
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.graph_file import GraphFile, same_bits
from pvc_export.parity.structure import compare_graphs
from pvc_export.parity.weights import compare_weights
from pvc_ref import PVC, PVCConfig
from pvc_ref.config import CompressorConfig

from ...conftest import ExportGraph, few_layers
from .graphs import Form

PLANTED = {defect.name: defect for defect in DEFECTS}
PROJ = "trunk.layers.{}.attn.proj"
OUT_OF_PLACE = {
    "exchanged": {PROJ.format(0) + ".weight": PROJ.format(1), PROJ.format(1) + ".weight": PROJ.format(0)},
    "biases": {PROJ.format(0) + ".bias": PROJ.format(1), PROJ.format(1) + ".bias": PROJ.format(0)},
    "transposed": {PROJ.format(0) + ".weight": "it is read transposed"},
    "joined-order": {
        "llm.layers.0.mlp.gate_proj.weight": "llm.layers.0.mlp.up_proj",
        "llm.layers.0.mlp.up_proj.weight": "llm.layers.0.mlp.gate_proj",
    },
    "other-alpha": {"temporal.layers.0.alpha": "temporal.layers.1.alpha"},
    "rolled-table": {"llm.embed_tokens.weight": "values differ, first at [0, 0]"},
    "embed-row": {"llm.embed_tokens.weight": "1 of 16896 values differ, first at [263, 0]"},
    "head-row": {"llm.lm_head.weight": "1 of 16896 values differ, first at [263, 0]"},
    "weight": {},
}


@pytest.mark.parametrize("name", OUT_OF_PLACE)
def test_what_is_not_in_its_place_is_named_with_what_stands_there(
    name: str, bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle, defect = copy_bundle(bundle_fp32), PLANTED[name]
    assert defect.change_bundle is not None and defect.level == "A"
    defect.change_bundle(bundle)
    with FreshGraphs.of(tiny.model, None) as fresh:
        found = compare_graphs(bundle, Manifest.load(bundle), tiny, fresh)
    wrong = found.wrong_weights.pop(defect.named)
    assert not found.wrong_weights
    for weight, said in OUT_OF_PLACE[name].items():
        assert said in wrong.pop(weight)
    assert not wrong or name == "weight"
    assert all(rule.passed for rule in found.rules), "wrong weight values must not fail a rule of structure"


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_every_weight_of_a_faithful_bundle_is_in_its_place(
    bundle_name: str, tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    found = compare_weights(bundle, Manifest.load(bundle), tiny)
    assert found.wrong_weights == {} and found.num_weights == len(list(tiny.model.parameters()))


def compressor(kind: str) -> PVC:
    tiny = few_layers(PVCConfig.preset("tiny"))
    kinds = CompressorConfig(kind=kind, num_tokens=4, num_q_former_layers=1)  # type: ignore[arg-type]
    return PVC.random(replace(tiny, compressor=kinds), seed=0)


FORMS = {
    **{
        f"{kind} {form.precision} {form.streams}": (kind, form)
        for kind in ("q_former", "pixel_shuffle", "pool", "conv")
        for form in (
            Form(name="compressor", precision="fp16"),
            *([Form(name="compressor", streams=2)] if kind == "q_former" else []),
        )
    },
    "islands": ("pvc", Form(name="trunk", precision="fp16", islands=("trunk.embeddings", "trunk.layers.0.mlp"))),
    "split": ("pvc", Form(name="trunk", precision="bf16", spelling="split")),
    "part of a product": ("pvc", Form(name="llm", precision="fp16", islands=("llm.layers.0.attn.k_proj",))),
    "in place": ("pvc", Form(name="llm", precision="bf16", cache_update="aliased", islands=("llm.layers.0.attn",))),
    "clock table": ("pvc", Form(name="temporal", precision="fp16", num_times=40)),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_weights_of_every_form_of_a_graph_are_found_and_a_changed_one_is_not(
    name: str, tmp_path: Path, export_once: ExportGraph
) -> None:
    kind, form = FORMS[name]
    model = compressor(kind)
    path = form.file(model, tmp_path, export_once)
    held = form.held(model, path)
    assert not held.wrong and held.right
    for weight in held.right:
        changed = copy.deepcopy(model)
        owner = weight.removesuffix(".table") + ".w2.bias" if weight.endswith(".table") else weight
        with torch.no_grad():
            changed.get_parameter(owner).view(-1)[-1] += 1.0
        assert weight in form.held(changed, path).wrong


def test_a_tied_table_is_a_weight_of_both_its_graphs(tmp_path: Path, export_once: ExportGraph) -> None:
    tiny = few_layers(PVCConfig.preset("tiny"))
    model = PVC.random(replace(tiny, llm=replace(tiny.llm, tie_embeddings=True)), seed=0)
    assert model.llm.lm_head.weight is model.llm.embed_tokens.weight
    for name, weight in (("embed", "llm.embed_tokens.weight"), ("head", "llm.lm_head.weight")):
        form = Form(name=name, precision="fp16")
        path = form.file(model, tmp_path, export_once)
        assert form.held(model, path).right == {weight}
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.llm.lm_head.weight[5].roll(1)
            changed.llm.lm_head.weight.copy_(changed.llm.lm_head.weight.roll(1, 0))
        assert set(form.held(changed, path).wrong) == {weight}


@pytest.fixture(scope="module")
def uniform(tiny: LoadedModel) -> PVC:
    """A model with equal layers, gains of one and zero biases, so that the exporter merges and drops what it can."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for part in (model.trunk, model.temporal):
            part.layers[1].load_state_dict(part.layers[0].state_dict())
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1", "ls2", "alpha")):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


@pytest.mark.parametrize(
    "form", [Form(name="trunk"), Form(name="temporal", num_times=3), Form(name="compressor")], ids=lambda f: f.name
)
def test_equal_layers_gains_of_one_and_biases_of_zero_are_no_fault(
    form: Form, uniform: PVC, tmp_path: Path, export_once: ExportGraph
) -> None:
    held = form.held(uniform, form.file(uniform, tmp_path, export_once))
    assert not held.wrong and held.right


def test_a_bias_that_is_left_out_was_zero(
    uniform: PVC, tiny: LoadedModel, tmp_path: Path, export_once: ExportGraph
) -> None:
    form = Form(name="trunk")
    path = form.file(uniform, tmp_path, export_once)
    changed = copy.deepcopy(uniform)
    with torch.no_grad():
        changed.trunk.embeddings.patch_embedding.bias[3] = 1e-3
    assert "reads no constant" in form.held(changed, path).wrong["trunk.embeddings.patch_embedding.bias"]


def test_a_weight_that_no_operation_of_its_module_reads_is_wrong_wherever_else_it_lies(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    """The layer's gain stays in the file, but the node reads ones."""
    bundle = copy_bundle(bundle_fp32)

    def read_ones(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), "ones"))
        read_instead(model, {"layers.0.ls1": "ones"})

    edit_graph(bundle, "trunk", read_ones)
    (wrong,) = compare_weights(bundle, Manifest.load(bundle), tiny).wrong_weights["trunk"].items()
    assert wrong[0] == "trunk.layers.0.ls1" and "63 of 64 values differ" in wrong[1]


def test_a_matrix_may_pass_nodes_that_only_turn_it(bundle_fp32: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    """Large matrices that two operations share keep their Transpose in the graph; an odd one is detected."""
    source = bundle_fp32 / "graphs" / "trunk.onnx"
    for turns, said in ((2, None), (1, "it is read transposed")):
        model = onnx.load(source)
        index, node = next(
            (index, node) for index, node in enumerate(model.graph.node)
            if any(entry.value.count("attn_proj_weight") for entry in node.metadata_props) and node.op_type == "MatMul"
        )  # fmt: skip
        name = node.input[1]
        for turn in range(turns):
            model.graph.node.insert(index + turn, helper.make_node("Transpose", [name], [f"turned{turn}"], perm=[1, 0]))
            name = f"turned{turn}"
        node = next(other for other in model.graph.node if other.output[0] == node.output[0])
        node.input[1] = name
        path = tmp_path / f"{turns}.onnx"
        onnx.save(model, path)
        form = Form(name="trunk", streams=2, spelling="split")
        wrong = form.held(tiny.model, path).wrong
        assert wrong == ({} if said is None else {PROJ.format(0) + ".weight": said})


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_flipped_bit_is_a_difference_and_nan_equals_itself(dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=(4, 30)).astype(dtype)
    values[0, 0] = np.nan
    assert same_bits(values, values.copy()) and same_bits(values.T, values.T.copy())
    for position in range(values.size):
        flipped = values.copy()
        flipped.view(f"u{values.itemsize}").flat[position] ^= 1
        assert not same_bits(values, flipped)
    assert not same_bits(np.zeros(1, dtype), -np.zeros(1, dtype)) and not same_bits(values, values.reshape(2, 60))
    assert not same_bits(np.zeros(2, np.float32), np.zeros(2, np.int32))


def test_a_constant_is_read_in_its_shape_wherever_it_lies(bundle_fp16: Path) -> None:
    file = GraphFile(bundle_fp16 / "graphs" / "trunk.onnx", "trunk")
    for name, tensor in file.constants.items():
        assert file.values(name).shape == tuple(tensor.dims)
