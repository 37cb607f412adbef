"""Constants in few bits: in place of a product's matrix a DequantizeLinear of its codes (quantize.py).

Matrices lie as (inputs, outputs) in a graph, blocks go along the inputs: axis 0. So ONNX Runtime and TensorRT join it
with the product that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import onnx_ir as ir

from engines.errors import BuildError
from engines.spec import GraphSpec, Quantization

TESTED = "export with tested versions of torch, onnx and onnxscript: see constraints.txt"
CODES = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4}
"""numpy's types of codes."""


def codes_dtype(how: Quantization) -> ir.DataType:
    return ir.DataType.UINT4 if how.zero_points else ir.DataType.INT4


def can_be_codes(value: ir.Value, spec: GraphSpec) -> bool:
    """Whether a constant without values of its own is the matrix of a product that the graph holds in codes."""
    how, tensor = spec.quantization, value.const_value
    if how is None or tensor is None or len(tensor.shape) != 2:
        return False
    real = spec.real_dtype
    is_read = all(node.op_type == "MatMul" and place == 1 for node, place in value.uses())
    is_narrow = tensor.dtype == ir.DataType[{"float32": "FLOAT"}.get(real, real.upper())]  # an island is not
    return is_read and is_narrow and int(tensor.shape.numpy()[0]) % how.block == 0


def hollow_parts(
    value: ir.Value, how: Quantization, tensor: Callable[..., ir.ExternalTensor]
) -> list[ir.ExternalTensor]:
    """Codes, scales and zero points of a matrix without values: `tensor(name, dtype, shape)` makes one."""
    assert value.const_value is not None and value.name is not None
    inputs, outputs = value.const_value.shape.numpy()
    blocks = ir.Shape((int(inputs) // how.block, outputs))
    found = [
        tensor("codes", codes_dtype(how), value.const_value.shape),
        tensor("scales", value.const_value.dtype, blocks),
    ]
    return [*found, tensor("zero_points", codes_dtype(how), blocks)] if how.zero_points else found


def dequantized(graph: ir.Graph, value: ir.Value, how: Quantization, parts: Sequence[ir.TensorProtocol]) -> None:
    """Put codes, scales and, if it has any, zero points in the place of a constant."""
    names = ("codes", "scales", "zero_points")
    inputs = [
        ir.Value(
            name=f"{value.name}.{name}",
            type=ir.TensorType(part.dtype),
            shape=ir.Shape(part.shape.numpy()),
            const_value=part,
        )  # fmt: skip
        for name, part in zip(names, parts, strict=False)
    ]
    for part in inputs:
        graph.register_initializer(part)
    uses = list(value.uses())
    node = ir.node("DequantizeLinear", inputs, attributes={"axis": 0, "block_size": how.block})
    node.outputs[0].name = f"{value.name}.values"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    first = min((user for user, _ in uses), key=list(graph).index)
    graph.insert_before(first, node)
    for user, place in uses:
        user.replace_input_with(place, node.outputs[0])
    assert value.name is not None
    del graph.initializers[value.name]


def require_codes(value: ir.Value, spec: GraphSpec, *, transposed: bool) -> None:
    """Raise BuildError for a matrix that is to be codes, and that no product reads as it should."""
    if not (transposed and can_be_codes(value, spec)):
        readers = sorted({node.op_type for node, _ in value.uses()})
        assert value.const_value is not None
        raise BuildError(
            f"graph '{spec.name}': the constant {value.name} {value.const_value.shape} is read by {', '.join(readers)}",
            expected="MatMul alone, which reads it as (inputs, outputs), for a weight of four bits",
            cause="this version of torch or onnxscript exports otherwise than the tested one",
            fix=TESTED,
        )
