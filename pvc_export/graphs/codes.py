"""Quantised constants: replace a matmul's matrix by its codes (quantize.py) and the operators that compute with them.

    float   x @ DequantizeLinear(codes, scales): a floating-point matmul with the codes' values
    static  the same, with x rounded before (spellings.QuantizedLinear)
    tensor  ((q - z) @ codes) * s * scales by MatMulInteger, with q, s and z from DynamicQuantizeLinear of x; ONNX
            Runtime fuses this into one kernel
    rows    the same with s = the largest value of each row of x / 127, so that no row depends on the others

Matrices have the layout (inputs, outputs) in a graph, and blocks run along the inputs (axis 0). With it, ONNX Runtime
and TensorRT fuse a DequantizeLinear with the matmul that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from engines.errors import BuildError
from engines.spec import GraphSpec, Inputs, Quantization

from .clock_table import NAME
from .eight_bits import SMALLEST, STEP
from .notes import SCOPES

TESTED = "export with tested versions of torch, onnx and onnxscript: see constraints.txt"
CODES = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4, ir.DataType.INT8: np.int8}
"""Numpy types of the codes."""
MIDDLE = 128
"""Zero point of a row as uint8: the matmul of uint8 and int8 is the fast one."""


def codes_dtype(how: Quantization) -> ir.DataType:
    if how.bits == 8:
        return ir.DataType.INT8
    return ir.DataType.UINT4 if how.zero_points else ir.DataType.INT4


def can_be_codes(value: ir.Value, spec: GraphSpec) -> bool:
    """Whether a constant without values is a matrix of a matmul that the graph stores in codes."""
    how, tensor = spec.quantization, value.const_value
    if how is None or tensor is None or len(tensor.shape) != 2:
        return False
    real = spec.real_dtype
    readers = [(node, place) for node, place in value.uses() if not _is_of_a_clock(node)]
    is_read = all(node.op_type == "MatMul" and place == 1 for node, place in readers)
    is_narrow = tensor.dtype == ir.DataType[{"float32": "FLOAT"}.get(real, real.upper())]  # an island is not
    return bool(readers) and is_read and is_narrow and how.fits(int(tensor.shape.numpy()[0]))


def _is_of_a_clock(node: ir.Node) -> bool:
    """Whether a node belongs to a time embedding, which counts as an island even in a float32 graph."""
    scopes = node.metadata_props.get(SCOPES, "")
    return f"'{NAME}" in scopes or f".{NAME}" in scopes


def hollow_parts(
    value: ir.Value, how: Quantization, tensor: Callable[..., ir.ExternalTensor]
) -> list[ir.ExternalTensor]:
    """Make codes, scales and zero points of a matrix without values, each by `tensor(name, dtype, shape)`."""
    assert value.const_value is not None and value.name is not None
    inputs, outputs = value.const_value.shape.numpy()
    scales = scales_shape(how, int(inputs), int(outputs))
    found = [
        tensor("codes", codes_dtype(how), value.const_value.shape),
        tensor("scales", scales_dtype(how, value), scales),
    ]
    return [*found, tensor("zero_points", codes_dtype(how), scales)] if how.zero_points else found


def scales_shape(how: Quantization, inputs: int, outputs: int) -> ir.Shape:
    return ir.Shape((outputs,) if how.block is None else (inputs // how.block, outputs))


def scales_dtype(how: Quantization, value: ir.Value) -> ir.DataType:
    """Return the dtype of scales: float32 for integer matmuls, otherwise the graph's dtype."""
    assert value.const_value is not None
    return ir.DataType.FLOAT if how.is_integer else value.const_value.dtype


def put_codes(graph: ir.Graph, value: ir.Value, how: Quantization, parts: Sequence[ir.TensorProtocol]) -> None:
    """Replace a constant by codes, scales and, if any, zero points."""
    names = ("codes", "scales", "zero_points")
    constants = [_constant(graph, f"{value.name}.{name}", part) for name, part in zip(names, parts, strict=False)]
    if how.is_integer:
        for product in [node for node, _ in value.uses()]:
            _multiply(graph, product, *constants, inputs=how.inputs)
    else:
        _dequantize(graph, value, how, constants)
    assert value.name is not None
    del graph.initializers[value.name]


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the graph's constant of that name, or register a new one."""
    if name not in graph.initializers:
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]


def _dequantize(graph: ir.Graph, value: ir.Value, how: Quantization, constants: Sequence[ir.Value]) -> None:
    uses = list(value.uses())
    # Scales per block have both axes, scales per output only the second.
    attributes = {"axis": 1} if how.block is None else {"axis": 0, "block_size": how.block}
    node = ir.node("DequantizeLinear", constants, attributes=attributes)
    node.outputs[0].name = f"{value.name}.values"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    first = min((user for user, _ in uses), key=list(graph).index)
    graph.insert_before(first, node)
    for user, place in uses:
        user.replace_input_with(place, node.outputs[0])


def _multiply(graph: ir.Graph, product: ir.Node, codes: ir.Value, scales: ir.Value, *, inputs: Inputs) -> None:
    """Replace a MatMul by an integer one, with float32 around it whatever the dtype of the MatMul is."""
    x, result = product.inputs[0], product.outputs[0]
    assert x is not None and result.name is not None
    put = _Before(graph, product, result.name)
    real = result.dtype or ir.DataType.FLOAT
    wide = x if real == ir.DataType.FLOAT else put.node("wide", "Cast", x, to=int(ir.DataType.FLOAT))
    if inputs == "rows":
        whole, largest, step = _rows(put, wide, codes)
        sums = put.node("sums", "Cast", whole, to=int(ir.DataType.FLOAT))
        by_output = put.node("by_output", "Mul", sums, put.node("by_step", "Mul", step, scales))
        found = put.node("found", "Mul", by_output, largest)
    else:
        q, scale, zero_point = put.nodes(("q", "scale", "zero_point"), "DynamicQuantizeLinear", wide)
        whole = put.node("whole", "MatMulInteger", q, codes, zero_point)
        sums = put.node("sums", "Cast", whole, to=int(ir.DataType.FLOAT))
        found = put.node("found", "Mul", sums, put.node("by_output", "Mul", scale, scales))
    found = found if real == ir.DataType.FLOAT else put.node("narrow", "Cast", found, to=int(real))
    for value in (whole, found):  # the nodes that read the weight and make the result keep the MatMul's notes
        node = value.producer()
        assert node is not None
        node.metadata_props.update(product.metadata_props)
    result.replace_all_uses_with(found, replace_graph_outputs=True)
    found.type, found.shape = result.type, result.shape
    result.name, found.name = f"{result.name}.replaced", result.name
    graph.remove(product, safe=True)


def _rows(put: _Before, x: ir.Value, codes: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the integer matmul, the largest value of each row of x, and the step of the codes."""
    last = put.number("last", np.array([-1]))
    reach = put.node("reach", "ReduceMax", put.node("abs", "Abs", x), last, keepdims=1)
    largest = put.node("largest", "Max", reach, put.number("smallest", np.float32(SMALLEST)))
    step, middle = put.number("step", np.float32(STEP)), put.number("middle", np.uint8(MIDDLE))
    q = put.node("q", "QuantizeLinear", put.node("scaled", "Div", x, largest), step, middle)
    return put.node("whole", "MatMulInteger", q, codes, middle), largest, _computed(put, step)


def _computed(put: _Before, step: ir.Value) -> ir.Value:
    """Return a constant scalar as the result of nodes, once per graph.

    ONNX Runtime fuses MatMulInteger, Cast and Mul if one of two scales is not a constant (MatMulIntegerToFloat). It
    folds no DequantizeLinear; but it gives each reader a copy of one, so all read the Abs.
    """
    one = put.number("one", np.uint8(1))
    for node, _ in one.uses():
        ((shared, _),) = node.outputs[0].uses()
        return shared.outputs[0]
    node = ir.node("DequantizeLinear", (one, step))
    shared = ir.node("Abs", (node.outputs[0],))
    for made, label in ((node, "step.values"), (shared, "step.computed")):
        made.outputs[0].name = f"rows.{label}"
    put.graph.insert_before(put.graph[0], (node, shared))
    return shared.outputs[0]


@dataclass(frozen=True, slots=True)
class _Before:
    """Inserts nodes into a graph before another node. Results are named `name.label`."""

    graph: ir.Graph
    other: ir.Node
    name: str

    def node(self, label: str, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return self.nodes((label,), operator, *inputs, **attributes)[0]

    def nodes(self, labels: tuple[str, ...], operator: str, *inputs: ir.Value, **attributes: int) -> list[ir.Value]:
        node = ir.node(operator, inputs, attributes=attributes, num_outputs=len(labels))
        for value, label in zip(node.outputs, labels, strict=True):
            value.name = f"{self.name}.{label}"
        self.graph.insert_before(self.other, node)
        return list(node.outputs)

    def number(self, label: str, value: Any) -> ir.Value:
        """Return a constant that all matmuls share."""
        return _constant(self.graph, f"rows.{label}", ir.tensor(value))


def require_codes(value: ir.Value, spec: GraphSpec, *, transposed: bool) -> None:
    """Raise BuildError for a matrix that is to become codes but is not read only by MatMul, transposed."""
    if not (transposed and can_be_codes(value, spec)):
        readers = sorted({node.op_type for node, _ in value.uses()})
        assert value.const_value is not None
        raise BuildError(
            f"graph '{spec.name}': the constant {value.name} {value.const_value.shape} is read by {', '.join(readers)}",
            expected="only MatMul, which reads it as (inputs, outputs), because the weight is stored in codes",
            cause="this version of torch or onnxscript exports differently from the tested one",
            fix=TESTED,
        )
