"""bfloat16 graphs on a CPU: every operation computed in float32, and its result rounded to bfloat16.

ONNX Runtime's CPU cannot multiply bfloat16. It runs float16 by casting around every operator; this module writes the
same casts for bfloat16 into a copy of the graph, weights unchanged. So a bfloat16 bundle's own files are checked on a
machine without a GPU, labelled as what it is: computed in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.bundle import TOKENIZER_NAME, Bundle, graph_path, open_bundle, verify_files
from engines.manifest import Manifest
from engines.memory import HostMemory
from engines.prompt import PromptTokenizer
from engines.session import OrtSession, Session
from engines.spec import GraphSpec

from ..graphs.weights_file import share_weights

FLOAT, BFLOAT16 = TensorProto.FLOAT, TensorProto.BFLOAT16


@contextmanager
def open_on_cpu(folder: Path, *, scratch: Path | None = None) -> Iterator[Bundle]:
    """A bundle of any precision, opened for a check: verified, its ONNX files in ONNX Runtime's CPU.

    A bfloat16 bundle takes and returns float32 arrays that hold bfloat16 values; its widened graphs are written into
    `scratch`. Raises what open_bundle raises.
    """
    manifest = Manifest.load(folder)
    if manifest.precision != "bf16":
        yield open_bundle(folder, runtime="cpu", unchecked=True)
        return
    verify_files(folder, manifest, engines=False)
    with tempfile.TemporaryDirectory(prefix="pvc-bf16-", dir=scratch) as wide:
        memory, sessions = HostMemory(), dict[str, Session]()
        for name, spec in manifest.graphs.items():
            path = Path(wide) / f"{name}.onnx"
            widen(folder / graph_path(name), path)
            sessions[name] = OrtSession(path, widen_spec(spec), memory=memory)
        tokenizer = PromptTokenizer(folder / TOKENIZER_NAME, manifest.prompt)
        yield Bundle(
            folder=folder,
            manifest=manifest,
            sessions=sessions,
            tokenizer=tokenizer,
            runs_on="ONNX Runtime CPU, widened",
        )


def widen_spec(spec: GraphSpec) -> GraphSpec:
    """The spec with float32 in place of bfloat16."""

    def wide(dtype: str) -> str:
        return "float32" if dtype == "bfloat16" else dtype

    return replace(
        spec,
        inputs=tuple(replace(tensor, dtype=wide(tensor.dtype)) for tensor in spec.inputs),
        outputs=tuple(replace(tensor, dtype=wide(tensor.dtype)) for tensor in spec.outputs),
        states=tuple(replace(state, dtype=wide(state.dtype)) for state in spec.states),
    )


def widen(source: Path, target: Path) -> None:
    """Write `source` as a graph without bfloat16 arithmetic, its inputs and outputs float32.

    The weights stay in the source's file, to which `target` gets a link.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    narrow = _bfloat16_tensors(model)
    nodes = _rounded(graph, narrow)
    edges = [value for value in (*graph.input, *graph.output) if value.name in narrow]
    for value in edges:
        value.type.tensor_type.elem_type = FLOAT
    inner = {value.name: f"{value.name}.narrow" for value in edges}
    _rename(nodes, inner)
    before = [_cast(value.name, inner[value.name], BFLOAT16) for value in graph.input if value.name in inner]
    after = [_cast(inner[value.name], value.name, FLOAT) for value in graph.output if value.name in inner]
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before, *nodes, *after])
    onnx.save(model, target)
    share_weights(source, target.parent)


def _rounded(graph: onnx.GraphProto, narrow: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each with float32 inputs in place of bfloat16 ones, and its results rounded to bfloat16 again."""
    nodes: list[onnx.NodeProto] = []
    wide: set[str] = set()
    for node in graph.node:
        if node.op_type == "Cast":
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in narrow:
                if name not in wide:
                    nodes.append(_cast(name, f"{name}.wide", FLOAT))
                    wide.add(name)
                node.input[index] = f"{name}.wide"
        results = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}.exact"
        nodes.append(node)
        nodes += [_cast(f"{name}.exact", name, BFLOAT16) for name in results]
    return nodes


def _rename(nodes: list[onnx.NodeProto], names: dict[str, str]) -> None:
    """What the graph takes and returns is float32 now; the bfloat16 values next to it get names of their own."""
    for node in nodes:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=dtype)


def _bfloat16_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == BFLOAT16}
    values = (*graph.input, *graph.output, *graph.value_info)
    return found | {value.name for value in values if value.type.tensor_type.elem_type == BFLOAT16}
