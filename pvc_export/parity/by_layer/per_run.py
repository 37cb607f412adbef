"""A session whose weights are in memory only while they are used.

ONNX Runtime's CPU provider widens a narrow graph: the compressor of an 8B model, 3.2 GiB in float16, takes 9 GiB while
it runs. So a graph with large weights is run in stretches of nodes. Each is opened for the call exactly as written, and
closed after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from engines.memory import Array, HostMemory, Memory, Tensor
from engines.session import import_onnxruntime, open_as_written
from engines.spec import GraphSpec

from ...terminal.facts import give_back

MOST_BYTES = 800_000_000
"""The most bytes of weights in a stretch, as stored in the file, unless one node needs more."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some nodes of a graph as a graph of their own, with its input names and the outputs that are needed later."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OpenedPerRun:
    """A graph in ONNX Runtime on the CPU, numpy in and out. A bfloat16 graph is widened, bfloat16 only inside."""

    computes_in = "float32"

    def __init__(self, path: Path, spec: GraphSpec, *, memory: HostMemory, graph: bytes | None = None) -> None:
        """graph: another graph to run with the weights of that file, instead of the file's."""
        self.spec = spec
        self.memory: Memory = memory
        self._path, self._ort = path, import_onnxruntime()
        model = onnx.load(path, load_external_data=False) if graph is None else onnx.load_from_string(graph)
        self._stretches = list(stretches(model))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Like OrtSession.run, for a graph that updates nothing in place."""
        arrays = {tensor.name: cast(Array, inputs[tensor.name]) for tensor in self.spec.inputs}
        for tensor in self.spec.inputs:
            tensor.check(arrays[tensor.name], self.spec.name)
        from_numpy = self._ort.OrtValue.ortvalue_from_numpy
        values = {name: from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        for stretch in self._stretches:
            session = open_as_written(self._ort, stretch.model, self._path.parent)
            made = session.run_with_ort_values(list(stretch.outputs), {name: values[name] for name in stretch.inputs})
            values |= dict(zip(stretch.outputs, made, strict=True))
            del session
            give_back()
        return {tensor.name: values[tensor.name].numpy() for tensor in self.spec.outputs}


def stretches(model: ModelProto) -> Iterator[Stretch]:
    """The graph's nodes in order, cut where the weights of a stretch would exceed MOST_BYTES."""
    sizes = {tensor.name: _num_bytes(tensor) for tensor in model.graph.initializer}
    groups, held = [list[NodeProto]()], set[str]()
    for node in model.graph.node:
        more = held | {name for name in node.input if name in sizes}
        if groups[-1] and more - held and sum(map(sizes.__getitem__, more)) > MOST_BYTES:
            groups.append([])
            more = {name for name in node.input if name in sizes}
        groups[-1].append(node)
        held = more
    known = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.input, *known.output)}
    returned = {value.name for value in model.graph.output}
    for index, nodes in enumerate(groups):
        later = {name for group in groups[index + 1 :] for node in group for name in node.input} | returned
        yield _stretch(model, nodes, later, types)


def _stretch(model: ModelProto, nodes: list[NodeProto], later: set[str], types: Mapping[str, int]) -> Stretch:
    made = {name: None for node in nodes for name in node.output if name}
    read = {name: None for node in nodes for name in node.input if name and name not in made}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    inputs = tuple(name for name in read if name not in {tensor.name for tensor in constants})
    outputs = tuple(name for name in made if name in later)
    infos = [[helper.make_tensor_value_info(name, types[name], None) for name in names] for names in (inputs, outputs)]
    graph = helper.make_graph(nodes, "stretch", infos[0], infos[1], constants)
    piece = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    return Stretch(piece.SerializeToString(), inputs, outputs)


def _num_bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
