"""Input of a page and of a JUnit file: the finished report of a check, with its time and machine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from engines.manifest import Manifest
from engines.spec import Precision
from engines.target import load_target

from ..parity.by_layer.check import LEFT_OUT
from ..parity.report import ParityReport
from ..terminal.facts import now_utc, this_machine
from ..terminal.quantization import quantization_options


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInput:
    """A finished check with its time and machine; the defaults are now and this machine.

    bundle  the folder, as given to the check
    """

    parity: ParityReport
    manifest: Manifest
    bundle: str
    checked_utc: str = field(default_factory=now_utc)
    machine: str = field(default_factory=this_machine)

    @property
    def command(self) -> str:
        """The check as a command line."""
        return f"pvc-export check {shlex.quote(self.bundle)}"

    def next_command(self) -> tuple[str, str]:
        """The exact next command, and its purpose."""
        parity, manifest = self.parity, self.manifest
        repair, culprit, bundle = parity.repair, parity.culprit, shlex.quote(self.bundle)
        if parity.passed:
            return f"pvc-export run {bundle} --video FILE --ask 'What happens?'", "Use it"
        if repair is not None and repair.passed:
            purpose = "Export with the proven repair" if repair.islands else "Export it again"
            return self._export_command(manifest.precision, repair.islands), purpose
        if repair is not None or (culprit is not None and culprit.is_precision and culprit.island is None):
            has_bf16 = "bf16" in load_target(manifest.target).precisions
            wider: Precision = "bf16" if has_bf16 and manifest.precision == "fp16" else "fp32"
            return self._export_command(wider), "No island repairs it: export in a wider dtype"
        if culprit is not None and culprit.is_precision:
            return f"{self.command} --bisect", "Prove the suggested island"
        if culprit is not None:
            return self._export_command(manifest.precision), "Export it again"
        if LEFT_OUT in parity.not_executed:
            return f"{self.command} --whole", "With memory for the whole model, name the operation"
        if not parity.looked:
            return f"{self.command} --json", "Read every number"
        return self._export_command("fp32", suffix="-fp32"), "Compare in float32"

    def _export_command(self, precision: Precision, islands: tuple[str, ...] = (), *, suffix: str = "") -> str:
        manifest = self.manifest
        limits, model = manifest.limits, manifest.model
        kept = (*manifest.islands, *islands) if precision != "fp32" else ()
        parts = ["pvc-export", "trt" if manifest.engines else "onnx", "-m", model.name]
        parts += ["--seed", str(model.seed)] if model.random_weights and model.seed else []
        parts += [f"--{precision}", "--target", manifest.target]
        parts += ["--window", str(limits.window), "--context", str(limits.context), "--streams", str(limits.streams)]
        parts += ["--clock", "reanchor"] if limits.num_times is not None else []
        parts += quantization_options(manifest)
        for part in dict.fromkeys(part for kinds in manifest.unfused.values() for part in kinds):
            parts += ["--unfuse", part]
        for island in dict.fromkeys(kept):
            parts += ["--island", island]
        return shlex.join([*parts, "-o", f"{self.bundle}{suffix}"])
