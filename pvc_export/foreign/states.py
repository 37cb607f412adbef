"""States of a graph of any origin: their start, their next values, and the drawing of the other inputs.

Nothing is known beforehand: declare.py reads tensors and axes from the file; the command line gives the state pairs.

Symbols: a dynamic axis has the name that the file gives it. An unnamed one is 'batch' if it is axis 0, else
'INPUT[AXIS]'. 'past + new' is the sum of two symbols. The size of a symbol that only states have is read from their
arrays as they grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.memory import Array
from engines.spec import Dim

from .draw import Bound, Moment, draw
from .request import StatePair

Sizes = dict[str, int]
"""Symbol -> size."""


def kind_of(dtype: np.dtype[Any]) -> str:
    """'float', 'int' or 'bool'. This must agree with the reference; the width need not."""
    return {"f": "float", "b": "bool"}.get(dtype.kind, "int")


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """One input or output of the file. shape: None if the file declares none."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def kind(self) -> str:
        """'float', 'int' or 'bool'. This must agree with the reference; the width need not."""
        return kind_of(np.dtype(self.dtype))

    def text(self) -> str:
        shape = "without a declared shape" if self.shape is None else f"({', '.join(map(str, self.shape))})"
        return f"'{self.name}' {self.dtype} {shape}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """Facts read from the file.

    dtype      the narrowest float among weights, inputs and outputs
    opset      opset of the standard operators
    reads      output -> the inputs on which it can depend
    copies     output -> the input that it copies, through Identity nodes only
    num_bytes  size of the file and of the external weights
    quantized  operators that compute in integers, or convert to or from them
    """

    dtype: str
    opset: int
    reads: dict[str, frozenset[str]]
    copies: dict[str, str]
    num_bytes: int
    quantized: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A tensor that an integer input indexes, and its number of rows."""

    name: str
    num_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """Something that the check cannot show, and the option that would help.

    about         the input, output or pair concerned
    state, bound  the missing value of --state or --bound
    otherwise     the option to give if the command line is right as it is
    """

    about: str
    why: str
    state: str | None = None
    bound: str | None = None
    otherwise: str = ""

    @property
    def text(self) -> str:
        option = f"--state {self.state}" if self.state is not None else f"--bound {self.bound}"
        return f"{self.why}: {option}" + (f", or {self.otherwise}" if self.otherwise else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A graph, its states, and how its other inputs are drawn.

    path      the graph, as named on the command line
    readable  the same, or a copy without links
    wiring    other facts from the file
    sizes     size of every symbol at the first step
    ties      symbols that are sums of others, by --size
    pinned    symbols fixed to one size by --size, so that no other is tried
    followed  symbols that only states have, with the input and axis that show their size
    growing   those of the followed symbols that begin at `start` rows
    batch     symbol of the batch, if there is one
    bounds    range of the drawn inputs: always for integers and bool, for floats only by --bound
    tables    integer input -> the table it indexes, as far as the file shows
    masks     mask input -> the value that hides, 0 or 1
    doubts    what this command line cannot show
    untrue    outputs whose declared shape cannot be true, and why
    """

    path: Path
    readable: Path
    wiring: Wiring
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[StatePair, ...]
    sizes: Sizes
    ties: dict[str, str]
    pinned: frozenset[str]
    followed: dict[str, tuple[str, int]]
    growing: frozenset[str]
    batch: str | None
    bounds: dict[str, Bound]
    tables: dict[str, Table]
    masks: dict[str, int]
    doubts: tuple[Doubt, ...]
    untrue: dict[str, str]

    @property
    def drawn(self) -> tuple[Port, ...]:
        """Inputs that are not states, in order."""
        states = {pair.input for pair in self.states}
        return tuple(port for port in self.inputs if port.name not in states)

    def state_of(self, output: str) -> StatePair | None:
        return next((pair for pair in self.states if pair.output == output), None)

    def describe(self, output: str) -> str:
        return f"{'output' if self.state_of(output) is None else 'state output'} '{output}'"

    @property
    def drawn_text(self) -> list[str]:
        """How each input that is not a state is drawn, as text."""
        ranges = {name: f"{low:g}..{high:g}" for name, (low, high) in self.bounds.items()}
        ranges |= {name: f"{ranges[name]}, a mask where {hides} hides" for name, hides in self.masks.items()}
        return [f"{port.text()} {ranges.get(port.name, 'normal')}" for port in self.drawn]

    def draw(self, sizes: Sizes, moment: Moment) -> dict[str, Array]:
        """Every input that is not a state, by the rules of draw.py."""
        return {
            port.name: draw(
                self.resolve(port, sizes), port.dtype, self.bounds.get(port.name), moment._replace(name=port.name),
                hides=self.masks.get(port.name),
            )
            for port in self.drawn
        }  # fmt: skip

    def zero_states(self, sizes: Sizes) -> dict[str, Array]:
        """Every state at the first step."""
        ports = {port.name: port for port in self.inputs}
        return {p.input: np.zeros(self.resolve(ports[p.input], sizes), ports[p.input].dtype) for p in self.states}

    def next_states(self, states: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The states of the next step. Raises ValueError if rows cannot be appended."""
        return {pair.input: pair.next(states[pair.input], outputs[pair.output]) for pair in self.states}

    def sizes_with(self, sizes: Sizes, states: Mapping[str, Array]) -> Sizes:
        """`sizes`, with the followed symbols updated from the states."""
        return sizes | {symbol: states[name].shape[axis] for symbol, (name, axis) in self.followed.items()}

    def resolve(self, port: Port, sizes: Sizes) -> tuple[int, ...]:
        assert port.shape is not None
        return tuple(dim if isinstance(dim, int) else self._sum(dim, sizes) for dim in port.shape)

    def _sum(self, dim: str, sizes: Sizes) -> int:
        return sum(int(piece) if piece.isdigit() else sizes[piece] for piece in pieces_of(dim, self.ties))

    def untrue_shapes(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, str]:
        """Outputs whose shape is not the declared one, and how it differs; axes of unknown size are not checked."""
        sizes = Sizes()
        for port in (*self.drawn, *self.inputs):
            for dim, size in zip(port.shape or (), feeds[port.name].shape, strict=True):
                sizes.setdefault(str(dim), size)
        wrong = {}
        for port in self.outputs:
            if port.shape is not None:
                found = outputs[port.name].shape
                known = [all(p.isdigit() or p in sizes for p in pieces_of(str(dim), self.ties)) for dim in port.shape]
                want = [
                    self._sum(str(dim), sizes) if is_known else None
                    for dim, is_known in zip(port.shape, known, strict=True)
                ]
                if len(want) != len(found) or any(a not in (None, b) for a, b in zip(want, found, strict=True)):
                    fed = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
                    declares = ", ".join(map(str, port.shape))
                    wrong[port.name] = f"it declares the shape ({declares}), but it is {found} for the inputs {fed}"
        return wrong

    def batch_axis(self, name: str) -> int | None:
        """Batch axis of an input or output, or None. A state output has its input's batch axis."""
        pair = self.state_of(name)
        wanted = name if pair is None else pair.input
        port = next(port for port in (*self.inputs, *self.outputs) if port.name == wanted)
        return next((axis for axis, dim in enumerate(port.shape or ()) if dim == self.batch), None)


def pieces_of(dim: str, ties: Mapping[str, str]) -> list[str]:
    """The terms of a sum, symbols and numbers. A symbol that --size defines as a sum is expanded."""
    found = [piece.strip() for piece in dim.split("+")]
    return [symbol for piece in found for symbol in (pieces_of(ties[piece], {}) if piece in ties else [piece])]
