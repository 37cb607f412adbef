"""The declarations of a graph of any origin, read from its file and checked against the command line first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.errors import SpecError
from engines.spec import Dim
from engines.terminal import did_you_mean

from .draw import Bound
from .integers import masks_of, tables_of
from .names import crossed, expand, undeclared
from .request import ForeignRequest, StatePair
from .session import wiring_of
from .states import Declared, Doubt, Port, Sizes, Table, pieces_of

BATCH_SIZE = 2
FIRST_SIZE = 3
"""Size of the first dynamic axis that is not the batch; then 4, 5, ..., so that no two can be confused."""
CORRECT = "Correct it and run the check again"


def declare(model: Any, request: ForeignRequest, readable: Path) -> Declared:
    """Read the declarations of an onnx.ModelProto, and check the command line against them.

    readable  the graph without links
    Raises SpecError for a tensor that numpy cannot represent, for a name that the graph does not have, for a pattern
    that matches nothing, and for a pair whose output cannot be its next input.
    """
    path = request.graph
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_port(value, "input") for value in model.graph.input if value.name not in constants)
    outputs = tuple(_port(value, "output") for value in model.graph.output)
    for name in request.no_states:
        what = f"--no-state names '{name}', which is not an output of {path.name}"
        _require_known(what, name, [port.name for port in outputs], among="one of its outputs: ")
    bound_pairs = _bind(expand(request.pairs(), inputs, outputs), inputs, outputs, path)
    fed = {pair.input for pair in bound_pairs}
    drawn = [port for port in inputs if port.name not in fed]
    bare = {dim for port in drawn for dim in port.shape or ()}
    symbols = [s for port in inputs for dim in port.shape or () if isinstance(dim, str) for s in pieces_of(dim, {})]
    known = [symbol for symbol in dict.fromkeys(symbols) if not symbol.isdigit()]
    if request.batch_axis is not None:
        what = f"--batch-axis {request.batch_axis}: {path.name} has no dynamic axis of that name"
        _require_known(what, request.batch_axis, known, among="one of its dynamic axes, which are ")
    followed, growing = _followed(bound_pairs, inputs, outputs, bare, request.batch_axis)
    batch = request.batch_axis or _batch(known, inputs, growing)
    ties, pinned = _parse_sizes(request.parsed_sizes(), known, growing, path)
    fixed, untrue = _fixed_by_states(bound_pairs, inputs, outputs, batch)
    pinned = fixed | pinned
    base = {symbol: FIRST_SIZE + index for index, symbol in enumerate(s for s in known if s not in ties and s != batch)}
    starts = {s: pair.start for pair in bound_pairs for s, (name, _) in followed.items() if name == pair.input}
    base |= {symbol: starts[symbol] for symbol in growing} | ({batch: BATCH_SIZE} if batch else {}) | pinned
    whole = {port.name for port in drawn if port.kind != "float"}
    tables, masks, given = tables_of(model, whole), masks_of(model, whole), request.parsed_bounds()
    unfollowed = undeclared(bound_pairs, inputs, outputs, request.no_states)
    unbounded = _unbounded(drawn, {*tables, *masks, *given, *unfollowed})
    return Declared(
        path=path,
        readable=readable,
        wiring=wiring_of(path, model),
        inputs=inputs,
        outputs=outputs,
        states=bound_pairs,
        sizes=base,
        ties=ties,
        pinned=frozenset(pinned),
        followed=followed,
        growing=growing,
        batch=batch,
        bounds=_bounds(drawn, given, tables, path),
        tables=tables,
        masks=masks,
        doubts=(*unbounded, *crossed(bound_pairs, inputs, outputs), *unfollowed.values()),
        untrue=untrue,
    )


def _unbounded(drawn: list[Port], told: Collection[str]) -> Iterator[Doubt]:
    """Integers of unknown range, except those whose whole range is drawn."""
    why = "an integer of unknown range: it was drawn as 0 or 1, so nothing that depends on other values was tested"
    for port in drawn:
        if port.kind == "int" and port.dtype != "uint8" and port.name not in told:
            yield Doubt(about=f"input '{port.name}'", why=why, bound=f"{port.name}=LOW:HIGH")


def _fixed_by_states(
    pairs: tuple[StatePair, ...], inputs: tuple[Port, ...], outputs: tuple[Port, ...], batch: str | None
) -> tuple[Sizes, dict[str, str]]:
    """Return ({batch axis: size}, {output: reason}) for states that fix an axis their output declares as the batch."""
    ports = {("in", p.name): p.shape or () for p in inputs} | {("out", p.name): p.shape or () for p in outputs}
    fixed, untrue = Sizes(), dict[str, str]()
    for pair in pairs:
        ends = zip(ports["in", pair.input], ports["out", pair.output], strict=False)
        for axis, (dim, out) in enumerate(ends):
            if isinstance(dim, int) and isinstance(out, str) and out == batch:
                fixed[out] = dim
                untrue[pair.output] = (
                    f"it declares axis {axis} as '{out}', but is fed back as '{pair.input}', which is fixed to {dim} "
                    f"there: no stream can have another '{out}'"
                )
    return fixed, untrue


def _port(value: Any, role: str) -> Port:
    if value.type.WhichOneof("value") != "tensor_type":
        raise SpecError(
            f"the graph's {role} '{value.name}' is not a tensor",
            expected="tensors only: nothing else can be drawn and compared",
            fix="export the graph again with tensors only",
        )
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else np.dtype(object)
    if dtype.kind not in "fiub":
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise SpecError(
            f"the graph's {role} '{value.name}' has type {name}, which numpy does not support",
            expected="float16, float32, float64, an integer or bool",
            fix="cast it inside the graph and export again",
        )
    if tensor.HasField("shape"):
        unnamed = ["batch", *(f"{value.name}[{axis}]" for axis in range(1, len(tensor.shape.dim)))]
        dims = zip(tensor.shape.dim, unnamed, strict=False)
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or name for d, name in dims)
        return Port(name=value.name, dtype=dtype.name, shape=shape)
    if role == "input":
        raise SpecError(
            f"the graph's input '{value.name}' declares no shape, so nothing can be drawn for it",
            fix="export it again with a rank and with names for its dynamic axes",
        )
    return Port(name=value.name, dtype=dtype.name, shape=None)


def _bind(
    pairs: tuple[StatePair, ...], inputs: tuple[Port, ...], outputs: tuple[Port, ...], path: Path
) -> tuple[StatePair, ...]:
    """The pairs, with axes counted from the front. Raises SpecError for a pair that the graph cannot have."""
    ports = {"input": {p.name: p for p in inputs}, "output": {p.name: p for p in outputs}}
    for role, other in (("input", "output"), ("output", "input")):
        names = [getattr(pair, role) for pair in pairs]
        for index, name in enumerate(names):
            what = f"--state names the {role} '{name}', which {path.name} does not have"
            cause = f"it is an {other} of the graph: a pair is INPUT=OUTPUT" if name in ports[other] else ""
            _require_known(what, name, ports[role], among=f"one of its {role}s: ", cause=cause)
            if name in names[:index]:
                raise SpecError(
                    f"--state names the {role} '{name}' twice",
                    expected=f"each {role} in at most one pair",
                    fix="remove one of the two pairs and run the check again",
                )
    return tuple(_bind_ends(pair, ports["input"][pair.input], ports["output"][pair.output]) for pair in pairs)


def _bind_ends(pair: StatePair, into: Port, out: Port) -> StatePair:
    wrong_pair = partial(
        SpecError,
        f"{pair.option()}: the input is {into.text()}, but the output is {out.text()}",
        fix="correct the pair, or export again",
    )
    if into.dtype != out.dtype:
        expected = "the same dtype: the output is the next step's input"
        raise wrong_pair(expected=expected, cause="a Cast is missing at one end, or the pair is wrong")
    shape = into.shape or ()
    axis, rank = pair.append_axis, len(shape)
    if axis is not None:
        if not -rank <= axis < rank:
            what = f"{pair.option()}: {into.text()} has no such axis"
            raise SpecError(what, expected=f"an axis of 0..{rank - 1}", fix=CORRECT)
        axis %= rank
        if isinstance(shape[axis], int):
            dynamic = [str(i) for i, dim in enumerate(shape) if isinstance(dim, str)]
            raise SpecError(
                f"{pair.option()}: axis {axis} of {into.text()} has a fixed size, so nothing can be appended there",
                expected=f"one of its dynamic axes, which are {', '.join(dynamic) or 'none'}",
                fix="correct the axis, or export it as a dynamic axis",
            )
    sizes = zip(shape, out.shape or (), strict=False)
    differ = any(a != b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    if out.shape is not None and (len(out.shape) != rank or differ):
        free = "a dynamic axis that grows" if axis is None else "the axis of new rows"
        cause = "the pair is wrong, or the output holds new rows only, which need @append:AXIS"
        raise wrong_pair(expected=f"the same shape, except for {free}", cause=cause)
    return replace(pair, append_axis=axis)


def _followed(
    pairs: tuple[StatePair, ...], inputs: tuple[Port, ...], outputs: tuple[Port, ...], bare: set[Dim], batch: str | None
) -> tuple[dict[str, tuple[str, int]], frozenset[str]]:
    """Symbols that only states have, and those that grow: rows are appended, or the output renames the axis."""
    shapes = {("in", p.name): p.shape or () for p in inputs} | {("out", p.name): p.shape or () for p in outputs}
    followed, growing = dict[str, tuple[str, int]](), set[str]()
    for pair in pairs:
        into, out = shapes["in", pair.input], shapes["out", pair.output]
        for axis, dim in enumerate(into):
            if isinstance(dim, int) or dim in bare or dim == batch:
                continue
            followed.setdefault(dim, (pair.input, axis))
            if axis == pair.append_axis or (pair.append_axis is None and out and _is_renamed(dim, out[axis])):
                growing.add(dim)
        if pair.start and not growing & set(into):
            raise SpecError(
                f"{pair.option()}: no axis of '{pair.input}' grows, so it cannot have a first length",
                expected="a dynamic axis that has another name in the output, or @append:AXIS",
                fix="remove @start",
            )
    return followed, frozenset(growing)


def _is_renamed(dim: str, out: Dim) -> bool:
    """Whether both ends name the axis, differently. Exporters also rename batch axes, which never grow."""
    return dim != out and not dim.lower().startswith("batch") and not any("[" in str(name) for name in (dim, out))


def _batch(known: list[str], inputs: tuple[Port, ...], growing: frozenset[str]) -> str | None:
    """The axis named batch, else the symbol that is axis 0 of every input and not a cache's length."""
    named = [symbol for symbol in known if symbol.lower().startswith("batch")]
    shared = [s for s in known if s not in growing and all(port.shape and port.shape[0] == s for port in inputs)]
    return next(iter(named + shared), None)


def _parse_sizes(
    given: Mapping[str, str], known: list[str], growing: frozenset[str], path: Path
) -> tuple[dict[str, str], Sizes]:
    """(ties, pinned sizes). Raises SpecError for a symbol that the graph does not have."""
    for name, value in given.items():
        for symbol in (name, *(piece for piece in pieces_of(value, {}) if not piece.isdigit())):
            what = f"--size {name}={value}: {path.name} has no dynamic axis '{symbol}'"
            _require_known(what, symbol, known, among="one of its dynamic axes, which are ")
        if name in growing:
            raise SpecError(
                f"--size {name}={value}: that axis grows with its state at every step",
                fix="give its first length with the pair: --state INPUT=OUTPUT@start:N",
            )
    ties = {name: value for name, value in given.items() if not value.isdigit()}
    for name, value in ties.items():
        if set(pieces_of(value, {})) & set(ties):
            raise SpecError(
                f"--size {name}={value} uses an axis that is a sum itself",
                expected="a sum of plain axes",
                fix="write it out: --size total=past+new",
            )
    return ties, {name: int(value) for name, value in given.items() if value.isdigit()}


def _bounds(drawn: list[Port], given: Mapping[str, Bound], tables: Mapping[str, Table], path: Path) -> dict[str, Bound]:
    """Bounds as given, else from the tables that integers index, else 0..1. Raises SpecError for an input that is not
    drawn."""
    ports = {port.name: port for port in drawn}
    for name, (low, high) in given.items():
        what = f"--bound names '{name}', which is not a drawn input of {path.name}"
        _require_known(what, name, ports, among="one of its drawn inputs: ")
        port = ports[name]
        whole = low == int(low) and high == int(high)
        room = np.iinfo(port.dtype) if port.kind == "int" else None
        if port.kind != "float" and (not whole or (room and not room.min <= low <= high <= room.max)):
            what = f"--bound {name}={low:g}:{high:g} does not fit {port.text()}"
            raise SpecError(what, expected="whole numbers that its type can hold", fix=CORRECT)
    found = {p.name: (0.0, 255.0 if p.dtype == "uint8" else 1.0) for p in drawn if p.kind != "float"}
    return found | {name: (0.0, table.num_rows - 1.0) for name, table in tables.items()} | dict(given)


def _require_known(what: str, name: str, known: Collection[str], *, among: str, cause: str = "") -> None:
    """Raise SpecError for an unknown name. among: introduces the list of known names."""
    if name not in known:
        fix = f"{did_you_mean(name, known)} {CORRECT}".strip()
        raise SpecError(what, expected=among + (", ".join(known) or "none"), cause=cause, fix=fix)
