"""Locating an error: a graph is cut at every value that the reference has a name for, and each piece is fed the truth.

An error that has grown through a graph does not show where it began. So the graph is cut into the operations of the
reference ('linear_3', 'softmax': names that the exporter keeps in every precision). Each piece, which may be several
ONNX nodes, is fed the values that the reference's float32 graph (the twin) computed for its inputs. Any error of its
result then arises in the piece itself.
All pieces are joined into one ONNX graph without connections, which runs once. It takes and returns float32 and rounds
inside, so bfloat16 needs nothing that float16 does not.
"""

from __future__ import annotations

from ast import literal_eval
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from engines.memory import Array
from engines.session import import_onnxruntime, open_as_written

from ...graphs.notes import LINES, OPERATION, PROGRAM, SCOPES
from ...graphs.weights_file import weight_values

FLOAT = TensorProto.FLOAT
NARROW = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
LARGEST = {"fp16": 65504.0, "bf16": 3.39e38, "fp32": 3.40e38}
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
"""Largest finite value, and unit roundoff, of each dtype."""
SHAPELESS = ("_to_copy", "clone", "sym_size")
"""Operations of which a narrow graph may have more: casts, copies, arithmetic on sizes."""
TRUTH, SEEN = ".truth", ".seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin of a value, from the exporter's notes.

    scope      dotted name of the module that computed it: 'layers.1.attn'; '' is the graph itself
    operation  torch's name of the operation: 'linear', 'softmax'
    line       'layers.py:47', the innermost line of pvc_ref
    """

    scope: str
    operation: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One operation of the reference in a graph, and the error of its result when fed the truth.

    dtype   the narrowest dtype of its inputs, weights and result
    nodes   its ONNX operators;  weights  the names of its weights
    off     the relative L2 |got - truth| / |truth|, or if larger, the largest difference of one value, divided by that
            value plus the root mean square
    peak    the largest |truth| of its result
    channel  the index along the last axis with the largest difference
    """

    name: str
    origin: Origin
    dtype: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    off: float
    peak: float
    num_nonfinite: int
    channel: int

    @property
    def error(self) -> float:
        """The error in units of its dtype's roundoff; infinite if any value is not finite."""
        return inf if self.num_nonfinite else self.off / ROUNDOFF[self.dtype]


def origins(model: onnx.ModelProto) -> dict[str, Origin]:
    """The origin of every value that torch's program names. The exporter numbers the others in their order."""
    found, outputs = {}, {value.name for value in model.graph.output}
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        name = node.output[0]
        if SCOPES in notes and (name in outputs or notes.get(PROGRAM, "").startswith(f"%{name} ")):
            names, classes = literal_eval(notes[SCOPES]), literal_eval(notes[OPERATION])
            found[node.output[0]] = Origin(
                scope=names[-2] if len(names) > 1 else "",
                operation=str(classes[-1]).removeprefix("aten.").split(".")[0],
                line=_own_line(notes.get(LINES, "")),
            )
    return found


def _own_line(trace: str) -> str:
    """The innermost line outside site-packages, as 'layers.py:47'."""
    lines = [line.split('"') for line in trace.splitlines() if 'File "' in line and "site-packages" not in line]
    return f"{Path(lines[-1][1]).name}:{lines[-1][2].split()[2].strip(',')}" if lines else ""


def align(model: onnx.ModelProto, twin: onnx.ModelProto) -> dict[str, str]:
    """Value of a graph -> the twin's value at the same place, the k-th operation of that kind in that module.

    Names cannot be used: casts, which only a narrow graph has, shift the exporter's numbering.
    """
    there = {place: name for name, place in _places(twin).items()}
    return {name: there[place] for name, place in _places(model).items() if place in there}


def _places(model: onnx.ModelProto) -> dict[str, tuple[str, str, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    found = {}
    for name, origin in origins(model).items():
        if origin.operation not in SHAPELESS:
            key = origin.scope, origin.operation
            found[name] = (*key, counts[key])
            counts[key] += 1
    return found


def evaluate(path: Path, names: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Compute the named values of a float32 graph: the truth. Caches that it updates in place are copied first."""
    model = typed(path)
    types = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    wanted = [types[name] for name in dict.fromkeys(names)]
    del model.graph.output[:]
    model.graph.output.extend(wanted)
    return _run(model, path, feeds)


def measure_pieces(
    path: Path, known: Mapping[str, Origin], truth: Mapping[str, Array], *, widen: bool = False
) -> list[Piece]:
    """Run every piece of the graph at `path` on the truth and measure its error, in the order of the graph.

    known  the names to cut at, with their origins;  truth  the possible inputs of a piece, and its expected result
    widen  compute everything in float32; an error that remains is not caused by precision
    """
    cut = Cut(typed(path), frozenset(known))
    model = cut.model(widen=widen)
    feeds = {}
    for value in model.graph.input:
        array = truth[value.name.removesuffix(TRUTH)]
        feeds[value.name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    got, found = _run(model, path, feeds), []
    for name, members in cut.pieces().items():
        value, want = got[name + SEEN].astype(np.float64), truth[name].astype(np.float64)
        if value.shape != want.shape:  # it replaced another value after the export, so there is nothing to compare
            continue
        found.append(
            Piece(
                name=name,
                origin=known[name],
                dtype=cut.narrowest(name, members),
                nodes=tuple(node.op_type for node in members),
                weights=tuple(dict.fromkeys(n for node in members for n in node.input if n in cut.weights)),
                off=_off(value, want, is_real=truth[name].dtype.kind == "f"),
                peak=float(np.abs(want).max(initial=0.0)),
                num_nonfinite=int((~np.isfinite(value)).sum()),
                channel=_channel(value - want),
            )
        )
    return found


def overflowing_weights(path: Path, piece: Piece) -> list[str]:
    """Weights of a piece that overflow its dtype. They are infinite, which wider arithmetic does not repair."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return [
        tensor.name
        for tensor in tensors
        if tensor.name in piece.weights and not np.isfinite(weight_values(tensor, path.parent)).all()
    ]


def _channel(difference: Array) -> int:
    """Index along the last axis of the largest difference; non-finite values are the largest."""
    if not difference.ndim or not difference.size:
        return 0
    size = np.nan_to_num(np.abs(difference), nan=inf, posinf=inf).reshape(-1, difference.shape[-1])
    return int(size.max(axis=0).argmax())


def _off(value: Array, want: Array, *, is_real: bool) -> float:
    """Compute Piece.off. For indices, masks and zeros, any difference is an infinite error."""
    difference = np.abs(value - want)
    scale = float(np.sqrt(np.mean(np.square(want)))) if want.size else 0.0
    if not is_real or scale == 0:
        return inf if difference.any() else 0.0
    rel_l2 = float(np.sqrt(np.mean(np.square(difference)))) / scale
    return max(rel_l2, float((difference / (np.abs(want) + scale)).max()))


class Cut:
    """A graph and the names at which it is cut. `fed`: values that can be fed to a piece instead of being computed;
    `results`: the names that pieces compute, in the graph's order."""

    def __init__(self, model: onnx.ModelProto, names: frozenset[str]) -> None:
        self.source, graph = model, model.graph
        self.weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values} | self.weights
        self.fed = names | {value.name for value in graph.input}
        self._maker = {output: index for index, node in enumerate(graph.node) for output in node.output}
        self.results = [name for name in self._maker if name in names]

    def pieces(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes of every piece, in the graph's order."""
        nodes, found = self.source.graph.node, {}
        for name in self.results:
            members, waiting = {self._maker[name]}, [self._maker[name]]
            while waiting:
                for read in nodes[waiting.pop()].input:
                    maker = self._maker.get(read)
                    if maker is not None and read not in self.fed and maker not in members:
                        members.add(maker)
                        waiting.append(maker)
            found[name] = [nodes[index] for index in sorted(members)]
        return found

    def narrowest(self, name: str, members: Sequence[onnx.NodeProto]) -> str:
        """The narrowest dtype of a piece's inputs, weights and result."""
        touched = [name, *(read for node in members for read in node.input)]
        return next((NARROW[kind] for kind in map(self.types.get, touched) if kind in NARROW), "fp32")

    def _held(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, with every narrow result passed through an Identity: ONNX Runtime would drop two casts in a row."""
        held = [(index, name) for index, name in enumerate(node.output) if self.types.get(name) in NARROW]
        for index, name in held:
            node.output[index] = f"{name}.raw"
        return [node, *(helper.make_node("Identity", [f"{name}.raw"], [name]) for _, name in held)]

    def model(self, *, widen: bool) -> onnx.ModelProto:
        """All pieces as one graph: float32 truth in, float32 results out, rounded in between unless `widen`."""
        source = self.source.graph
        used = {read for node in source.node for read in node.input if read in self.fed}
        nodes, inputs, renamed = [], [], dict[str, str]()
        for name in sorted(used):
            kind = self.types[name]
            fed = FLOAT if kind in NARROW else kind
            inputs.append(helper.make_tensor_value_info(name + TRUTH, fed, None))
            renamed[name] = name + TRUTH
            if kind in NARROW and not widen:
                renamed[name] = f"{name}.fed"
                nodes.append(helper.make_node("Cast", [name + TRUTH], [f"{name}.cast"], to=kind))
                nodes.append(helper.make_node("Identity", [f"{name}.cast"], [renamed[name]]))
        for name, kind in self.weights.items():
            if kind in NARROW and widen:
                renamed[name] = f"{name}.wide"
                nodes.append(helper.make_node("Cast", [name], [renamed[name]], to=FLOAT))
        for node in source.node:
            nodes += _widened(_reading(node, renamed)) if widen else self._held(_reading(node, renamed))
        outputs = []
        for name in self.results:
            seen = FLOAT if self.types[name] in NARROW else self.types[name]
            nodes.append(helper.make_node("Cast", [name], [name + SEEN], to=seen))
            outputs.append(helper.make_tensor_value_info(name + SEEN, seen, None))
        graph = helper.make_graph(nodes, "pieces", inputs, outputs, initializer=list(source.initializer))
        return helper.make_model(graph, opset_imports=list(self.source.opset_import), ir_version=self.source.ir_version)


def _reading(node: onnx.NodeProto, renamed: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of the node that reads the renamed values."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for index, read in enumerate(copy.input):
        copy.input[index] = renamed.get(read, read)
    return copy


def _widened(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node in float32, without any rounding to a narrow dtype."""
    if node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in NARROW:
                attribute.i = FLOAT
        return [node]
    if not any(a.type == onnx.AttributeProto.TENSOR and a.t.data_type in NARROW for a in node.attribute):
        return [node]
    name, node.output[0] = node.output[0], f"{node.output[0]}.made"
    return [node, helper.make_node("Cast", [node.output[0]], [name], to=FLOAT)]


def typed(path: Path) -> onnx.ModelProto:
    """The graph without its weights and with a type for every value: from the exporter's notes, or inferred for values
    that were added later."""
    model = onnx.load(path, load_external_data=False)
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False)
    except onnx.shape_inference.InferenceError:  # an edited graph may contradict the exporter's notes
        return model


def _run(model: onnx.ModelProto, source: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model with the weights of `source` exactly as written: nothing fused, nothing folded."""
    session = open_as_written(import_onnxruntime(), model.SerializeToString(), source.parent)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()}), strict=True))
