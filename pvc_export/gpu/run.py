"""The run: step after step, none of which ends the others, within a time; and the folder that it leaves.

index.html     for people, one file      results.json   the same for machines
versions.txt   every package             log.txt        what the steps printed
report.zip     these four, to be sent    bundles/       what was exported, which stays here
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
"""A step is not begun with less time left."""
FORMAT = 1
SENT = ("index.html", "results.json", "versions.txt", "log.txt")
ZIP = "report.zip"
MARKS = {"shown": "ok", "failed": "FAIL", "refused": "--", "not executed": "--", "stand-in": "(ok)"}
WITHOUT_GPU = ("machine", "runtime")
"""Kinds of steps that are done without a GPU too: they say what is here."""

Launch = Callable[[Step, str, Path, float, IO[str]], Section]
"""A step, the model, the folder, its time limit and the log. `in_a_child`, or what tests put in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRun:
    """What came of it."""

    folder: Path
    model: str
    hardware: Hardware
    sections: tuple[Section, ...]
    seconds: float
    created_utc: str

    @property
    def counts(self) -> dict[str, int]:
        """How many sections are in each state; those that occur."""
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
    """Everything, into `folder`, whose older results are replaced. `hardware` and `launch` stand in, in tests."""
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
    """On a terminal, what is being done while it is: kernels of an RTX card take minutes at a first start."""
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
    """A step, or why it is not begun."""
    if not hardware.has_gpu and step.kind not in WITHOUT_GPU:
        return step.section(Found(state="not executed", error=NO_GPU))
    if reason := why_not(step, done):
        return step.section(Found(state="not executed", error=reason))
    if left < LEAST_S:
        return step.section(Found(state="not executed", error=f"the {budget:.0f} s of the whole run are over"))
    section = launch(step, model, folder, min(step.limit_s, left), log)
    if not hardware.has_gpu and step.kind == "runtime":
        what = "the package loads" if section.is_good else section.error
        return replace(section, state="not executed", error=f"{NO_GPU}; {what}")
    return section


def write(run: GpuRun) -> None:
    """The four files and the archive of them."""
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
    """The page: one file, nothing fetched."""
    return fill("gpu.html.j2", run=run, missing=missing(), versions=versions(), stand_in=STAND_IN, no_gpu=NO_GPU)
