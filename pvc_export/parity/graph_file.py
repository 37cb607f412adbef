"""A bundle's graph, read from its file: nodes with their notes, and constants that are loaded one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from engines.memory import Array

from ..graphs.modules import layer_name
from ..graphs.notes import note_of
from ..graphs.weights_file import weight_values

TURNS = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast", "Expand")
"""Operators that only change a constant's shape, layout or dtype."""
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

Place = tuple[int, int]
"""An input of a node: the node's index in the graph, and the input's index in the node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A constant that a node computes with.

    place   the input that reads the constant itself: of the reader, or of the first of `turns`
    parts   the inputs that read its codes and scales, if it is stored as those
    name    name of the constant;  turns  the nodes that reshape, transpose or cast it on the way, in order
    reader  the input that reads the result
    """

    place: Place
    parts: tuple[Place, ...]
    name: str
    turns: tuple[NodeProto, ...]
    reader: Place


class GraphFile:
    """An ONNX file, loaded without its weights. `notes`: one per node, None if it has none.

    The output of a DequantizeLinear of constants also counts as a constant. So do a MatMulInteger's codes, together
    with the scales of its result.
    """

    def __init__(self, path: Path, graph: str) -> None:
        self.graph, self._folder = graph, path.parent
        self.model = onnx.load(path, load_external_data=False)
        self.nodes = list(self.model.graph.node)
        self.notes = [note_of(node) for node in self.nodes]
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
        self._coded = {
            node.output[0]: index
            for index, node in enumerate(self.nodes)
            if node.op_type == "DequantizeLinear" and all(name in self.constants for name in node.input)
        }
        self.makers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self._scaled = dict(self._find_scaled())

    def values(self, name: str) -> Array:
        """A constant's values, in its shape and dtype."""
        if name in self._coded:
            return self._dequantized(self.nodes[self._coded[name]])
        tensor = self.constants[name]
        values = weight_values(tensor, self._folder).reshape(tuple(tensor.dims))
        if name not in self._scaled:
            return values
        index, place = self._scaled[name]
        return values.astype(np.float32) * self.values(self.nodes[index].input[place])

    def _find_scaled(self) -> Iterator[tuple[str, Place]]:
        """Codes that a MatMulInteger reads, and the input where its result is multiplied by their scales."""
        readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        for node in self.nodes:
            if node.op_type == "MatMulInteger" and node.input[1] in self.constants:
                casts = readers.get(node.output[0], ())
                products = [index for cast in casts for index in readers.get(self.nodes[cast].output[0], ())]
                if scales := [place for product in products for place in self._scales_of(product)]:
                    yield node.input[1], scales[0]

    def _scales_of(self, product: int) -> Iterator[Place]:
        """Inputs where this Mul, or a Mul before it that also applies the input's scale, reads constant scales."""
        for index in (product, *(self.makers.get(name) for name in self.nodes[product].input)):
            if index is not None and self.nodes[index].op_type == "Mul":
                names = self.nodes[index].input
                yield from ((index, place) for place, name in enumerate(names) if name in self.constants)

    def _dequantized(self, node: NodeProto) -> Array:
        codes, scales, *zero_points = map(self.values, node.input)
        attributes = {entry.name: entry.i for entry in node.attribute}
        axis, block = attributes["axis"], attributes.get("block_size", 1)
        wide = codes.astype(np.float32)
        if zero_points:
            wide -= np.repeat(zero_points[0], block, axis).astype(np.float32)
        wide *= np.repeat(scales, block, axis if scales.ndim > 1 else 0).astype(np.float32)  # 1-D: one per output
        return wide.astype(scales.dtype, copy=False)

    def type_of(self, name: str) -> str:
        """Dtype and shape of a constant, in words."""
        tensor = self.constants[name]
        return f"{helper.tensor_dtype_to_np_dtype(tensor.data_type)} {tuple(tensor.dims)}"

    def reading(self, reader: Place) -> Reading | None:
        """The real-valued constant that a node reads at this input; None if it reads something else."""
        place, turns = reader, list[NodeProto]()
        while (name := self.nodes[place[0]].input[place[1]]) not in self.constants and name not in self._coded:
            maker = self.makers.get(name)
            if maker is None or self.nodes[maker].op_type not in TURNS:
                return None
            turns.insert(0, self.nodes[maker])
            place = (maker, 0)
        coded = self._coded.get(name)
        parts: tuple[Place, ...] = ()
        if coded is not None:
            parts = tuple((coded, number) for number in range(len(self.nodes[coded].input)))
        elif name in self._scaled and place[1] == 1:
            parts = (self._scaled[name],)
        elif self.constants[name].data_type not in REAL:
            return None
        return Reading(place=place, parts=parts, name=name, turns=tuple(turns), reader=reader)

    def readings(self, members: list[int]) -> list[Reading]:
        """Every constant that these nodes compute with, skipping nodes that only reshape one for another member."""
        read = {name for index in members for name in self.nodes[index].input}
        found = []
        for index in members:
            node = self.nodes[index]
            if node.op_type not in TURNS or node.output[0] not in read:
                places = ((index, number) for number in range(len(node.input)))
                found += [reading for reading in map(self.reading, places) if reading is not None]
        return found

    def values_read(self, reading: Reading) -> Array:
        """The constant as its reader receives it, except for casts and axes of size one."""
        values = self.values(reading.name)
        for node in reading.turns:
            if node.op_type == "Transpose":
                perm = next((tuple(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
                values = values.transpose(perm)
            elif node.op_type == "Reshape" and node.input[1] in self.constants:
                sizes = [int(size) for size in self.values(node.input[1])]
                values = values.reshape([size or values.shape[axis] for axis, size in enumerate(sizes)])
        return values

    def where(self, index: int) -> str:
        """A node in words: its operator, the torch operation, and the module of the model."""
        node, note = self.nodes[index], self.notes[index]
        if note is not None:
            return f"{node.op_type} of '{note.operation}' in '{layer_name(self.graph, note.scope)}'"
        before = next((earlier for earlier in reversed(self.notes[:index]) if earlier is not None), None)
        behind = f" after '{before.operation}' in '{layer_name(self.graph, before.scope)}'" if before else ""
        return f"{node.op_type} '{node.output[0]}'{behind}"


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays have the same dtype, shape and bits: NaN equals itself, and -0.0 is not 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(np.array_equal(bits(one), bits(other)))


def bits(values: Array) -> Array:
    """The same bits as unsigned integers."""
    return values if values.dtype == bool else values.view(f"u{values.dtype.itemsize}")
