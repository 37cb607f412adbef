"""Proof that the check can fail: every defect is planted, and the usual check must catch it at its level.

A defect is caught if all of this holds: the check ends with a report; the report fails; the defect's level is the first
of its kind to fail; and the faulty graph, if there is one, is named. A crash does not count as caught.
Level A compares a graph's file with a fresh export and so detects every edited graph. It is of another kind than the
levels that compare numbers and does not replace them: a defect that they do not detect themselves counts as missed.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines.errors import PVCError
from engines.spec import Precision, StreamLimits
from engines.target import load_target
from pvc_ref import PVC

from ..bundles.export import ExportRequest, write_graphs
from ..bundles.repair import repair
from ..graphs.models import LoadedModel, loaded_model
from ..parity.check import check_bundle
from ..parity.fresh import FreshGraphs
from ..parity.report import ParityReport
from ..terminal.console import Console
from .defects import Defect, PrecisionDefect

LIMITS = StreamLimits(window=4, context=512, streams=2)
"""Small limits for a short check, with two streams so that one can leak into the other."""
NUM_QUESTIONS = 24
"""Questions for a model whose world is known: only they run through the LLM with every operation rounded."""
IN_A_STREAM = "BDFE"
"""Levels at which one fault shows repeatedly: among these, the defect's level must be the first to fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DefectResult:
    """Result of the check for one defect. `failed`: the failed levels, in order; `crash`: the exception, if any."""

    defect: str
    level: str
    what: str
    failed: tuple[str, ...]
    named: str
    caught: bool
    detail: str
    seconds: float
    crash: str = ""

    def line(self) -> str:
        failed = " ".join(self.failed) or self.crash or "nothing"
        verdict = "caught" if self.caught else "MISSED"
        return f"  {verdict} {self.defect:<15} at {self.level}   failed: {failed:<14} {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OverflowResult:
    """Result for a model that overflows float16: the operation named, the islands tried, and whether they repair it."""

    defect: str
    what: str
    layer: str
    operation: str
    islands: tuple[str, ...]
    passed: bool

    def line(self) -> str:
        verdict = "repaired" if self.passed else "NOT REPAIRED"
        named = f"named '{self.operation}' of {self.layer}" if self.layer else "named no operation"
        return f"  {verdict} {self.defect:<13} {named}, islands: {', '.join(self.islands) or 'none'}   {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The mutation score, and whether a faithful bundle passes: a check that always fails proves nothing."""

    outcomes: tuple[DefectResult, ...]
    repairs: tuple[OverflowResult, ...]
    faithful: dict[str, bool]
    seconds: float

    @property
    def passed(self) -> bool:
        met = all(outcome.caught for outcome in self.outcomes) and all(repaired.passed for repaired in self.repairs)
        return met and all(self.faithful.values())

    def summary(self) -> str:
        caught = sum(outcome.caught for outcome in self.outcomes)
        sound = ", ".join(f"faithful {name} {'passes' if ok else 'FAILS'}" for name, ok in self.faithful.items())
        repaired = sum(repaired.passed for repaired in self.repairs)
        precision = f"{repaired} of {len(self.repairs)} overflows named and repaired; " if self.repairs else ""
        return (
            f"{caught} of {len(self.outcomes)} defects caught at their level; {precision}{sound}; "
            f"{self.seconds / 60:.1f} min"
        )

    def lines(self) -> list[str]:
        return [outcome.line() for outcome in self.outcomes] + [repaired.line() for repaired in self.repairs]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def prove(
    loaded: LoadedModel,
    *,
    defects: Sequence[Defect],
    precision_defects: Sequence[PrecisionDefect],
    console: Console,
) -> Proof:
    """Export a faithful bundle in float32, and in float16 if a defect needs it; then plant each defect in a copy."""
    started = time.monotonic()
    outcomes: list[DefectResult] = []
    sharing = FreshGraphs.of(loaded.model, None)  # every check compares its bundle with the same graphs
    with tempfile.TemporaryDirectory(prefix="pvc-prove-") as name, sharing as fresh:
        scratch, faithful = Path(name), dict[str, bool]()
        changed: tuple[Precision, ...] = ("fp32", "fp16")
        for precision in changed[: 1 + any(defect.precision == "fp16" for defect in defects)]:
            sound = scratch / precision
            sound.mkdir()
            with console.stage(f"export a faithful bundle in {precision} and check it") as (stage, report):
                write_graphs(loaded, _request(precision), sound, Console(quiet=True))
                parity = check_bundle(sound, loaded, num_questions=0, scratch=scratch, fresh=fresh, progress=report)
                faithful[precision], stage.note = parity.passed, parity.summary()
        for defect in defects:
            with console.stage(f"{defect.name}: {defect.what}") as (stage, _):
                outcomes.append(meet(defect, scratch / defect.precision, loaded, scratch, fresh))
                stage.note = f"{'caught' if outcomes[-1].caught else 'MISSED'}: {outcomes[-1].detail}"
        repairs = tuple(meet_overflow(defect, loaded, scratch, console) for defect in precision_defects)
    seconds = time.monotonic() - started
    return Proof(outcomes=tuple(outcomes), repairs=repairs, faithful=faithful, seconds=seconds)


def _request(precision: Precision) -> ExportRequest:
    target = replace(load_target("cpu"), engine_graphs=(), builder=None)
    return ExportRequest(out=Path("unused"), target=target, precision=precision, limits=LIMITS)


def meet(
    defect: Defect, sound: Path, loaded: LoadedModel, scratch: Path, fresh: FreshGraphs | None = None
) -> DefectResult:
    """Plant one defect in a copy of the faithful bundle of its precision, or in a separate export, and check it."""
    started = time.monotonic()
    folder = scratch / f"broken-{defect.name}"
    report: ParityReport | None = None
    crash = ""
    try:
        if defect.change_model is None:
            shutil.copytree(sound, folder)
            if defect.change_bundle is not None:
                defect.change_bundle(folder)
            with defect.fault():
                report = check_bundle(folder, loaded, ladder=False, num_questions=0, scratch=scratch, fresh=fresh)
        else:
            reference = _changed(loaded, defect.change_model)
            folder.mkdir()
            with defect.fault():
                write_graphs(reference, _request("fp16"), folder, Console(quiet=True))
                report = check_bundle(folder, reference, num_questions=0, scratch=scratch)
    except (PVCError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        crash = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _judge(defect, report, crash, time.monotonic() - started)


def meet_overflow(defect: PrecisionDefect, loaded: LoadedModel, scratch: Path, console: Console) -> OverflowResult:
    """Export a model that overflows float16, find the culprit, and prove that its island repairs it."""
    reference = _changed(loaded, defect.change_model)
    console.print(f"  {defect.name}: {defect.what}")
    found = repair(reference, _request("fp16"), scratch=scratch, console=console, num_questions=NUM_QUESTIONS)
    layer, operation = (found.culprits[0].layer, found.culprits[0].operation) if found.culprits else ("", "")
    is_named = (layer, operation) == (defect.layer, defect.operation)
    return OverflowResult(
        defect=defect.name,
        what=defect.what,
        layer=layer,
        operation=operation,
        islands=found.islands,
        passed=found.passed and is_named and found.islands == (defect.island,),
    )


def _changed(loaded: LoadedModel, change_model: Callable[[PVC], None]) -> LoadedModel:
    """Return a copy of the model with a fault, as a separate reference."""
    changed = copy.deepcopy(loaded.model)
    change_model(changed)
    return loaded_model(changed, loaded.tokenizer, name=loaded.source.name)


def _judge(defect: Defect, report: ParityReport | None, crash: str, seconds: float) -> DefectResult:
    failed: tuple[str, ...] = ()
    named, detail = "", crash
    if report is not None:
        levels = report.levels()
        failed = tuple(level for level, verdict in levels.items() if verdict.passed is False)
        named = report.first_failed_graph or ""
        detail = levels[defect.level].detail
    is_first = defect.level not in IN_A_STREAM or (report is not None and report.first_failed_level == defect.level)
    caught = report is not None and not report.passed and defect.level in failed and is_first
    if caught and defect.named and named != defect.named:
        caught, detail = False, f"the report names '{named}', but '{defect.named}' is wrong"
    return DefectResult(
        defect=defect.name,
        level=defect.level,
        what=defect.what,
        failed=failed,
        named=named,
        caught=caught,
        detail=detail,
        seconds=round(seconds, 1),
        crash=crash,
    )
