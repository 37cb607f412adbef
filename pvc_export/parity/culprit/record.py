"""Records for reports: the culprit that was found, and the repair that was tried."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..places import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Culprit:
    """The first wrong operation, its source line, and its repair.

    layer         module of the model: 'trunk.layers.1.attn';  operation, nodes: its torch name, its ONNX operators
    error, limit  in units of roundoff of its dtype; infinite if it returns NaN, infinity, or a wrong mask or index
    symptom       the error in words
    peak          the largest value that it should return;  largest  the largest finite value of its dtype
    is_precision  whether it is right in float32
    island        the smallest part of the model around it to compute in float32; None if that does not help
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
        """Three lines for people: what is wrong and where, the size of its values, and the repair."""
        if not self.is_precision:
            repair = (
                "Also wrong in float32, so precision is not the cause: weights, an attribute or the operation itself "
                "differ from the reference's. Export the bundle again; if it still fails, the exporter is at fault"
            )
        elif self.island is None:
            repair = "Right in float32, but no float32 island around it keeps its values in range: use --bf16 or --fp32"
        else:
            repair = f"Right in float32, so keep this part of the model in float32: --island {self.island}"
        return (
            f"First wrong operation on the reference's inputs: '{self.operation}' of layer '{self.layer}' in "
            f"graph '{self.graph}', at {self.where}: {self.symptom}\n"
            f"  ({self.line}; in ONNX {', '.join(self.nodes)}). Its values reach {self.peak:.3g}; the largest value in "
            f"{self.dtype} is {self.largest:.3g}.\n  {repair}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"where": str(self.where)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """The result of searching for a repair.

    islands   islands added to the requested ones;  passed  whether a bundle with them passed;  culprits  one per failed
              attempt
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
                "A new export without changes passes the check: the model is fine, and this bundle was changed or "
                "made by another version. Export it again"
            )
        flags = " ".join(f"--island {name}" for name in self.islands)
        return f"A new export with {flags} passes the check"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"culprits": [culprit.to_json() for culprit in self.culprits]}
