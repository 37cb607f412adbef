"""Location of a compared tensor: the rung of the ladder and the run of its graph. These are formatted as text but never
parsed back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from engines.spec import Precision

PlaceKind = Literal[
    "frame",
    "frames",
    "time",
    "pass",
    "row",
    "token",
    "step",
    "size",
    "stream",
    "text",
    "rows",
    "single",
    "positions",
    "position",
    "early",
]
NUMBERED = ("frame", "time", "pass", "row", "token", "step", "position", "early")
"""Kinds whose places form a sequence, so that a curve can be drawn through them."""


@dataclass(frozen=True, slots=True)
class Place:
    """One run of a graph, or part of several runs: 'frame 3', 'pass 7', 'token 2', 'stream 1 of 2', 'the whole text'.

    index  number among the places of its kind, from 0;  words  its name if kind and index are not enough
    run    the run, if several go through the same places: 'own state', 'time = 1'
    """

    kind: PlaceKind
    index: int = 0
    words: str = ""
    run: str = ""

    def __str__(self) -> str:
        said = self.words or f"{self.kind} {self.index}"
        return f"{said}, {self.run}" if self.run else said

    @property
    def is_numbered(self) -> bool:
        return self.kind in NUMBERED


WHOLE_TEXT = Place("text", words="the whole text")


def stream_place(row: int, num_streams: int) -> Place:
    """One row of a batch."""
    return Place("stream", row, f"stream {row} of {num_streams}")


def positions_place(first: int, last: int) -> Place:
    """Rows of the LLM from first to last, inclusive."""
    return Place("positions", first, f"positions {first}..{last}" if last > first else f"position {first}")


RungKind = Literal["torch", "onnx", "engine", "gpu", "bundle"]
"""In the order of the ladder."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the ladder, which is compared with its neighbour:

    torch fp32            against torch fp64                             the reference's own rounding
    torch fp16, bf16      every operation rounded, against torch fp32    the dtype's rounding, with islands
    onnx fp32             against torch fp32                             the error of the export
    onnx fp16, bf16       against torch of that dtype                    the error of the export, in the bundle's dtype
    engine fp32, ...      against the ONNX file it was built from        the error of the compiler
    gpu fp32, ...         the target's own runtime, against torch fp32   the vision side on the device, all together
    bundle fp32, ...      a whole stream on the CPU, against torch fp32  all of it together, and the language side
    """

    kind: RungKind
    dtype: Precision

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}"

    @property
    def neighbour(self) -> str:
        """Description of the neighbour it is compared with."""
        return {
            "torch": "torch fp64" if self.dtype == "fp32" else "torch fp32",
            "onnx": f"torch {self.dtype}",
            "engine": f"onnx {self.dtype}",
            "gpu": "torch fp32, as the target runs it",
            "bundle": "torch fp32, a whole stream on the CPU",
        }[self.kind]

    @property
    def step(self) -> tuple[int, bool]:
        """Sort key in the order of the ladder, float32 first."""
        return get_args(RungKind).index(self.kind), self.dtype != "fp32"

    @property
    def limits(self) -> Rung:
        """The rung whose limits apply. None have been measured on a GPU yet. So an engine gets the limits of the ONNX
        rung, which is the same graph in the same dtype, and the whole GPU run those of the bundle."""
        stands_for: dict[RungKind, RungKind] = {"engine": "onnx", "gpu": "bundle"}
        return Rung(stands_for.get(self.kind, self.kind), self.dtype)
