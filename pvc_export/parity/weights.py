"""Weights check: an exported graph's weights must equal the reference's bit for bit, where their operation reads them.

Comparing outputs cannot show it: in float16 one wrong weight of a million drowns in rounding, and so do two exchanged
matrices that hardly affect the answers. A node's note names the parameters that its operation reads (graphs/notes.py).
The constants that reach it are compared with them one by one, value by value: a matrix as the operation reads it,
transposed or not, and the rows of each part of a joined matmul.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.bundle import graph_path
from engines.manifest import Manifest
from engines.memory import Array, host_dtype
from pvc_ref import PVC

from ..graphs.hollow import hollow
from ..graphs.joined import PARTS
from ..graphs.models import LoadedModel
from ..graphs.modules import graph_parameters, inner_name
from ..graphs.notes import parameter_name
from ..graphs.precision import cast_model
from .evidence import Evidence
from .graph_file import GraphFile, Place, Reading, bits, same_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weights expected in a graph.

    values   name in the model -> weight in the reference's dtype; matrices are on `meta`, `read` returns their values
    dtypes   name -> the dtype expected in the graph
    holders  torch.export's name of a parameter -> the weights it consists of; several if it is joined
    owners   name of a weight -> name of its module in the graph
    """

    values: Mapping[str, Tensor]
    read: Callable[[str], Tensor]
    dtypes: Mapping[str, torch.dtype]
    holders: Mapping[str, tuple[str, ...]]
    owners: Mapping[str, str]

    def wanted(self, name: str) -> Array:
        """One weight as expected in the graph. Cast on demand: a copy of a large model would not fit in memory."""
        value = self.values[name].detach()
        value = self.read(name) if value.is_meta else value
        return _to_numpy(value.to(self.dtypes.get(name, value.dtype)))


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldWeights:
    """The weights found in a graph.

    right   names of the weights in their places;  wrong  name of any other weight -> what is wrong, in words
    places  where the graph reads weights, right or wrong
    """

    right: frozenset[str]
    wrong: Mapping[str, str]
    places: frozenset[Place]


def compare_weights(folder: Path, manifest: Manifest, loaded: LoadedModel) -> Evidence:
    """Count the weights that are in their places, and list the others by graph with what is wrong."""
    held = {
        graph: held_weights(GraphFile(folder / graph_path(graph), graph), weights)
        for graph, weights in weights_of(manifest, loaded.model).items()
    }
    return evidence_of(held)


def evidence_of(held: Mapping[str, HeldWeights]) -> Evidence:
    wrong = {graph: dict(found.wrong) for graph, found in held.items() if found.wrong}
    return Evidence(num_weights=sum(len(found.right) for found in held.values()), wrong_weights=wrong)


def weights_of(manifest: Manifest, model: PVC) -> dict[str, Weights]:
    """The weights expected in each graph of a bundle."""
    bare = hollow(model, keep_clock=any(spec.num_times is not None for spec in manifest.graphs.values()))
    cast = cast_model(bare, manifest.precision, manifest.islands)
    dtypes = {name: parameter.dtype for name, parameter in cast.named_parameters(remove_duplicate=False)}
    return {
        graph: Weights(
            values=values,
            read=model.weight,
            dtypes=dtypes,
            holders=_holders(graph, values, model),
            owners={name: inner_name(graph, name).rpartition(".")[0] for name in values},
        )
        for graph, spec in manifest.graphs.items()
        for values in [graph_parameters(bare, spec)]
    }


def _holders(graph: str, values: Collection[str], model: PVC) -> dict[str, tuple[str, ...]]:
    """Make Weights.holders: each weight under its name, under the other name of a tied one, and in joined matmuls."""
    known = dict(model.named_parameters(remove_duplicate=False))
    holders: dict[str, tuple[str, ...]] = {}
    for name in values:
        owner, _, leaf = name.rpartition(".")
        module, _, part = owner.rpartition(".")
        same = [other for other, parameter in known.items() if parameter is known.get(name)]
        for other in (*same, name):
            holders[parameter_name(inner_name(graph, other))] = (name,)
        for product, parts in PARTS.items():
            if part == parts[0]:
                whole = parameter_name(inner_name(graph, f"{module}.{product}.{leaf}"))
                holders[whole] = tuple(f"{module}.{one}.{leaf}" for one in parts)
    return holders


def held_weights(file: GraphFile, weights: Weights) -> HeldWeights:
    """Compare every weight with the constant that its operation reads."""
    faults: dict[str, str | None] = {}  # the first fault, if several operations read a weight
    places = set[Place]()
    for names, operation, reading in _named_readings(file, weights):
        if reading is not None:
            places |= {reading.place, *reading.parts}
        for name, fault in _faults(file, weights, names, operation, reading).items():
            faults[name] = faults.get(name) or fault
    for name in (name for name in weights.values if name not in faults):
        unnamed = _unnamed_places(file, weights, name, places)
        places |= unnamed
        is_there = unnamed or _is_merged(weights, name, [other for other, fault in faults.items() if not fault])
        faults[name] = None if is_there else "no operation of its module reads it"
    return HeldWeights(
        right=frozenset(name for name, fault in faults.items() if not fault),
        wrong={name: fault for name in weights.values if (fault := faults[name])},
        places=frozenset(places),
    )


def _named_readings(file: GraphFile, weights: Weights) -> Iterator[tuple[tuple[str, ...], str, Reading | None]]:
    """For each parameter named by a note: its weights, the operation, and the constant in its place.

    An operation's parameters are its last constants, in their order. Earlier ones are data, such as the queries of a
    Q-Former.
    """
    operations: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for index, note in enumerate(file.notes):
        if note is not None and note.parameters:
            operations.setdefault((note.value, note.operation, note.parameters), []).append(index)
    for (_, operation, parameters), members in operations.items():
        readings = file.readings(members)
        asked = [weights.holders[parameter] for parameter in parameters if parameter in weights.holders]
        if len(readings) < len(asked):
            left_out = [names for names in asked if _is_zero_bias(weights, names)]
            asked = [names for names in asked if names not in left_out]
            yield from ((names, operation, None) for names in left_out)
        readings = readings[max(0, len(readings) - len(asked)) :]
        for number, names in enumerate(asked):
            yield names, operation, readings[number] if number < len(readings) else None


def _is_zero_bias(weights: Weights, names: Collection[str]) -> bool:
    """Whether these are biases of zeros, which the exporter may omit."""
    return all(name.endswith(".bias") and not np.any(weights.wanted(name)) for name in names)


def _faults(
    file: GraphFile, weights: Weights, names: tuple[str, ...], operation: str, reading: Reading | None
) -> dict[str, str | None]:
    """For each weight expected at a reading, what is wrong with the constant there; None if nothing is."""
    if reading is None:
        fault = None if _is_zero_bias(weights, names) else f"its '{operation}' reads no constant in this place"
        return dict.fromkeys(names, fault)
    values = file.values_read(reading)
    if operation == "linear" and _reads_transposed(file, reading):
        values = values.T
    if len(names) == 1:
        return {names[0]: _fault(values, weights, names[0])}
    ends = np.cumsum([len(weights.values[name]) for name in names])
    if values.ndim == 0 or len(values) != ends[-1]:
        return dict.fromkeys(names, f"the joined matmul has {values.shape}, expected {ends[-1]} rows")
    parts = zip(names, np.split(values, ends[:-1]), strict=True)
    return {name: _fault(part, weights, name) for name, part in parts}


def _reads_transposed(file: GraphFile, reading: Reading) -> bool:
    """Whether a linear layer's matmul reads its matrix as (inputs, outputs); torch stores (outputs, inputs)."""
    node = file.nodes[reading.reader[0]]
    if node.op_type == "Gemm" and reading.reader[1] == 1:
        return not any(entry.name == "transB" and entry.i for entry in node.attribute)
    return node.op_type in ("MatMul", "MatMulInteger")


def _fault(values: Array, weights: Weights, name: str) -> str | None:
    """What is wrong with the values in a weight's place; None if they equal the weight bit for bit."""
    want = weights.wanted(name)
    values = _fitted(values, want)
    if same_bits(values, want):
        return None
    if values.shape != want.shape or values.dtype != want.dtype:
        transposed = values.dtype == want.dtype and same_bits(values.T, want)
        hint = ", transposed" if transposed else ""
        return f"its operation reads {values.dtype} {values.shape}{hint}, expected {want.dtype} {want.shape}"
    if want.ndim == 2 and same_bits(values.T, want):
        return "it is read transposed"
    for other, value in weights.values.items():
        if value.shape == want.shape and same_bits(values, weights.wanted(other)):
            return f"the values of '{other}' are in its place"
    differs = bits(values) != bits(want)
    first = tuple(int(index) for index in np.argwhere(differs)[0])
    return f"{int(differs.sum())} of {want.size} values differ, first at {list(first)}"


def _fitted(values: Array, want: Array) -> Array:
    """The values in the weight's shape, if the two shapes differ only in axes of size one."""
    same = [size for size in values.shape if size != 1] == [size for size in want.shape if size != 1]
    return values.reshape(want.shape) if same else values


def _unnamed_places(file: GraphFile, weights: Weights, name: str, taken: Collection[Place]) -> set[Place]:
    """Places where a weight that no note names is read by its module, or by a module inside or around it.

    The exporter folds operations that only reshape a weight, such as the `expand` of the class token, and the note is
    lost with them.
    """
    owner, want, found = weights.owners[name], weights.wanted(name), set[Place]()
    for index, note in enumerate(file.notes):
        if note is None or not (_is_within(note.scope, owner) or _is_within(owner, note.scope)):
            continue
        for reading in file.readings([index]):
            if reading.place not in taken and same_bits(_fitted(file.values_read(reading), want), want):
                found.add(reading.place)
    return found


def _is_within(module: str, around: str) -> bool:
    return not around or f"{module}.".startswith(f"{around}.")


def _is_merged(weights: Weights, name: str, right: Collection[str]) -> bool:
    """Whether a weight that nothing reads equals another of its kind that is in place: the exporter merges equal
    operations on equal weights."""
    leaf, want = name.rpartition(".")[2], weights.wanted(name)
    return any(
        other.endswith(f".{leaf}") and weights.values[other].shape == want.shape
        and same_bits(weights.wanted(other), want)
        for other in right
    )  # fmt: skip


def _to_numpy(value: Tensor) -> Array:
    value = value.contiguous()
    if value.dtype != torch.bfloat16:
        return value.numpy()
    return value.view(torch.int16).numpy().view(host_dtype("bfloat16"))
