"""Likely cause of a failed check: the reference, the model, the export, a graph's inputs, or the limit.

Each cause has its own text and next step. The earliest one decides: if the reference is NaN, nothing after it proves
anything, and a model that its dtype cannot represent would fail in any export.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from engines.spec import Precision

from .culprit.record import Culprit
from .levels import Rule
from .limits import Row
from .metrics import Difference

CauseKind = Literal["reference", "model", "export", "input", "limit", "unknown"]
CLOSE = 2.0
"""If the worst tensor is at most at this multiple of its limit and nothing else is wrong, the limit is in doubt."""
INNOCENT = (
    "Every operation is right on the reference's inputs, so this graph receives wrong inputs. Check the runtime's "
    "masks, slots, positions and resize. To see whether it is this machine, check the same bundle on another one"
)


class Failed(Protocol):
    """The parts of a report needed to find the cause."""

    @property
    def precision(self) -> Precision: ...
    @property
    def differences(self) -> tuple[Difference, ...]: ...
    @property
    def rows(self) -> tuple[Row, ...]: ...
    @property
    def rules(self) -> tuple[Rule, ...]: ...
    @property
    def wrong_weights(self) -> Mapping[str, Any]: ...
    @property
    def looked(self) -> bool: ...
    @property
    def culprit(self) -> Culprit | None: ...


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause. `text` names it, with the reason and the next step."""

    kind: CauseKind
    text: str


def cause_of(report: Failed, kinds: Set[str]) -> Cause:
    """The cause of a failed check. kinds: the kinds of all its faults."""
    for find in (_of_the_reference, _of_the_model, _of_the_export):
        if (cause := find(report)) is not None:
            return cause
    for cause in (_of_a_layer(report), _of_the_limit(report, kinds), _of_the_input(report)):
        if cause is not None:
            return cause
    return Cause("unknown", "The operation at fault was not searched for. To search for it, run pvc-export check")


def _of_the_reference(report: Failed) -> Cause | None:
    unknown = next((one for one in report.differences if one.num_unknown and one.rung.kind != "onnx"), None)
    if unknown is None:
        return None
    return Cause(
        "reference",
        f"The reference itself returns NaN or infinity in {unknown.name} at {unknown.where}, in float32, so nothing "
        "can be compared with it. The checkpoint is damaged or was made for another architecture. Inspect it with "
        "pvc-export inspect MODEL, then download it again",
    )


def _of_the_model(report: Failed) -> Cause | None:
    """Rounding alone exceeds its ceiling: the model in its dtype fails by itself, before anything is exported."""
    coarse = next((row for row in report.rows if row.rung.kind == "torch" and not row.passed), None)
    if coarse is None or report.wrong_weights:
        return None
    found, culprit = f"{coarse.worst.name} {coarse.text()}", report.culprit
    if report.precision == "fp32" or coarse.rung.dtype == "fp32":
        help_ = "Its weights are too large for float32: find the layer with pvc-export inspect"
    elif culprit is not None and culprit.island is not None:
        help_ = f"Keep that part in float32: --island {culprit.island}"
    elif report.precision == "fp16":
        help_ = "Search for float32 islands that fix it: pvc-export check --bisect; or export with --bf16"
    else:
        help_ = "Search for float32 islands that fix it: pvc-export check --bisect; or export with --fp16 or --fp32"
    return Cause(
        "model",
        f"The model itself is too coarse in {coarse.rung.dtype}: rounding alone, in torch, gives {found}. "
        f"So the problem is the model in this dtype, not this export. {help_}",
    )


def _of_the_export(report: Failed) -> Cause | None:
    wrong = [rule.name for rule in report.rules if rule.passed is False and rule.level == "A"]
    if report.wrong_weights:
        graphs = ", ".join(report.wrong_weights)
        return Cause(
            "export", f"The export is wrong: weights of {graphs} differ from the reference. Export the bundle again"
        )
    if wrong:
        return Cause("export", f"The bundle is wrong: {', '.join(wrong)}. Export it again with this version")
    if report.culprit is not None:
        return Cause("export", report.culprit.text())
    return None


def _of_a_layer(report: Failed) -> Cause | None:
    """The cause in a layer-by-layer check, in which every layer received the reference's input."""
    wrong = next((row for row in report.rows if row.tensor.startswith("layer.") and not row.passed), None)
    if wrong is None:
        return None
    number = wrong.tensor.removeprefix("layer.")
    return Cause(
        "export",
        f"Layer {number} of the LLM differs from the reference's on the same input. Export the bundle again. "
        "On a machine with memory for the whole model, pvc-export check --whole names the operation",
    )


def _of_the_limit(report: Failed, kinds: Set[str]) -> Cause | None:
    """Only rows fail, none by much, and every operation is right: a faithful export of an unusual model looks like
    this."""
    worst = max((row.share() for row in report.rows), default=0.0)
    if kinds - {"row", "drift"} or not report.looked or not 1 < worst <= CLOSE:
        return None
    return Cause(
        "limit",
        f"The limit may be too tight for this model: every operation is right on the reference's inputs; weights, "
        f"structure and answers match the reference; and the worst tensor is at {worst:.2f} of its limit. Measure the "
        "model's noise over several inputs and send us the output: python -m pvc_export.studies.limits --model MODEL",
    )


def _of_the_input(report: Failed) -> Cause | None:
    fed = next((rule for rule in report.rules if rule.passed is False and rule.level in ("G", "K")), None)
    if fed is not None:
        return Cause("input", f"The graphs receive wrong inputs: {fed.name}: {fed.detail}")
    return Cause("input", INNOCENT) if report.looked else None
