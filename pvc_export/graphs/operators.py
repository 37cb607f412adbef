"""Has a target's parser every operator of a graph? Asked as the graph is written, long before an engine is built of it.

Unusual: TensorRT itself is never asked. A Jetson's engines are built on the device, so where a graph is exported there
is only the list of what that parser has (engines/parser.py). TensorRT-RTX needs no GPU, so its own parser decides.
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
"""Operators whose dtypes in a parser's list are those of their outputs too; of the others, of their first input. That
index, mask and shape are inputs as well is no reason to look for their dtypes there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What one node asks of a parser.

    node      its name, or that of what it makes where it has none
    operator  its type, after its domain and a colon where that is not ONNX's own
    computes  dtypes that it computes on, as far as the file says or they follow
    dtypes    of all its tensors
    """

    node: str
    operator: str
    computes: frozenset[str]
    dtypes: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """What a parser does not have, in words; `use` is the node's, None if it is the file's opset."""

    use: Use | None
    what: str


def check_operators(path: Path, target: Target) -> None:
    """Raise BuildError for a node of an ONNX file that the target's parser does not have, in this dtype or at all, or
    for an opset that it does not read; the error names the node, and the targets that have it. Any graph will do for a
    target that runs ONNX files: ONNX Runtime decides when it opens it. No weights are read."""
    target = load_target(target.name)  # `pvc-export onnx` has taken its builder away
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
            expected=f"what the parser of target '{target.name}' has",
            cause="the graph is spelled for another target, or written by another exporter than the tested one",
            fix=_elsewhere(refused.use, opset, target),
        )


def read_uses(path: Path) -> tuple[int, list[Use]]:
    """The opset of an ONNX file, and what each of its nodes asks of a parser, in the file's order."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    graphs = list(_graphs(model.graph))
    dtypes = {name: dtype for graph in graphs for name, dtype in _dtypes(graph)}
    return opset, [_use(node, dtypes) for graph in graphs for node in graph.node]


def first_lack(parser: Parser, opset: int, uses: Iterable[Use]) -> Refusal | None:
    """The first use that a parser's list does not cover, and why; or else the opset. None if it covers all."""
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
    """The targets whose parsers have it, or read the opset of the file where that is all that is wrong."""
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
    return f"no target with engines has it; those that run ONNX files may: --target {' or '.join(files)}"


def _has_rtx(target: Target) -> bool:
    """Whether TensorRT-RTX's own parser is here to decide."""
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
        return _refusal(use, f"the parser of {target.builder} {version} refuses it: {unread.reason}")
    return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and the branches and bodies in it."""
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
