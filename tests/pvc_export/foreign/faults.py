"""Ways to break a third-party graph: weights, wires, rows and states, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, parser

from .models import Array, Edit, with_weights


def initializer(model: onnx.ModelProto, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node_of(model: onnx.ModelProto, output: str) -> Any:
    return next(node for node in model.graph.node if output in node.output)


def perturb(name: str, factor: float = 1.001) -> Edit:
    """Change one weight, by default by a thousandth."""

    def edit(model: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(initializer(model, name)).copy()
        values.flat[values.size // 2] *= factor
        initializer(model, name).CopyFrom(numpy_helper.from_array(values, name))

    edit.__name__ = f"one weight of {name}"
    return edit


def put_between(model: onnx.ModelProto, name: str, text: str, **weights: Array) -> None:
    """Replace an output, or an input for every node that reads it, by `changed`, which the nodes of `text` compute."""
    nodes = parser.parse_graph(f"g (float x) => (float y) {{ {text} }}").node
    outputs = [value.name for value in model.graph.output]
    at = next((i + 1 for i, node in enumerate(model.graph.node) if name in node.output), 0)
    if name in outputs:
        model.graph.node[at - 1].output[:] = [f"true_{name}"]
        for node in (*model.graph.node, *nodes):
            node.input[:] = [f"true_{name}" if read == name else read for read in node.input]
        for node in nodes:
            node.output[:] = [name if made == "changed" else made for made in node.output]
    else:
        for node in model.graph.node:
            node.input[:] = ["changed" if read == name else read for read in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(at, node)
    with_weights(model, weights)


def stale_by_wire(model: onnx.ModelProto) -> None:
    put_between(model, "h1_next", "changed = Identity(h1)")


def stale_by_arithmetic(model: onnx.ModelProto) -> None:
    put_between(model, "h1_next", "changed = Mul(h1, one)")


def swapped_state_outputs(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        other = {"h0_next": "h1_next", "h1_next": "h0_next"}
        node.input[:] = [other.get(name, name) for name in node.input]
        node.output[:] = [other.get(name, name) for name in node.output]


def swapped_state_inputs(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = [{"h0": "h1", "h1": "h0"}.get(name, name) for name in node.input]


def ignored_state(model: onnx.ModelProto) -> None:
    put_between(model, "h0", "changed = Sub(x0, x0)", x0=np.zeros((1, 6), np.float32))


def folded_output(model: onnx.ModelProto) -> None:
    put_between(model, "y", "changed = Identity(folded)", folded=np.ones((2, 3), np.float32))


def one_row_for_all(model: onnx.ModelProto) -> None:
    text = "shape = Shape(h0) row = Slice(h0, at0, at1, at0) changed = Expand(row, shape)"
    put_between(model, "h0", text, at0=np.array([0]), at1=np.array([1]))


def first_row_of_x(model: onnx.ModelProto) -> None:
    text = "shape = Shape(x) row = Slice(x, at0, at1, at0) changed = Expand(row, shape)"
    put_between(model, "x", text, at0=np.array([0]), at1=np.array([1]))


def traced_batch(model: onnx.ModelProto) -> None:
    put_between(model, "x", "changed = Reshape(x, traced)", traced=np.array([2, 4]))


def forgets_the_oldest(model: onnx.ModelProto) -> None:
    """Ignore the oldest row of the past: correct until there is a past."""
    for name in ("k", "v"):
        text = f"changed = Slice(past_{name}, from_{name}, to_{name}, from_{name})"
        weights = {f"from_{name}": np.array([1]), f"to_{name}": np.array([2**31])}
        put_between(model, f"past_{name}", text.replace("changed", f"short_{name}"), **weights)
        for node in model.graph.node:
            node.input[:] = [f"short_{name}" if read == "changed" else read for read in node.input]


def drops_the_oldest(model: onnx.ModelProto) -> None:
    text = "changed = Slice(present_k, at1, end, at1)"
    put_between(model, "present_k", text, at1=np.array([1]), end=np.array([2**31]))


def new_before_past(model: onnx.ModelProto) -> None:
    """Both K and V are swapped, so that y stays correct: only the order of the cache is wrong."""
    for name in ("present_k", "present_v"):
        node_of(model, name).input[:] = reversed(node_of(model, name).input)


def last_row_left_out(model: onnx.ModelProto) -> None:
    text = "changed = Slice(new_k, at0, end, at1)"
    put_between(model, "new_k", text, at0=np.array([0]), end=np.array([-1]), at1=np.array([1]))


def rows_rolled(model: onnx.ModelProto) -> None:
    put_between(model, "new_k", "changed = Gather <axis = 1> (new_k, order)", order=np.array([1, 2, 0]))


def not_a_number(model: onnx.ModelProto) -> None:
    put_between(model, "y", "none = Sub(one, one) changed = Div(y, none)")


def a_little_noise(model: onnx.ModelProto) -> None:
    put_between(model, "y", "noise = RandomNormalLike <scale = 3.0e-8> (y) changed = Add(y, noise)")


def perturb_row(row: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(initializer(model, "table")).copy()
        values[row] *= 1.01
        initializer(model, "table").CopyFrom(numpy_helper.from_array(values, "table"))

    return edit


def wrong_shape_on_paper(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def operator_of_nobody(model: onnx.ModelProto) -> None:
    node_of(model, "y").op_type = "MatMool"


def other_dtype(model: onnx.ModelProto) -> None:
    put_between(model, "h0_next", "changed = Cast <to = 11> (h0_next)")
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE
