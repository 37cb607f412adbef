"""Structure check: a bundle's graphs must equal a fresh export of the reference in operators, attributes, wiring and
constants.

An epsilon, a scale or a mean that is slightly off can disappear in float16's noise, where comparing outputs cannot show
it. Each graph is therefore exported again as the manifest describes, and compared with the bundle's node by node. Names
may differ, nothing else: constants are compared bit for bit, except the weights, which weights.py has compared.
Other versions of the exporter write other graphs. A bundle exported with them differs without being wrong, so the rule
is then not executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from engines.bundle import graph_path
from engines.errors import BuildError
from engines.manifest import Manifest
from engines.memory import Array

from ..graphs.models import LoadedModel
from ..graphs.onnx_file import EXPORTER, is_hollow
from ..terminal.facts import installed
from .evidence import Evidence
from .fresh import FreshGraphs
from .graph_file import GraphFile, Place, bits, same_bits
from .levels import Rule
from .weights import HeldWeights, evidence_of, held_weights, weights_of

FEW = 8
"""Number of a constant's values that are shown."""


def compare_graphs(folder: Path, manifest: Manifest, loaded: LoadedModel, fresh: FreshGraphs) -> Evidence:
    """Compare weights and structure of every graph of a bundle: one rule per graph, and the weights not in place."""
    weights = weights_of(manifest, loaded.model)
    held: dict[str, HeldWeights] = {}
    rules = []
    for graph in manifest.graphs:
        file = GraphFile(folder / graph_path(graph), graph)
        held[graph] = held_weights(file, weights[graph])
        rules.append(_rule(file, held[graph], fresh, manifest))
    return evidence_of(held) + Evidence(rules=tuple(rules))


def _other_versions(manifest: Manifest) -> str:
    """Packages that affect a graph and have another version here than at export, in words; '' if there are none."""
    there, here = manifest.versions, installed(EXPORTER)
    return ", ".join(
        f"{name} {there.get(name, 'of unknown version')}, here {version}"
        for name, version in here.items()
        if there.get(name) != version
    )


def _rule(file: GraphFile, held: HeldWeights, exports: FreshGraphs, manifest: Manifest) -> Rule:
    """Compare the structure of one graph."""
    name = f"structure of '{file.graph}'"
    try:
        fresh = exports.graph(file.graph, manifest)
    except BuildError as error:
        return Rule(level="A", name=name, graph=file.graph, passed=None, detail=error.what)
    found = list(Comparison(file, fresh, held.places).differences())
    if not found:
        detail = f"{len(file.nodes)} nodes and {len(file.constants)} constants as in a fresh export"
        return Rule(level="A", name=name, graph=file.graph, passed=True, detail=detail)
    more = f", and {len(found) - 1} more differences" if len(found) > 1 else ""
    detail = f"differs from a fresh export of the reference: {found[0]}{more}"
    if versions := _other_versions(manifest):
        detail = (
            f"{detail}. The bundle was exported with other versions, which may write the graph differently: {versions}"
        )
    return Rule(level="A", name=name, graph=file.graph, passed=None if versions else False, detail=detail)


@dataclass(slots=True)
class Comparison:
    """A graph and its fresh export. `places`: where it reads weights, whose values are not compared here."""

    found: GraphFile
    fresh: GraphFile
    places: frozenset[Place]
    _names: dict[str, str] = field(default_factory=dict)
    """Name of a value in the fresh graph -> its name in the bundle's graph."""

    def differences(self) -> Iterator[str]:
        """The differences in words: first the interface, then in the order of the nodes."""
        yield from self._of_the_interface()
        self._names |= {value.name: value.name for value in self.fresh.model.graph.input}
        self._names[""] = ""  # an omitted input
        found, fresh = ([_kind(file, index) for index in range(len(file.nodes))] for file in (self.found, self.fresh))
        matches = SequenceMatcher(None, found, fresh, autojunk=False).get_opcodes() if found != fresh else None
        for tag, start, stop, begin, end in matches or [("equal", 0, len(found), 0, len(fresh))]:
            if tag == "equal" or stop - start == end - begin:
                for index, other in zip(range(start, stop), range(begin, end), strict=True):
                    yield from self._of_a_node(index, other)
            else:
                if stop > start:
                    yield f"it has {self._run(self.found, start, stop)}, which a fresh export does not have"
                if end > begin:
                    yield f"it lacks {self._run(self.fresh, begin, end)}"
        for value in self.fresh.model.graph.output:
            if self._names.get(value.name) != value.name:
                yield f"the output '{value.name}' is wrong, expected {self._value(self.fresh, value.name)}"

    def _of_the_interface(self) -> Iterator[str]:
        found, fresh = self.found.model, self.fresh.model
        parts = (
            ("opsets are", _opsets(found), _opsets(fresh)),
            (
                "inputs are",
                [_signature(value) for value in found.graph.input],
                list(map(_signature, fresh.graph.input)),
            ),
            (
                "outputs are",
                [_signature(value) for value in found.graph.output],
                list(map(_signature, fresh.graph.output)),
            ),
        )
        for what, one, other in parts:
            if one != other:
                yield f"its {what} {one}, expected {other}"

    @staticmethod
    def _run(file: GraphFile, start: int, stop: int) -> str:
        more = f" and the next {stop - start - 1} nodes" if stop - start > 1 else ""
        return f"{file.where(start)}{more}"

    def _of_a_node(self, index: int, other: int) -> Iterator[str]:
        """Differences between two nodes at the same place of both graphs."""
        node, want = self.found.nodes[index], self.fresh.nodes[other]
        where = self.found.where(index)
        self._names |= dict(zip(want.output, node.output, strict=False))
        if _kind(self.found, index) != _kind(self.fresh, other):
            yield f"found {where}, expected {self.fresh.where(other)}"
            return
        have, attributes = _attributes(node), _attributes(want)
        for name in sorted(set(have) | set(attributes)):
            if not _same_attribute(have.get(name), attributes.get(name)):
                one, two = _attribute_text(have.get(name)), _attribute_text(attributes.get(name))
                yield f"{where}: its {name} is {one}, expected {two}"
        if len(node.input) != len(want.input) or len(node.output) != len(want.output):
            sizes = f"{len(node.input)} inputs and {len(node.output)} outputs"
            yield f"{where} has {sizes}, expected {len(want.input)} and {len(want.output)}"
            return
        for number in range(len(want.input)):
            if fault := self._of_an_input((index, number), (other, number)):
                yield f"{where}: {fault}"

    def _of_an_input(self, place: Place, other: Place) -> str | None:
        name = self.found.nodes[place[0]].input[place[1]]
        want = self.fresh.nodes[other[0]].input[other[1]]
        if name in self.found.constants and want in self.fresh.constants:
            return self._of_a_constant(place, name, want)
        if name == self._names.get(want):
            return None
        return f"input {place[1]} is {self._value(self.found, name)}, expected {self._value(self.fresh, want)}"

    def _of_a_constant(self, place: Place, name: str, want: str) -> str | None:
        found, fresh = self.found.type_of(name), self.fresh.type_of(want)
        if found != fresh:
            return f"input {place[1]} is a constant {found}, expected {fresh}"
        if place in self.places:
            return None
        if is_hollow(self.fresh.constants[want]):
            return f"input {place[1]} is a matrix {found} that is not a weight of this operation"
        values, expected = self.found.values(name), self.fresh.values(want)
        if same_bits(values, expected):
            return None
        differs = bits(values) != bits(expected)
        if values.size <= FEW:
            return f"input {place[1]} is {_short(values)}, expected {_short(expected)}"
        values, expected = values[differs], expected[differs]
        some = f"{values.size} of {differs.size} values differ"
        return f"input {place[1]}: {some}, the first is {_short(values[:1])}, expected {_short(expected[:1])}"

    @staticmethod
    def _value(file: GraphFile, name: str) -> str:
        """A value of a graph in words."""
        if not name:
            return "omitted"
        if name in file.constants:
            return f"a constant {file.type_of(name)}"
        return f"the result of {file.where(file.makers[name])}" if name in file.makers else f"the graph's '{name}'"


def _kind(file: GraphFile, index: int) -> tuple[str, ...]:
    """Key by which the nodes of two graphs are aligned: operator, module, torch operation, parameters."""
    node, note = file.nodes[index], file.notes[index]
    return node.domain, node.op_type, *((note.scope, note.operation, *note.parameters) if note else ())


def _opsets(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return sorted((entry.domain, entry.version) for entry in model.opset_import)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[str | int, ...]]:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims


def _attributes(node: onnx.NodeProto) -> dict[str, AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _same_attribute(one: AttributeProto | None, other: AttributeProto | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.type == other.type == AttributeProto.TENSOR:
        return same_bits(numpy_helper.to_array(one.t), numpy_helper.to_array(other.t))
    plain = []
    for attribute in (one, other):
        copy = AttributeProto()
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
        plain.append(copy.SerializeToString(deterministic=True))
    return bool(plain[0] == plain[1])


def _attribute_text(attribute: AttributeProto | None) -> str:
    if attribute is None:
        return "not set"
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return _short(numpy_helper.to_array(value))
    if attribute.type == AttributeProto.FLOAT:
        return str(np.float32(value))
    return repr(value.decode() if isinstance(value, bytes) else value)


def _short(values: Array) -> str:
    """A few values, with the fewest digits that identify them in their dtype."""
    shown = ", ".join(str(value) for value in values.ravel()[:FEW])
    return f"{values.dtype} {shown}" + (" ..." if values.size > FEW else "")
