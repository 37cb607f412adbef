"""A bundle's graphs against a fresh export: faults hidden by noise are found, output of other versions is accepted."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.manifest import Manifest
from pvc_export.controls.defects import DEFECTS
from pvc_export.controls.graph_edits import change, edit_graph, find, weight_of
from pvc_export.graphs.hollow import filled, hollow
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module
from pvc_export.graphs.onnx_file import EXPORTER, export_hollow, is_hollow
from pvc_export.graphs.precision import cast_model
from pvc_export.parity import fresh
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.graph_file import GraphFile
from pvc_export.parity.structure import Comparison, compare_graphs

from ...conftest import ExportGraph
from .graphs import Form

PLANTED = {defect.name: defect for defect in DEFECTS}
COVERED = {
    "epsilon-half": (
        "LayerNormalization of 'layer_norm' in 'trunk.layers.0.norm1'",
        "epsilon is 1.1e-06, expected 1e-06",
    ),
    "scale-half": ("Mul of 'mul' in 'trunk.layers.0.attn': input 1 is float16 0.2502, expected float16 0.25",),
    "mean-half": (
        "Sub of 'sub' in 'trunk'",
        "is float32 0.48892158, 0.456, 0.406, expected float32 0.485, 0.456, 0.406",
    ),
    "gelu-half": ("Gelu of 'gelu' in 'trunk.layers.0.mlp': its approximate is 'tanh', expected 'none'",),
}
BUILT_OTHERWISE = {
    "bgr-graph": ("it has Gather", "which a fresh export does not have"),
    "qkv": ("Split",),
    "rms-epsilon": ("RMSNormalization of", "in 'llm.layers.0.attn_norm'", "its epsilon is 0.01, expected 1e-05"),
    "causal": ("it has Add",),
    "swapped-kv": ("is the graph's 'past.0.value', expected the graph's 'past.0.key'",),
    "stale-row": ("it has Gather", "the output 'new.0.key' is wrong"),
    "shuffle": ("Transpose of 'permute' in 'compressor'", "its perm is [0, 1, 3, 4, 2, 5]"),
}


def compared(bundle: Path, manifest: Manifest, loaded: LoadedModel, scratch: Path | None = None) -> Evidence:
    with FreshGraphs.of(loaded.model, scratch) as exports:
        return compare_graphs(bundle, manifest, loaded, exports)


def broken(evidence: Evidence) -> dict[str, str]:
    """Return the reports on graphs whose structure differs, by graph."""
    return {rule.graph: rule.detail for rule in evidence.rules if rule.passed is False}


@pytest.mark.parametrize("name", [*COVERED, *BUILT_OTHERWISE])
def test_what_is_built_otherwise_is_named_with_its_node_and_what_is_expected(
    name: str, tiny: LoadedModel, request: pytest.FixtureRequest, copy_bundle: Callable[[Path], Path]
) -> None:
    defect = PLANTED[name]
    bundle = copy_bundle(request.getfixturevalue(f"bundle_{defect.precision}"))
    assert defect.change_bundle is not None
    defect.change_bundle(bundle)
    found = compared(bundle, Manifest.load(bundle), tiny)
    assert list(broken(found)) == [defect.named] and not found.wrong_weights
    for part in (COVERED | BUILT_OTHERWISE)[name]:
        assert part in differences(bundle, tiny, defect.named)


def differences(bundle: Path, loaded: LoadedModel, graph: str) -> str:
    """Return all differences, not only the first."""
    file = GraphFile(bundle / f"graphs/{graph}.onnx", graph)
    with FreshGraphs.of(loaded.model, None) as exports:
        exported = exports.graph(graph, Manifest.load(bundle))
        return "\n".join(Comparison(file, exported, frozenset()).differences())


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_a_faithful_bundle_is_built_as_a_fresh_export_is(
    bundle_name: str, tiny: LoadedModel, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    found = compared(bundle, Manifest.load(bundle), tiny, tmp_path)
    assert [rule.graph for rule in found.rules] == ["trunk", "temporal", "compressor", "embed", "llm", "head"]
    assert all(rule.passed and rule.level == "A" for rule in found.rules) and not found.wrong_weights
    assert not list(tmp_path.iterdir()), "the fresh exports were not removed"


def lose_a_node(model: onnx.ModelProto) -> None:
    """Remove the last residual addition of a layer, and use one of its summands instead."""
    node = find(model, "Add", scope="layers.0", operation="add", index=1)
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[index] = node.input[0]
    model.graph.node.remove(node)


def widen_an_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 14


def write_another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def put_the_scale_into_a_node(model: onnx.ModelProto) -> None:
    """Store the correct constant in another dtype."""
    node = find(model, "Div", operation="div")
    tensor = weight_of(model, node)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lose_a_node, "it lacks Add of 'add' in 'trunk.layers.0'"),
        (widen_an_input, "its inputs are [('frame', 'uint8', ('batch', 126, 112, 3))]"),
        (write_another_opset, "its opsets are [('', 21)], expected [('', 20)]"),
        (put_the_scale_into_a_node, "is a constant float64 (), expected float32 ()"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_lost_node_another_input_opset_or_dtype_is_seen(
    edit: Callable[[onnx.ModelProto], None], said: str, bundle_fp32: Path, tiny: LoadedModel,
    copy_bundle: Callable[[Path], Path],
) -> None:  # fmt: skip
    bundle = copy_bundle(bundle_fp32)
    edit_graph(bundle, "trunk", edit)
    found = compared(bundle, Manifest.load(bundle), tiny)
    assert said in broken(found)["trunk"] and not found.wrong_weights


def test_names_and_the_order_of_attributes_are_free(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)

    def rename(model: onnx.ModelProto) -> None:
        kept = {value.name for value in (*model.graph.input, *model.graph.output)}
        for values in (*(node.input for node in model.graph.node), *(node.output for node in model.graph.node)):
            for index, name in enumerate(values):
                values[index] = name if name in kept or not name else f"renamed.{name}"
        for tensor in model.graph.initializer:
            tensor.name = f"renamed.{tensor.name}"
        for node in model.graph.node:
            attributes = list(node.attribute)[::-1]
            del node.attribute[:]
            node.attribute.extend(attributes)
        del model.graph.value_info[:]

    edit_graph(bundle, "trunk", rename)
    found = compared(bundle, Manifest.load(bundle), tiny)
    assert not broken(found) and not found.wrong_weights


def test_a_graph_of_other_versions_that_differs_is_not_verified_and_one_that_does_not_is(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)
    defect = PLANTED["gelu"]
    assert defect.change_bundle is not None
    defect.change_bundle(bundle)
    manifest = Manifest.load(bundle)
    older = replace(manifest, versions=manifest.versions | {"onnxscript": "0.5.6"})
    rules = {rule.graph: rule for rule in compared(bundle, older, tiny).rules}
    assert rules["trunk"].passed is None and rules["temporal"].passed is True
    assert "onnxscript 0.5.6, here " in rules["trunk"].detail and "approximate" in rules["trunk"].detail
    unknown = replace(manifest, versions={key: value for key, value in manifest.versions.items() if key != "onnx_ir"})
    assert "onnx_ir of unknown version" in compared(bundle, unknown, tiny).rules[0].detail


def test_a_manifest_records_every_package_that_writes_a_graph(bundle_fp32: Path) -> None:
    assert set(EXPORTER) <= set(Manifest.load(bundle_fp32).versions)


HOLLOW = [
    Form(name="trunk", precision="fp16", spelling="split", islands=("trunk.layers.0.mlp",)),
    Form(name="temporal", precision="bf16", num_times=3),
    Form(name="llm", precision="fp16", cache_update="aliased"),
    Form(name="head"),
]


@pytest.mark.parametrize("form", HOLLOW, ids=lambda form: form.name)
def test_without_the_values_of_its_matrices_a_model_exports_to_the_same_graph(
    form: Form, small: LoadedModel, tmp_path: Path, export_once: ExportGraph
) -> None:
    path, spec, model = form.file(small.model, tmp_path, export_once), form.spec(small.model), small.model
    cast = cast_model(hollow(model, keep_clock=form.num_times is not None), form.precision, form.islands)
    bare = tmp_path / "hollow.onnx"
    export_hollow(filled(graph_module(cast, spec, form.spelling)), spec, bare)
    file, fresh = GraphFile(path, form.name), GraphFile(bare, form.name)
    assert not list(Comparison(file, fresh, form.held(model, path).places).differences())
    empty = [name for name, tensor in fresh.constants.items() if is_hollow(tensor)]
    assert empty and bare.stat().st_size < path.with_name(f"{path.name}.data").stat().st_size
    unclaimed = list(Comparison(file, fresh, frozenset()).differences())
    assert len(unclaimed) >= len(empty) and "not a weight of this operation" in unclaimed[0]


def test_a_hollow_reference_sees_an_epsilon_too(
    bundle_fp16: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a large model uses such a reference: same comparison, no weights file."""
    monkeypatch.setattr(fresh, "is_small", lambda _: False)
    bundle, defect = copy_bundle(bundle_fp16), PLANTED["epsilon-half"]
    assert defect.change_bundle is not None
    defect.change_bundle(bundle)
    assert list(broken(compared(bundle, Manifest.load(bundle), tiny))) == ["trunk"]


def test_another_process_exports_the_graphs_of_a_large_model_bit_for_bit_as_this_one(
    bundle_fp16: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(bundle_fp16)
    own, others = (FreshGraphs(tiny.model, folder(tmp_path / name), is_hollow=True) for name in ("own", "others"))
    want = {name: own.graph(name, manifest).model.SerializeToString() for name in manifest.graphs}
    monkeypatch.setattr(fresh, "export_hollow", never)
    with others.ahead(manifest):
        assert {name: others.graph(name, manifest).model.SerializeToString() for name in manifest.graphs} == want
    with others.ahead(manifest):  # nothing is left to export
        assert others.graph("llm", manifest).model.SerializeToString() == want["llm"]


def test_a_process_that_dies_or_is_not_waited_for_loses_nothing(
    bundle_fp16: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(bundle_fp16)
    exports, started = FreshGraphs(tiny.model, tmp_path, is_hollow=True), list[subprocess.Popen[bytes]]()

    def starts(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", starts)
    with pytest.raises(RuntimeError, match="a check that was stopped"), exports.ahead(manifest):
        raise RuntimeError("a check that was stopped")
    assert started[0].returncode == -signal.SIGKILL
    with exports.ahead(manifest):
        started[1].kill()
        assert exports.graph("embed", manifest).nodes


def test_only_a_large_model_is_exported_elsewhere(
    bundle_fp16: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", never)
    exports, manifest = FreshGraphs(tiny.model, tmp_path), Manifest.load(bundle_fp16)
    with exports.ahead(manifest):
        assert exports.graph("embed", manifest).nodes


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this function must not be called")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_constant_in_a_node_is_compared_like_any_other(tmp_path: Path) -> None:
    def graph(value: float) -> GraphFile:
        constant = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [value])
        nodes = [
            helper.make_node("Constant", [], ["c"], value=constant),
            helper.make_node("Add", ["frame", "c"], ["features"]),
        ]
        shown = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("frame", "features")]
        path = tmp_path / f"{value}.onnx"
        onnx.save(helper.make_model(helper.make_graph(nodes, "trunk", shown[:1], shown[1:])), path)
        return GraphFile(path, "trunk")

    assert not list(Comparison(graph(1.0), graph(1.0), frozenset()).differences())
    found = list(Comparison(graph(1.0), graph(1.5), frozenset()).differences())
    assert any("is float32 1.0, expected float32 1.5" in one for one in found)


def test_a_scale_that_is_off_by_one_bit_is_off(
    bundle_fp16: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp16)

    def nudge(model: onnx.ModelProto) -> None:
        change(weight_of(model, find(model, "Mul", scope="attn")), lambda x: np.nextafter(x, x.dtype.type(1)))

    edit_graph(bundle, "trunk", nudge)
    assert "0.2502" in broken(compared(bundle, Manifest.load(bundle), tiny))["trunk"]
