"""Exported graphs: signatures equal their specs, operators are standard, and ONNX's definitions give equal values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engines.errors import BuildError
from engines.graph_specs import graph_specs
from engines.manifest import Manifest
from engines.spec import GRAPH_NAMES, GraphSpec, StreamLimits
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import check_signature, export_graph, pairs_matched_quickly
from pvc_export.graphs.precision import cast_model
from pvc_ref.layers import LayerNorm, RMSNorm
from pvc_ref.temporal import TimeEmbedding

BUNDLES = ("bundle_fp32", "bundle_fp16")


def graphs(request: pytest.FixtureRequest, bundle_name: str) -> tuple[Path, dict[str, GraphSpec]]:
    bundle: Path = request.getfixturevalue(bundle_name)
    return bundle / "graphs", Manifest.load(bundle).graphs


@pytest.mark.parametrize("bundle_name", BUNDLES)
def test_every_file_takes_and_returns_exactly_what_its_spec_says(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    folder, specs = graphs(request, bundle_name)
    assert tuple(specs) == GRAPH_NAMES
    for name, spec in specs.items():
        check_signature(folder / f"{name}.onnx", spec)
        saved = {p.key: p.value for p in onnx.load(folder / f"{name}.onnx", load_external_data=False).metadata_props}
        assert GraphSpec.from_json(json.loads(saved["pvc.graph_spec"])) == spec


@pytest.mark.parametrize("change", ["name", "dtype", "fixed dimension", "dynamic dimension"])
def test_a_file_that_differs_from_its_spec_in_one_point_is_refused(change: str, request: pytest.FixtureRequest) -> None:
    folder, specs = graphs(request, "bundle_fp32")
    spec = specs["llm"]
    first, *others = spec.inputs
    changed = {
        "name": replace(first, name="embeds"),
        "dtype": replace(first, dtype="float16"),
        "fixed dimension": replace(first, shape=("batch", "rows", 65)),
        "dynamic dimension": replace(first, shape=("batch", 4, 64)),
    }[change]
    with pytest.raises(BuildError, match=r"the input is .*\nexpected: .* from the GraphSpec"):
        check_signature(folder / "llm.onnx", replace(spec, inputs=(changed, *others)))


def test_a_dimension_that_the_exporter_froze_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    """The module below only works for the size it was traced at, as if a model had a stray int()."""

    class Frozen(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return tiny.model.llm.embed_tokens(input_ids.reshape(-1)[:9].reshape(3, 3))

    spec = graph_specs(model_shape(tiny.config), StreamLimits(streams=2), "fp32")["embed"]
    with pytest.raises(BuildError):
        export_graph(Frozen(), spec, tmp_path / "embed.onnx")


@pytest.mark.parametrize("bundle_name", BUNDLES)
def test_only_standard_operators_are_used_of_opset_20_or_where_a_cache_is_updated_in_place_24(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    folder, specs = graphs(request, bundle_name)
    for name in specs:
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        assert {(entry.domain, entry.version) for entry in model.opset_import} == {
            ("", 24 if specs[name].aliases else 20)
        }
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions


@pytest.mark.parametrize("graph", ["temporal", "llm"])
def test_no_graph_returns_a_cache_but_one_that_lies_where_it_was(graph: str, request: pytest.FixtureRequest) -> None:
    _, in_place = graphs(request, "bundle_fp32")
    caches = {tensor.name for tensor in in_place[graph].outputs if in_place[graph].dims.keys() & {"rows"}} - {"hidden"}
    assert set(in_place[graph].aliases) == caches
    _, specs = graphs(request, "bundle_rows")
    rows = {tensor.name: tensor.shape for tensor in specs[graph].outputs}
    assert all(rows[state.output] != specs[graph].input(state.input).shape for state in specs[graph].states)
    assert not {"past", 4} & {dim for shape in rows.values() for dim in shape[1:2]}  # 4 is this bundle's window


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_the_onnx_specification_computes_what_the_reference_computes(
    graph: str, tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    """onnx.reference defines the operators in numpy: an oracle that shares no code with ONNX Runtime."""
    folder, specs = graphs(request, "bundle_rows" if graph == "llm" else "bundle_fp32")
    spec = specs[graph]
    rng = np.random.default_rng(1)
    dims = {"batch": 2, "rows": 3, "past": 256}
    feeds = {tensor.name: _random(rng, tensor.name, tensor.resolve(dims), tensor.dtype) for tensor in spec.inputs}
    got = ReferenceEvaluator(str(folder / f"{graph}.onnx")).run(None, feeds)
    with torch.no_grad():
        want = graph_module(tiny.model, spec, "concat" if graph == "llm" else "split")(
            *(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs)
        )
    for ours, theirs in zip(want if isinstance(want, tuple) else (want,), got, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=5e-5)  # worst 1e-5, of values up to 20


def test_the_onnx_specification_writes_new_rows_in_place_and_attends_as_the_reference_does(
    tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    """TensorScatter and Attention as defined in numpy, for two streams of different lengths in one pass."""
    folder, specs = graphs(request, "bundle_fp32")
    spec, rng, lengths, num_rows = specs["llm"], np.random.default_rng(1), (100, 7), 3
    dims = {"batch": 2, "rows": num_rows, "past": 128}
    feeds = {tensor.name: _random(rng, tensor.name, tensor.resolve(dims), tensor.dtype) for tensor in spec.inputs}
    feeds["write_index"] = np.array(lengths)
    before = {state.input: feeds[state.input].copy() for state in spec.states}
    got = dict(zip([t.name for t in spec.outputs], ReferenceEvaluator(str(folder / "llm.onnx")).run(None, feeds),
                   strict=True))  # fmt: skip
    for row, length in enumerate(lengths):
        past = [torch.from_numpy(state.as_rows(before[state.input])[row : row + 1, :length]) for state in spec.states]
        with torch.no_grad():
            hidden, new = tiny.model.llm(
                torch.from_numpy(feeds["inputs_embeds"][row : row + 1]),
                torch.from_numpy(feeds["position_ids"][row : row + 1]),
                list(zip(past[0::2], past[1::2], strict=True)),
            )
        np.testing.assert_allclose(got["hidden"][row], hidden[0, -1:].numpy(), atol=5e-5)
        for state, rows in zip(spec.states, (rows for pair in new for rows in pair), strict=True):
            cache = state.as_rows(before[state.input])[row].copy()
            cache[length : length + num_rows] = rows[0].numpy()
            np.testing.assert_allclose(state.as_rows(got[state.output])[row], cache, atol=5e-5)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if name == "frame_time":
        return np.array([7.0, 95.0], dtype=np.float32)
    if name == "attention_mask":
        return (rng.random(shape) < 0.7).astype(np.int64)
    if dtype == "int64":
        return rng.integers(0, 264, shape)
    return rng.normal(size=shape).astype(dtype)


def test_float16_keeps_the_weights_of_its_islands_in_float32(tiny: LoadedModel) -> None:
    half = cast_model(tiny.model, "fp16")
    islands = {
        id(p) for m in half.modules() if isinstance(m, LayerNorm | RMSNorm | TimeEmbedding) for p in m.parameters()
    }
    assert islands
    for parameter in half.parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in islands else torch.float16)
    assert all(parameter.dtype == torch.float32 for parameter in tiny.model.parameters()), "the reference was changed"


@pytest.mark.parametrize("graph", ["trunk", "temporal", "llm"])
def test_every_softmax_and_norm_of_a_float16_file_computes_in_float32(
    graph: str, request: pytest.FixtureRequest
) -> None:
    folder, _ = graphs(request, "bundle_fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / f"{graph}.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    islands = [
        node for node in model.graph.node if node.op_type in ("Softmax", "LayerNormalization", "Sqrt", "Sin", "Cos")
    ]
    assert {types[node.input[0]] for node in islands} == {onnx.TensorProto.FLOAT}
    matmuls = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    half = [node for node in matmuls if types.get(node.output[0]) == onnx.TensorProto.FLOAT16]
    assert len(half) > len(matmuls) // 2, "most matmuls must be in float16"


def test_a_quicker_search_for_pairs_of_nodes_finds_the_same_pairs() -> None:
    """Uses our own rule, because the rule in onnxscript 0.7.2 compares two methods and so never fires."""
    from onnxscript import rewriter

    rule = rewriter.pattern.RewriteRule(
        lambda op, x: (op.Sin(x), op.Cos(x)), lambda op, x: op.Split(x, num_outputs=2, axis=-1, _outputs=2)
    )
    nodes = [helper.make_node(*node) for node in (
        ("Relu", ["x"], ["r"]), ("Cos", ["r"], ["b"]), ("Sin", ["x"], ["c"]), ("Sin", ["r"], ["a"]),
        ("Tanh", ["a"], ["y"]), ("Tanh", ["b"], ["z"]),
    )]  # fmt: skip
    x, *outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xyzc")
    model = helper.make_model(helper.make_graph(nodes, "pairs", [x], outputs))
    plain = rewriter.rewrite(model, pattern_rewrite_rules=[rule])
    with pairs_matched_quickly():
        quick = rewriter.rewrite(model, pattern_rewrite_rules=[rule])
    assert sorted(node.op_type for node in quick.graph.node) == ["Relu", "Sin", "Split", "Tanh", "Tanh"]
    assert quick.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
