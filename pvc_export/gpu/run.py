"""The run: all steps in order within a time limit, where no step's failure ends the run; and its output folder.

index.html     the page, one file        results.json   the same for programs
versions.txt   every package             log.txt        the steps' output
report.zip     these four, to be sent    bundles/       the exported bundles, which stay here
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from engines.terminal import finite

from ..report.template import fill
from ..terminal import interrupt
from ..terminal.console import Console
from ..terminal.facts import now_utc
from .child import RESULTS, in_a_child, result_path
from .hardware import Hardware
from .runtimes import missing
from .section import NO_GPU, STAND_IN, STATES, Found, Section
from .steps import Step, steps_of, why_not
from .system import versions

OUT = Path("build/gpu")
BUDGET_S = 600.0
LEAST_S = 5.0
"""Minimum remaining time for starting another step."""
FORMAT = 1
SENT = ("index.html", "results.json", "versions.txt", "log.txt")
ZIP = "report.zip"
MARKS = {"shown": "ok", "failed": "FAIL", "refused": "--", "not executed": "--", "stand-in": "(ok)"}
WITHOUT_GPU = ("machine", "runtime")
"""Kinds of steps that also run without a GPU: they describe the machine."""

Launch = Callable[[Step, str, Path, float, IO[str]], Section]
"""Called with a step, the model, the folder, the time limit and the log: `in_a_child`, or a replacement in tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRun:
    """The results of a run."""

    folder: Path
    model: str
    hardware: Hardware
    sections: tuple[Section, ...]
    seconds: float
    created_utc: str

    @property
    def counts(self) -> dict[str, int]:
        """Number of sections per state, for the states that occur."""
        found = {state: sum(section.state == state for section in self.sections) for state in STATES}
        return {state: count for state, count in found.items() if count}

    @property
    def headline(self) -> str:
        hardware, counts = self.hardware, self.counts
        if hardware.is_stand_in:
            return STAND_IN
        if not hardware.has_gpu:
            return f"not executed: {NO_GPU}"
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        return f"{hardware.measured_on}: {told}"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "created_utc": self.created_utc,
            "model": self.model,
            "stand_in": self.hardware.is_stand_in,
            "has_gpu": self.hardware.has_gpu and not self.hardware.is_stand_in,
            "headline": self.headline,
            "seconds": self.seconds,
            "counts": self.counts,
            "missing": missing(),
            "sections": [section.to_json() for section in self.sections],
        }


def run_gpu(
    folder: Path,
    model: str,
    console: Console,
    *,
    hardware: Hardware | None = None,
    launch: Launch = in_a_child,
    budget_s: float = BUDGET_S,
) -> GpuRun:
    """Run all steps and write the results to `folder`, replacing older ones. Tests replace `hardware` and `launch`."""
    started = time.monotonic()
    hardware = hardware or Hardware.here()
    shutil.rmtree(folder / RESULTS, ignore_errors=True)
    (folder / RESULTS).mkdir(parents=True)
    done: dict[str, Section] = {}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        for step in steps_of(model, folder, hardware.precisions):
            interrupt.check()
            left = budget_s - (time.monotonic() - started)
            with shown(step, console):
                section = _one(step, hardware, model, folder, done, launch=launch, left=left, budget=budget_s, log=log)
            done[step.name] = section
            result_path(folder, step.name).write_text(json.dumps(section.to_json(), indent=1), encoding="utf-8")
            line = f"{MARKS[section.state]:<5}{section.title:<46}{section.seconds:>7.1f} s  "
            console.print(line + (section.state if not section.error else f"{section.state}: {section.error}")[:160])
    run = GpuRun(
        folder=folder, model=model, hardware=hardware, sections=tuple(done.values()),
        seconds=time.monotonic() - started, created_utc=now_utc(),
    )  # fmt: skip
    write(run)
    return run


def shown(step: Step, console: Console) -> AbstractContextManager[object]:
    """Show the running step on a terminal: on an RTX card the kernels of a first start take minutes."""
    if console.quiet or not console.rich.is_terminal:
        return nullcontext()
    return console.rich.status(f"{step.title}: {step.does}")


def _one(
    step: Step,
    hardware: Hardware,
    model: str,
    folder: Path,
    done: dict[str, Section],
    *,
    launch: Launch,
    left: float,
    budget: float,
    log: IO[str],
) -> Section:
    """Run a step, or return a section with the reason why it was not started."""
    if not hardware.has_gpu and step.kind not in WITHOUT_GPU:
        return step.section(Found(state="not executed", error=NO_GPU))
    if reason := why_not(step, done):
        return step.section(Found(state="not executed", error=reason))
    if left < LEAST_S:
        return step.section(Found(state="not executed", error=f"the run's time limit of {budget:.0f} s is used up"))
    section = launch(step, model, folder, min(step.limit_s, left), log)
    if not hardware.has_gpu and step.kind == "runtime":
        what = "the package loads" if section.is_good else section.error
        return replace(section, state="not executed", error=f"{NO_GPU}; {what}")
    return section


def write(run: GpuRun) -> None:
    """Write the four files and the archive of them."""
    folder = run.folder
    (folder / "results.json").write_text(
        json.dumps(finite(run.to_json()), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    lines = [f"{name} {version}" for name, version in versions().items()]
    (folder / "versions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(render(run), encoding="utf-8")
    with zipfile.ZipFile(folder / ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SENT:
            archive.write(folder / name, name)


def render(run: GpuRun) -> str:
    """The page: one file that loads nothing else."""
    return fill("gpu.html.j2", run=run, missing=missing(), versions=versions(), stand_in=STAND_IN, no_gpu=NO_GPU)
