"""Why a check failed, as far as it can tell: the reference, the model, the export, what a graph is fed, or the limit.

Each is another sentence, with another next step. What is known first decides: a reference that is NaN proves nothing of
what follows it, and a model that its dtype does not hold would fail in any export.
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
"""A tensor that is off by no more than this many limits, and nothing else wrong: then the limit is doubted."""
INNOCENT = (
    "Every operation is right on the reference's own inputs, so this graph is fed other ones. Check the runtime's "
    "masks, slots, positions and resize; a check of the same bundle on another machine tells whether it is this one"
)


class Failed(Protocol):
    """What is asked of a report."""

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
    """`text` says what is to blame, why that is thought, and what to do next."""

    kind: CauseKind
    text: str


def cause_of(report: Failed, kinds: Set[str]) -> Cause:
    """Of a check that failed. kinds: of everything that is wrong with it."""
    for find in (_of_the_reference, _of_the_model, _of_the_export):
        if (cause := find(report)) is not None:
            return cause
    for cause in (_of_a_layer(report), _of_the_limit(report, kinds), _of_the_input(report)):
        if cause is not None:
            return cause
    return Cause(
        "unknown", "Nobody looked for the operation at fault: pvc-export check does, unless --json asks for it"
    )


def _of_the_reference(report: Failed) -> Cause | None:
    unknown = next((one for one in report.differences if one.num_unknown and one.rung.kind != "onnx"), None)
    if unknown is None:
        return None
    return Cause(
        "reference",
        f"The reference itself returns NaN or infinity in {unknown.name} at {unknown.where}, in float32, so nothing "
        "can be held against it. The checkpoint is damaged, or was made for another architecture. Look at it with "
        "pvc-export inspect MODEL, and fetch it again",
    )


def _of_the_model(report: Failed) -> Cause | None:
    """Rounding alone is too much: then the twin of the model fails by itself, before anything is exported."""
    coarse = next((row for row in report.rows if row.rung.kind == "torch" and not row.passed), None)
    if coarse is None or report.wrong_weights:
        return None
    found, culprit = f"{coarse.worst.name} {coarse.text()}", report.culprit
    if report.precision == "fp32" or coarse.rung.dtype == "fp32":
        help_ = "Its weights are too large for float32: look for the layer with pvc-export inspect"
    elif culprit is not None and culprit.island is not None:
        help_ = f"Keep that part in float32: --island {culprit.island}"
    elif report.precision == "fp16":
        help_ = "Let the islands that help be found: pvc-export check --bisect; or export with --bf16"
    else:
        help_ = "Let the islands that help be found: pvc-export check --bisect; or export with --fp16 or --fp32"
    return Cause(
        "model",
        f"The model is too coarse in {coarse.rung.dtype}, whoever exports it: rounding alone, in torch, makes {found}. "
        f"That is a finding about the model and not about this export. {help_}",
    )


def _of_the_export(report: Failed) -> Cause | None:
    wrong = [rule.name for rule in report.rules if rule.passed is False and rule.level == "A"]
    if report.wrong_weights:
        graphs = ", ".join(report.wrong_weights)
        return Cause(
            "export", f"The export is wrong: weights of {graphs} are not the reference's. Export the bundle again"
        )
    if wrong:
        return Cause("export", f"The bundle is wrong: {', '.join(wrong)}. Export it again, with this version")
    if report.culprit is not None:
        return Cause("export", report.culprit.text())
    return None


def _of_a_layer(report: Failed) -> Cause | None:
    """Of a check layer by layer, in which each was fed the reference's own input."""
    wrong = next((row for row in report.rows if row.tensor.startswith("layer.") and not row.passed), None)
    if wrong is None:
        return None
    number = wrong.tensor.removeprefix("layer.")
    return Cause(
        "export",
        f"Layer {number} of the LLM computes something else than the reference's on the same input. Export the bundle "
        "again; where there is memory for the whole model, pvc-export check --whole names the operation",
    )


def _of_the_limit(report: Failed, kinds: Set[str]) -> Cause | None:
    """Only rows fail, none by much, and every operation is right: a faithful export of an unusual model looks so."""
    worst = max((row.share() for row in report.rows), default=0.0)
    if kinds - {"row", "drift"} or not report.looked or not 1 < worst <= CLOSE:
        return None
    return Cause(
        "limit",
        f"The limit may be too tight for this model: every operation is right on the reference's own inputs, weights, "
        f"structure and answers are the reference's, and the worst tensor is at {worst:.2f} of its limit. Measure its "
        "noise over several inputs: python -m pvc_export.studies.limits --model MODEL; and tell us what it prints",
    )


def _of_the_input(report: Failed) -> Cause | None:
    fed = next((rule for rule in report.rules if rule.passed is False and rule.level in ("G", "K")), None)
    if fed is not None:
        return Cause("input", f"What the graphs are fed is wrong: {fed.name}: {fed.detail}")
    return Cause("input", INNOCENT) if report.looked else None
