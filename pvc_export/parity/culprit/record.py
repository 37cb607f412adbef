"""What the search for a culprit found, and what a repair proved: records, which reports hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..places import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Culprit:
    """The first operation that is wrong, where it is written, and what would repair it.

    layer         module of the model: 'trunk.layers.1.attn';  operation, nodes: torch's name of it, ONNX's
    error, limit  units of roundoff of its dtype; infinite where it returns NaN or infinity, or a wrong mask or index
    symptom       the same in words
    peak          the largest value that it should return;  largest  what its dtype can hold
    is_precision  whether it is right in float32
    island        the smallest part of the model around it that is best computed in float32; None if that is no help
    """

    graph: str
    where: Place
    layer: str
    operation: str
    nodes: tuple[str, ...]
    line: str
    dtype: str
    error: float
    limit: float
    symptom: str
    peak: float
    largest: float
    is_precision: bool
    island: str | None

    def text(self) -> str:
        """Three lines for people: what is wrong and where, how large its values are, what repairs it."""
        if not self.is_precision:
            repair = (
                "Wrong in float32 too, so precision is not the cause: weights, an attribute or the operation itself "
                "differ from the reference's. Export the bundle again; if it still fails, the exporter is at fault"
            )
        elif self.island is None:
            repair = "Right in float32, but no float32 island around it keeps its values in range: use --bf16 or --fp32"
        else:
            repair = f"Right in float32, so keep this part of the model in float32: --island {self.island}"
        return (
            f"First wrong operation, on the reference's own inputs: '{self.operation}' of layer '{self.layer}' in "
            f"graph '{self.graph}', at {self.where}: {self.symptom}\n"
            f"  ({self.line}; in ONNX {', '.join(self.nodes)}). Its values reach {self.peak:.3g}; {self.dtype} holds "
            f"{self.largest:.3g}.\n  {repair}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"where": str(self.where)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What a bundle needs in order to pass.

    islands   beyond those of the request;  passed  whether a bundle with them did;  culprits  one a failed try
    """

    islands: tuple[str, ...]
    passed: bool
    culprits: tuple[Culprit, ...]

    def text(self) -> str:
        if not self.passed:
            tried = ", ".join(self.islands) or "none"
            return f"No repair was found. Float32 islands tried together: {tried}"
        if not self.islands:
            return (
                "Exported again without changes, the check passes: the model is fine, and this bundle was changed or "
                "made by another version. Export it again"
            )
        flags = " ".join(f"--island {name}" for name in self.islands)
        return f"Exported again with {flags}, the check passes"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"culprits": [culprit.to_json() for culprit in self.culprits]}
