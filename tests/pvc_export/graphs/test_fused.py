"""Fusions of ONNX Runtime's CPU when it opens a graph: our figures of speed depend on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest

from engines.bundle import graph_path
from engines.manifest import Manifest


def opened(graph: Path, folder: Path) -> onnx.GraphProto:
    """The graph that a session runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "opened.onnx"), 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "opened.onnx", load_external_data=False).graph


def operators(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("graph", ["llm", "head"])
def test_a_row_s_integer_product_its_sums_and_their_scales_are_one_kernel(
    graph: str, bundle_int8: Path, tmp_path: Path
) -> None:
    written = operators(onnx.load(bundle_int8 / graph_path(graph), load_external_data=False).graph)
    found = operators(opened(bundle_int8 / graph_path(graph), tmp_path))
    assert found["MatMulIntegerToFloat"] == written["MatMulInteger"] > 0
    assert not found["MatMulInteger"] and found["DequantizeLinear"] == 1, "one constant that is not folded, read by all"
    assert found["QuantizeLinear"] == found["ReduceMax"] == found["MatMulIntegerToFloat"]


def test_a_frame_s_integer_product_is_one_kernel_with_the_rounding_of_its_input(
    bundle_int8: Path, tmp_path: Path
) -> None:
    written = operators(onnx.load(bundle_int8 / graph_path("trunk"), load_external_data=False).graph)
    found = operators(opened(bundle_int8 / graph_path("trunk"), tmp_path))
    assert found["DynamicQuantizeMatMul"] == written["MatMulInteger"] > 0 == found["MatMulInteger"]


def test_a_single_query_is_multiplied_with_the_cache_where_it_is(bundle_fp32: Path, tmp_path: Path) -> None:
    """ONNX Runtime has kernels for one row against a matrix as it is, if the matmul has no factor."""
    graph = opened(bundle_fp32 / graph_path("llm"), tmp_path)
    makers = {output: node for node in graph.node for output in node.output}
    layers = Manifest.load(bundle_fp32).shape.num_llm_layers
    with_keys = [node for node in graph.node if node.op_type == "FusedMatMul"]
    with_values = [
        node for node in graph.node if node.op_type == "MatMul" and makers.get(node.input[0], node).op_type == "Softmax"
    ]
    assert len(with_keys) == len(with_values) == layers
    for node in (*with_keys, *with_values):
        cache = makers[node.input[1]]
        assert cache.op_type == "Unsqueeze" and makers[cache.input[0]].op_type == "TensorScatter"
    for node in with_keys:
        told = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (told["alpha"], told["transB"]) == (1.0, 1)


def test_the_halves_of_a_joined_product_are_one_split(bundle_fp32: Path, tmp_path: Path) -> None:
    found = operators(opened(bundle_fp32 / graph_path("llm"), tmp_path))
    assert found["Squeeze"] == 2, "those outside of the layers"
