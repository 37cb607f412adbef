"""Check that a target's parser has every operator of a graph, when the graph is written and before an engine is built.

TensorRT itself is not used: a Jetson's engines are built on the device, so the exporting machine only has a list of
that parser's operators (engines/parser.py). TensorRT-RTX needs no GPU, so its own parser decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from engines.builder import load_runtime, unread_nodes
from engines.errors import BackendUnavailable, BuildError
from engines.parser import Parser, load_parser
from engines.target import Target, load_target, target_names

OF_WHAT_THEY_MAKE = ("Cast", "CastLike", "ConstantOfShape", "EyeLike", "OneHot", "Where")
"""Operators whose dtypes in a parser's list also apply to their outputs. For others they apply to the first input only,
not to index, mask or shape inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A node's requirements on a parser.

    node      its name, or without one the name of its output
    operator  its type, preceded by its domain and a colon if that is not ONNX's
    computes  dtypes on which it computes, as far as they are in the file or can be inferred
    dtypes    dtypes of all its tensors
    """

    node: str
    operator: str
    computes: frozenset[str]
    dtypes: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A reason why a parser rejects a file; `use` is the node, or None for the file's opset."""

    use: Use | None
    what: str


def check_operators(path: Path, target: Target) -> None:
    """Raise BuildError if the target's parser lacks a node of an ONNX file, in its dtype or at all, or its opset.

    The error names the node and the targets that have it. For a target that runs ONNX files any graph passes, because
    ONNX Runtime decides when it opens the graph. No weights are read.
    """
    target = load_target(target.name)  # `pvc-export onnx` removed its builder
    if target.parser is None:
        return
    opset, uses = read_uses(path)
    if _has_rtx(target):
        refused = _refused_by_rtx(path, target, uses)
    else:
        refused = first_lack(load_parser(target.parser), opset, uses)
    if refused is not None:
        raise BuildError(
            f"{path}, opset {opset}: {refused.what}",
            expected=f"only operators, dtypes and opsets that the parser of target '{target.name}' has",
            cause="the graph is spelled for another target, or the exporter is not the tested one",
            fix=_elsewhere(refused.use, opset, target),
        )


def read_uses(path: Path) -> tuple[int, list[Use]]:
    """Read the opset of an ONNX file, and each node's requirements on a parser, in the file's order."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    graphs = list(_graphs(model.graph))
    dtypes = {name: dtype for graph in graphs for name, dtype in _dtypes(graph)}
    return opset, [_use(node, dtypes) for graph in graphs for node in graph.node]


def first_lack(parser: Parser, opset: int, uses: Iterable[Use]) -> Refusal | None:
    """Return the first use that a parser's list does not cover, or else the opset; None if it covers everything."""
    for use in uses:
        if why := _lack(parser, use):
            return _refusal(use, why)
    if _reads(parser, opset):
        return None
    return Refusal(use=None, what=f"{parser.name} reads opset {parser.opsets[0]} to {parser.opsets[1]}")


def _refusal(use: Use, why: str) -> Refusal:
    return Refusal(use=use, what=f"node '{use.node}' ({use.operator}): {why}")


def _lack(parser: Parser, use: Use) -> str:
    if use.operator not in parser.operators:
        return f"{parser.name} does not have this operator"
    listed = parser.operators[use.operator]
    if listed and (wrong := sorted(use.computes - listed)):
        return f"{parser.name} does not have this operator in {wrong[0]}, only in {', '.join(sorted(listed))}"
    if wrong := sorted(use.dtypes - parser.dtypes):
        return f"{parser.name} has no tensors of {wrong[0]}"
    return ""


def _reads(parser: Parser, opset: int) -> bool:
    first, last = parser.opsets
    return first <= opset <= last


def _elsewhere(use: Use | None, opset: int, target: Target) -> str:
    """Suggest the targets whose parsers have the use, or for use None the file's opset."""
    others = [other for other in map(load_target, target_names()) if other.name != target.name]
    have = [
        other.name
        for other in others
        if other.parser is not None
        and _reads(load_parser(other.parser), opset)
        and (use is None or not _lack(load_parser(other.parser), use))
    ]
    if have:
        return f"export for a target whose parser has it: --target {' or '.join(have)}"
    files = [other.name for other in others if other.parser is None]
    return f"no target with engines has it; a target that runs ONNX files may have it: --target {' or '.join(files)}"


def _has_rtx(target: Target) -> bool:
    """Whether TensorRT-RTX's parser is installed and can decide."""
    if target.runtime != "tensorrt_rtx":
        return False
    try:
        load_runtime(target)
    except BackendUnavailable:
        return False
    return True


def _refused_by_rtx(path: Path, target: Target, uses: list[Use]) -> Refusal | None:
    for unread in unread_nodes(path, target):
        unknown = Use(node=unread.name, operator=unread.operator, computes=frozenset(), dtypes=frozenset())
        use = next((use for use in uses if use.node == unread.name), unknown)
        version = load_runtime(target).__version__
        return _refusal(use, f"the parser of {target.builder} {version} rejects it: {unread.reason}")
    return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph, and the branches and bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for part in inner:
                yield from _graphs(part)


def _dtypes(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type:
            yield value.name, _name_of(value.type.tensor_type.elem_type)
    for constant in graph.initializer:
        yield constant.name, _name_of(constant.data_type)


def _name_of(elem_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def _use(node: onnx.NodeProto, dtypes: Mapping[str, str]) -> Use:
    computed = list(node.output) if node.op_type in OF_WHAT_THEY_MAKE or not node.input else []
    computed += node.input[:1]
    return Use(
        node=node.name or next(iter(node.output), ""),
        operator=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}",
        computes=frozenset(dtypes[name] for name in computed if name in dtypes),
        dtypes=frozenset(dtypes[name] for name in (*node.input, *node.output) if name in dtypes),
    )
