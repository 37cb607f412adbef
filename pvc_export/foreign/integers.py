"""Roles of a graph's integer inputs, read from its file: which of them index a table, and which are masks.

An input drawn from 0..1 would exercise only two rows of a table. Its bound is therefore derived from the graph: follow
the input through every operator that passes values on unchanged, to the indices of a Gather over a known size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from .states import Table

PASSES_ON = {
    "Cast": (0,), "Clip": (0,), "Expand": (0,), "Flatten": (0,), "Gather": (0,), "Identity": (0,), "Reshape": (0,),
    "Slice": (0,), "Split": (0,), "Squeeze": (0,), "Tile": (0,), "Transpose": (0,), "Unsqueeze": (0,), "Where": (1, 2),
}  # fmt: skip
"""Operator -> the inputs whose values it passes on; Concat passes on all of them."""
INDEXES = {"Gather": "axis", "GatherElements": "axis", "ScatterElements": "axis", "GatherBlockQuantized": "gather_axis"}
"""Operator -> the attribute that holds the axis along which its second input indexes the first."""
MASKS = {"Add", "And", "Cast", "Div", "Expand", "Identity", "Mul", "Not", "Or", "Reshape", "Slice", "Squeeze", "Sub",
         "Transpose", "Unsqueeze", "Where"}  # fmt: skip
"""Operators between a mask and the softmax whose scores it hides."""


def tables_of(model: Any, names: set[str]) -> dict[str, Table]:
    """The smallest table that each of these inputs indexes. Inputs that index nothing of known size are left out."""
    nodes, sizes = list(_nodes(model.graph)), _shapes(model)
    carried = {name: {name} for name in names}
    found: dict[str, Table] = {}
    for node in nodes:  # in topological order, as ONNX requires
        if node.op_type in INDEXES:
            axis = next((a.i for a in node.attribute if a.name == INDEXES[node.op_type]), 0)
            shape = sizes.get(node.input[0], ())
            num_rows = shape[axis] if -len(shape) <= axis < len(shape) else 0
            for name in carried.get(node.input[1], ()):
                if num_rows and (name not in found or num_rows < found[name].num_rows):
                    found[name] = Table(name=node.input[0], num_rows=num_rows)
        places = PASSES_ON.get(node.op_type, range(len(node.input)) if node.op_type == "Concat" else ())
        passed = set().union(*(carried.get(node.input[i], ()) for i in places if i < len(node.input)))
        if passed:
            carried |= {output: passed for output in node.output}
    return found


def masks_of(model: Any, names: set[str]) -> dict[str, int]:
    """Inputs that hide scores from a softmax or have 'mask' in their name, with the value (0 or 1) that hides.

    If the graph does not show which, 0 hides; in a padding mask, 1 does. Integers that are added to scores, such as
    positions, hide nothing.
    """
    made = {output: node for node in _nodes(model.graph) for output in node.output}
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {name for name, node in made.items() if node.op_type == "Constant"}
    found: dict[str, int | None] = {name: None for name in names if "mask" in name.lower()}
    waiting: list[tuple[str, int | None]] = [(n.input[0], None) for n in made.values() if n.op_type == "Softmax"]
    seen = set[str]()
    while waiting:
        name, hides = waiting.pop()
        if name in names and found.get(name) is None:
            found[name] = hides
        node = made.get(name)
        if name in seen or node is None or node.op_type not in MASKS:
            continue
        seen.add(name)
        flips = node.op_type == "Not" or (node.op_type == "Sub" and node.input[0] in constant)
        told = 1 - hides if flips and hides is not None else hides
        waiting += [(each, told) for each in node.input]
        if node.op_type == "Where":
            low = next((1 - place for place, each in enumerate(node.input[1:]) if each in constant), None)
            waiting.append((node.input[0], low))
    switches = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.BOOL}
    return {
        name: int("pad" in name.lower()) if hides is None else hides
        for name, hides in found.items()
        if hides is not None or name in switches or "mask" in name.lower()
    }


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Every known tensor shape; a dynamic axis is 0."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # level A reports what is wrong with the file
        inferred = model.graph
    values = [value for value in (*inferred.value_info, *inferred.input) if value.type.HasField("tensor_type")]
    shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of its subgraphs, which can use the outer names."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
        yield node
