"""A graph cut at every value that the reference knows by name, each piece fed the truth: where an error is made.

An error that has grown through a graph does not say where it began. So a graph is cut into the operations of the
reference ('linear_3', 'softmax': names that the exporter keeps in every precision), and each piece, which may be
several ONNX nodes, is fed what the reference's own float32 graph, the twin, computed at its inputs. What a piece then
gets wrong is its own doing.
All pieces are one ONNX graph without connections, run once. It takes and returns float32 and rounds inside,
so that bfloat16 needs no more than float16 does.
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
"""Operations that a narrow graph may have more of: casts, copies, arithmetic of sizes."""
TRUTH, SEEN = ".truth", ".seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a value comes from, by the exporter's notes.

    scope      the module of the graph that computed it, innermost first dot by dot: 'layers.1.attn'; '' is the graph
    operation  torch's name of it: 'linear', 'softmax'
    line       'layers.py:47', the innermost line of pvc_ref
    """

    scope: str
    operation: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one operation of the reference consists of in a graph, and what it made of the truth.

    dtype   the narrowest among what it is fed, its weights and its result
    nodes   its ONNX operators;  weights  the values that it holds
    off     the larger of |got - truth| / |truth|, and of a value's difference over it and the root mean square
    peak    the largest |truth| of its result
    channel  along the last axis, where the largest difference is
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
        """In units of its dtype's roundoff; infinite where anything is not finite."""
        return inf if self.num_nonfinite else self.off / ROUNDOFF[self.dtype]


def origins(model: onnx.ModelProto) -> dict[str, Origin]:
    """The origin of every value that torch's program has a name for; others the exporter numbers as they come."""
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
    """The innermost line that is not torch's own, as 'layers.py:47'."""
    lines = [line.split('"') for line in trace.splitlines() if 'File "' in line and "site-packages" not in line]
    return f"{Path(lines[-1][1]).name}:{lines[-1][2].split()[2].strip(',')}" if lines else ""


def align(model: onnx.ModelProto, twin: onnx.ModelProto) -> dict[str, str]:
    """Values of a graph, in its order, and the twin's of the same place: the k-th such operation of that module.

    Names alone do not tell: casts, which only a narrow graph has, shift the exporter's counts.
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
    """The named values of a float32 graph: the truth. Caches that it updates in place are copied first."""
    model = typed(path)
    types = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    wanted = [types[name] for name in dict.fromkeys(names)]
    del model.graph.output[:]
    model.graph.output.extend(wanted)
    return _run(model, path, feeds)


def measure_pieces(
    path: Path, known: Mapping[str, Origin], truth: Mapping[str, Array], *, widen: bool = False
) -> list[Piece]:
    """What every piece of the graph at `path` makes of the truth, in the order of the graph.

    known  the names to cut at, and where they come from;  truth  what any piece may be fed, and should return
    widen  compute everything in float32: what is wrong then too is no matter of precision
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
        if value.shape != want.shape:  # put in after the export, in place of another: there is nothing to compare
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
    """Weights of a piece that its dtype does not hold: they are infinite, and no arithmetic mends that."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return [
        tensor.name
        for tensor in tensors
        if tensor.name in piece.weights and not np.isfinite(weight_values(tensor, path.parent)).all()
    ]


def _channel(difference: Array) -> int:
    """Along the last axis, where the largest difference is; what is not finite is larger than all else."""
    if not difference.ndim or not difference.size:
        return 0
    size = np.nan_to_num(np.abs(difference), nan=inf, posinf=inf).reshape(-1, difference.shape[-1])
    return int(size.max(axis=0).argmax())


def _off(value: Array, want: Array, *, is_real: bool) -> float:
    """Piece.off. Of indices, masks and zeros, anything but equality is an infinite error."""
    difference = np.abs(value - want)
    scale = float(np.sqrt(np.mean(np.square(want)))) if want.size else 0.0
    if not is_real or scale == 0:
        return inf if difference.any() else 0.0
    rel_l2 = float(np.sqrt(np.mean(np.square(difference)))) / scale
    return max(rel_l2, float((difference / (np.abs(want) + scale)).max()))


class Cut:
    """A graph and the names at which it is cut. `fed`: everything that a piece may be fed instead of computing it;
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
        """The narrowest dtype that a piece is fed, holds or returns."""
        touched = [name, *(read for node in members for read in node.input)]
        return next((NARROW[kind] for kind in map(self.types.get, touched) if kind in NARROW), "fp32")

    def _held(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, each narrow result through an Identity: ONNX Runtime would drop two casts in a row."""
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
    """The node, reading what it is fed."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for index, read in enumerate(copy.input):
        copy.input[index] = renamed.get(read, read)
    return copy


def _widened(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node in float32, whatever it was to round to."""
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
    """The graph, without its weights, with a type for every value: the exporter's notes, and inference for what was put
    in later."""
    model = onnx.load(path, load_external_data=False)
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False)
    except onnx.shape_inference.InferenceError:  # an edited graph may contradict the exporter's notes
        return model


def _run(model: onnx.ModelProto, source: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model over the weights of `source`, as it is written: nothing fused, nothing folded."""
    session = open_as_written(import_onnxruntime(), model.SerializeToString(), source.parent)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()}), strict=True))
