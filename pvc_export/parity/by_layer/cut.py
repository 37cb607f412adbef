"""The LLM's graph, cut between its layers: each piece has the inputs and outputs of the whole graph, for one layer.

Nothing is written: a piece is a graph of a few nodes that uses the weights in the bundle's file.
Dimension key:  as in engines/spec.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import helper

from engines.errors import EXPORT_AGAIN, BundleError
from engines.memory import host_dtype
from engines.session import OrtSession, Session
from engines.spec import GraphSpec, Precision, TensorSpec

from ..bfloat16_on_cpu import widen_model, widen_spec
from ..culprit.pieces import typed
from ..graph_file import GraphFile
from ..value_states import values_of

PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "Attention")
INPUT = "inputs_embeds"


class CutDecoder:
    """The LLM's graph at `path`, whose spec is `spec`, in one piece per layer. The last includes the final norm."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        """Raises BundleError if it cannot be cut."""
        self._path, self._spec, self._file = path, spec, GraphFile(path, "llm")
        self.num_layers = len(spec.row_states) // 2
        self._ends = [INPUT, *(self._end_of(layer) for layer in range(self.num_layers - 1)), "hidden"]
        known = (*(values := typed(path).graph).value_info, *values.input, *values.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in known}

    def _end_of(self, layer: int) -> str:
        """Name of a layer's result: that of its last operation outside its submodules."""
        own = [i for i, note in enumerate(self._file.notes) if note and note.scope == f"decoder.layers.{layer}"]
        if not own:
            raise _cannot_be_cut(self._path, f"no node is marked as belonging to layer {layer}")
        return str(self._file.nodes[own[-1]].output[0])

    def open(self, layer: int, precision: Precision) -> Session:
        """Open one piece. A bfloat16 one takes and returns float32 arrays of bfloat16 values, and one with codes as
        state takes and returns values."""
        spec = self.spec_of(layer)
        model = self._piece(layer, spec)
        if precision == "bf16":
            widen_model(model, exact=[state.input for state in spec.states])
            spec = widen_spec(spec)
        return values_of(OrtSession(self._path, spec, graph=model.SerializeToString()))

    def spec_of(self, layer: int) -> GraphSpec:
        """Spec of a piece. Its inputs are the graph's, but only this layer's caches. Its first output is `layer.N`,
        float (B, rows, E), or for the last layer `hidden` (B, 1, E)."""
        states = tuple(self._spec.states[index] for index in self._own(layer))
        other = {state.input for state in self._spec.states} - {state.input for state in states}
        inputs = [
            replace(tensor, dtype=self._dtype(self._ends[layer], tensor.dtype)) if tensor.name == INPUT else tensor
            for tensor in self._spec.inputs
            if tensor.name not in other
        ]
        end = self._spec.output("hidden")
        if layer < self.num_layers - 1:
            entry = self._spec.input(INPUT)
            end = TensorSpec(
                name=f"layer.{layer}", dtype=self._dtype(self._ends[layer + 1], entry.dtype), shape=entry.shape
            )
        outputs = (end, *(self._spec.output(state.output) for state in states))
        return replace(self._spec, inputs=tuple(inputs), outputs=outputs, states=states)

    def _own(self, layer: int) -> list[int]:
        """Indices of a layer's states in the graph: its key and value, and if these are codes, their scales."""
        pairs = range(0, len(self._spec.states), 2 * self.num_layers)
        return [start + 2 * layer + part for start in pairs for part in (0, 1)]

    def _dtype(self, value: str, default: str) -> str:
        """Dtype of a value between layers: float32 if the layer before it is a float32 island."""
        kind = self._types.get(value)
        return str(helper.tensor_dtype_to_np_dtype(kind)) if kind else default

    def _piece(self, layer: int, spec: GraphSpec) -> onnx.ModelProto:
        begin, end = self._ends[layer], self._ends[layer + 1]
        names = {begin: INPUT, end: spec.outputs[0].name}
        wanted = [end, *(state.output for state in spec.states)]
        nodes = [self._renamed(index, names, spec) for index in self._members(layer, wanted, begin)]
        read = {name for node in nodes for name in node.input if name}
        constants = [tensor for tensor in self._file.model.graph.initializer if tensor.name in read]
        known = {name for node in nodes for name in node.output} | {
            tensor.name for tensor in (*spec.inputs, *constants)
        }
        if strange := sorted(read - known):
            raise _cannot_be_cut(self._path, f"layer {layer} reads {', '.join(strange)} of another layer")
        graph = helper.make_graph(
            nodes, f"layer {layer}", list(map(_value, spec.inputs)), list(map(_value, spec.outputs)), constants
        )
        source = self._file.model
        return helper.make_model(graph, opset_imports=list(source.opset_import), ir_version=source.ir_version)

    def _members(self, layer: int, wanted: list[str], begin: str) -> Iterator[int]:
        """The nodes that compute `wanted` from the layer's inputs, in order. Raises BundleError if they need more."""
        makers, members, waiting = self._file.makers, set[int](), list(wanted)
        while waiting:
            name = waiting.pop()
            index = makers.get(name)
            if name == begin or index is None or index in members:
                continue
            if self._file.nodes[index].op_type in PRODUCTS and not self._is_of(index, layer):
                raise _cannot_be_cut(self._path, f"layer {layer} reads {name}, which another layer computes")
            members.add(index)
            waiting += self._file.nodes[index].input
        return iter(sorted(members))

    def _is_of(self, index: int, layer: int) -> bool:
        note = self._file.notes[index]
        return note is not None and f"{note.scope}.".startswith(f"decoder.layers.{layer}.")

    def _renamed(self, index: int, names: dict[str, str], spec: GraphSpec) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(self._file.nodes[index])
        if node.op_type == "Shape":  # the length of the past may be read from any layer's cache
            others = (self._own(other) for other in range(self.num_layers))
            names = names | {
                self._spec.states[old].input: state.input
                for own in others
                for old, state in zip(own, spec.states, strict=True)
            }
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        return node


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(host_dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)


def _cannot_be_cut(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path} cannot be cut between its layers: {why}",
        expected="a graph as pvc-export writes it",
        cause="it was exported by another version, or edited",
        fix=EXPORT_AGAIN,
    )
