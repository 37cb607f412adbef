"""What a report is made from, its verdict, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.manifest import Manifest
from engines.spec import GRAPH_NAMES, Precision
from engines.target import load_target

from ..parity.drift.statistics import DriftReport
from ..parity.heat import HeatMap
from ..parity.levels import Verdict
from ..parity.report import ParityReport
from .text import count

if TYPE_CHECKING:  # both import the check, which may want to write a report
    from ..bundles.repair import Repair
    from ..parity.culprit.find import Culprit


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInput:
    """A check and all that is known about it.

    bundle       the folder, as it was named to the check;  command  the check itself, as a command line
    checked_utc  when;  machine  what computed it, in words
    looked       whether the culprit was looked for: then none means that every operation is right
    """

    parity: ParityReport
    manifest: Manifest
    bundle: str
    command: str
    checked_utc: str
    machine: str
    culprit: Culprit | None = None
    looked: bool = False
    repair: Repair | None = None
    drift: DriftReport | None = None
    heat: tuple[HeatMap, ...] = ()

    @property
    def passed(self) -> bool:
        """Of what was executed, nothing was wrong."""
        return not self.faults()

    def faults(self) -> list[str]:
        """What is wrong, the gravest first, a line each. Empty for a pass."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        parity = self.parity
        for graph, names in parity.wrong_weights.items():
            verb = "is" if len(names) == 1 else "are"
            yield f"{count(len(names), 'weight')} of '{graph}' {verb} not the reference's: {_some(names)}"
        failed = [row for row in parity.rows if not row.passed]
        if failed:
            first = min(failed, key=lambda row: GRAPH_NAMES.index(row.graph))  # of these, the first on the ladder
            yield (
                f"{first.stage}, {first.graph}/{first.tensor}: {first.text()}; {len(failed)} of "
                f"{count(len(parity.rows), 'row')} {'is' if len(failed) == 1 else 'are'} off by more than allowed"
            )
        if parity.missing:
            yield f"never seen, so never compared: {_some(parity.missing)}"
        yield from parity.wrong_tokens
        yield from parity.wrong_conversations()
        yield from parity.wrong_answers()
        yield from parity.broken_rules()
        yield from (self.drift.faults() if self.drift else ())

    def not_executed(self) -> dict[str, str]:
        """What could not run, and why: rungs of the ladder, and rules."""
        rules = {f"level {rule.level}, {rule.name}": rule.detail for rule in self.parity.rules if rule.passed is None}
        return self.parity.not_executed | rules

    def levels(self) -> dict[str, Verdict]:
        """How every level came out, A to M, a long stream's drift included."""
        verdicts = self.parity.levels()
        if self.drift is not None:
            far, faults = verdicts["E"], self.drift.faults()
            text = faults[0] if faults else f"{self.drift.num_frames} frames in a row do not drift"
            if not faults and far.passed is not None:
                text = f"{far.detail}; {text}"
            verdicts["E"] = Verdict(level="E", passed=not faults and far.passed is not False, detail=text)
        return verdicts

    @property
    def is_computed_wider(self) -> bool:
        """Whether what ran computed narrower graphs in float32: then no device's arithmetic was seen."""
        return self.manifest.precision != "fp32" and self.parity.computed_in == "float32"


def next_command(report: ReportInput) -> tuple[str, str]:
    """The exact next command, and what it is for."""
    manifest, repair, culprit = report.manifest, report.repair, report.culprit
    bundle = shlex.quote(report.bundle)
    if report.passed:
        return f"pvc-export run {bundle} --video FILE --ask 'What happens?'", "Use it"
    if repair is not None and repair.passed:
        purpose = "Export with the proven repair" if repair.islands else "Export it again"
        return _export_command(report, manifest.precision, repair.islands), purpose
    if repair is not None or (culprit is not None and culprit.is_precision and culprit.island is None):
        wider: Precision = "bf16" if _has_bf16(report) and manifest.precision == "fp16" else "fp32"
        return _export_command(report, wider), "No island repairs it: export in a wider dtype"
    if culprit is not None and culprit.is_precision:
        return f"pvc-export check {bundle} --bisect", "Prove the suggested island"
    if culprit is not None:
        return _export_command(report, manifest.precision), "Export it again"
    if not report.looked:
        return f"{report.command} --json", "Read every number"
    return _export_command(report, "fp32", suffix="-fp32"), "Compare in float32"


def _export_command(
    report: ReportInput, precision: Precision, islands: tuple[str, ...] = (), *, suffix: str = ""
) -> str:
    manifest = report.manifest
    limits, model = manifest.limits, manifest.model
    kept = (*manifest.islands, *islands) if precision != "fp32" else ()
    parts = ["pvc-export", "trt" if manifest.engines else "onnx", "-m", model.name]
    parts += ["--seed", str(model.seed)] if model.random_weights and model.seed else []
    parts += [f"--{precision}", "--target", manifest.target]
    parts += ["--window", str(limits.window), "--context", str(limits.context), "--streams", str(limits.streams)]
    for island in dict.fromkeys(kept):
        parts += ["--island", island]
    return shlex.join([*parts, "-o", f"{report.bundle}{suffix}"])


def _has_bf16(report: ReportInput) -> bool:
    return "bf16" in load_target(report.manifest.target).precisions


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
