"""bfloat16 graphs on a CPU: every operation computed in float32, and its result rounded to bfloat16.

ONNX Runtime's CPU provider cannot multiply bfloat16. It runs float16 by casting around every operator; this module
writes the same casts for bfloat16 into the graph and leaves the weights unchanged. So a bfloat16 bundle's files can be
checked on a machine without a GPU; the report then says "computed in float32".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.bundle import ON_CPU, TOKENIZER_NAME, Bundle, graph_path, open_bundle, verify_files
from engines.manifest import Manifest
from engines.memory import HostMemory
from engines.prompt import PromptTokenizer
from engines.session import OrtSession, Session
from engines.spec import GraphSpec

from ..graphs.weights_file import share_weights

FLOAT, BFLOAT16 = TensorProto.FLOAT, TensorProto.BFLOAT16
MOVES = frozenset(
    ("Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "TensorScatter", "Transpose",
     "Unsqueeze", "Where")
)  # fmt: skip
"""Operators that only move their input values."""


@contextmanager
def open_on_cpu(
    folder: Path, graphs: Sequence[str] | None = None, *, opened: Callable[..., Session] = OrtSession
) -> Iterator[Bundle]:
    """Open a bundle of any precision for a check: verified, with its ONNX files in ONNX Runtime on the CPU.

    A bfloat16 bundle takes and returns float32 arrays of bfloat16 values. Raises what open_bundle raises.
    graphs  open only these graphs of an already verified bundle, each as a session made by `opened`
    """
    manifest = Manifest.load(folder)
    if manifest.precision != "bf16" and graphs is None:
        yield open_bundle(folder, runtime="cpu", unchecked=True)
        return
    if graphs is None:
        verify_files(folder, manifest, engines=False)
    memory, sessions = HostMemory(), dict[str, Session]()
    for name in graphs or manifest.graphs:
        path, spec, wide = folder / graph_path(name), manifest.graphs[name], None
        if manifest.precision == "bf16":
            model = onnx.load(path, load_external_data=False)
            widen_model(model, exact=[state.input for state in spec.states])
            spec, wide = widen_spec(spec), model.SerializeToString()
        sessions[name] = opened(path, spec, memory=memory, graph=wide)
    yield Bundle(
        folder=folder,
        manifest=manifest,
        sessions=sessions,
        tokenizer=PromptTokenizer(folder / TOKENIZER_NAME, manifest.prompt),
        runs_on="ONNX Runtime CPU, widened" if manifest.precision == "bf16" else ON_CPU,
    )


def widen_spec(spec: GraphSpec) -> GraphSpec:
    """The spec with float32 instead of bfloat16."""

    def wide(dtype: str) -> str:
        return "float32" if dtype == "bfloat16" else dtype

    return replace(
        spec,
        inputs=tuple(replace(tensor, dtype=wide(tensor.dtype)) for tensor in spec.inputs),
        outputs=tuple(replace(tensor, dtype=wide(tensor.dtype)) for tensor in spec.outputs),
        states=tuple(replace(state, dtype=wide(state.dtype)) for state in spec.states),
    )


def widen(source: Path, target: Path, *, exact: Sequence[str] = ()) -> None:
    """Write the widened `source` to `target`. The weights stay in their file, which is linked next to `target`."""
    model = onnx.load(source, load_external_data=False)
    widen_model(model, exact=exact)
    onnx.save(model, target)
    share_weights(source, target.parent)


def widen_model(model: onnx.ModelProto, *, exact: Sequence[str] = ()) -> None:
    """Rewrite a graph without bfloat16 arithmetic: inputs and outputs become float32, weights stay as they are.

    Inputs are rounded to bfloat16, except those in `exact`, whose values already are: a state comes from an output.
    """
    graph, narrow = model.graph, _bfloat16_tensors(model)
    nodes = list(_rounded(graph, narrow, exact))
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in nodes if not read.isdisjoint(node.output)]  # ONNX Runtime would run unused casts
    for value in (*graph.input, *graph.output):
        if value.name in narrow:
            value.type.tensor_type.elem_type = FLOAT
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _rounded(graph: onnx.GraphProto, narrow: set[str], exact: Sequence[str]) -> Iterator[onnx.NodeProto]:
    """The nodes, each with float32 inputs instead of bfloat16 ones, and its results rounded to bfloat16 again.

    Nodes that only move values do not round, so a cache passes through unchanged. Inputs and outputs keep their names
    as float32, so the bfloat16 value next to each gets a new name.
    """
    taken, returned = ([value.name for value in edges if value.name in narrow] for edges in (graph.input, graph.output))
    inner = {name: f"{name}.narrow" for name in (*taken, *returned)}
    wide = {name: name for name in taken if name in exact}
    yield from (_cast(name, inner[name], BFLOAT16) for name in taken)
    for node in graph.node:
        if node.op_type == "Cast":
            for names in (node.input, node.output):
                names[:] = [inner.get(name, name) for name in names]
            yield node
            continue
        for name in node.input:
            if name in narrow and name not in wide:
                wide[name] = f"{name}.wide"
                yield _cast(inner.get(name, name), wide[name], FLOAT)
        node.input[:] = [wide.get(name, name) for name in node.input]
        results = [name for name in node.output if name in narrow]
        unrounded = {name: f"{name}.exact" for name in results}
        if node.op_type in MOVES:
            unrounded = {name: name if name in returned else f"{name}.wide" for name in results}
            wide |= unrounded
        node.output[:] = [unrounded.get(name, name) for name in node.output]
        yield node
        yield from (_cast(unrounded[name], inner.get(name, name), BFLOAT16) for name in results)
    yield from (_cast(inner[name], name, FLOAT) for name in returned if wide.get(name) != name)


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=dtype)


def _bfloat16_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == BFLOAT16}
    values = (*graph.input, *graph.output, *graph.value_info)
    return found | {value.name for value in values if value.type.tensor_type.elem_type == BFLOAT16}
