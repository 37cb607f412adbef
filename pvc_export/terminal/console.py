"""Progress output of commands: stages, bars, seconds. Plain lines in a log, nothing with --json."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from engines.sizes import peak_bytes
from engines.wrapping import fitted

from . import interrupt
from .facts import restart_peak

Report = Callable[[float], None]
"""Called with the fraction done, 0 to 1."""


@dataclass(slots=True)
class Stage:
    """One finished stage: its name, seconds, a note such as a size, and the process's peak memory during it.

    peak_bytes is the resident set's high-water mark, None if the system does not report it.
    """

    name: str
    seconds: float
    note: str = ""
    peak_bytes: int | None = None


@dataclass(slots=True)
class Console:
    """Output of commands. `quiet` keeps standard output clean for --json; stages are still recorded."""

    quiet: bool = False
    stages: list[Stage] = field(default_factory=list)
    rich: RichConsole = field(default_factory=lambda: RichConsole(file=sys.stdout, highlight=False))

    def print(self, text: str = "", *, style: str | None = None) -> None:
        if self.quiet:
            return
        if self.rich.is_terminal:
            text = fitted(text, self.rich.width)
        self.rich.print(text, style=style, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[tuple[Stage, Report]]:
        """Time a stage. A terminal shows a bar while it runs; afterwards one line remains, as in a log."""
        stage = Stage(name=name, seconds=0.0)
        restart_peak()
        started = time.perf_counter()
        if self.quiet or not self.rich.is_terminal:
            yield stage, lambda _: interrupt.check()
        else:
            columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            with Progress(*columns, console=self.rich, transient=True) as progress:
                task = progress.add_task(name, total=1.0)

                def report(fraction: float) -> None:
                    interrupt.check()
                    progress.update(task, completed=fraction)

                yield stage, report
        interrupt.check()
        stage.seconds, stage.peak_bytes = time.perf_counter() - started, peak_bytes()
        self.stages.append(stage)
        memory = f"{stage.peak_bytes / 2**30:>6.1f} GiB" if stage.peak_bytes is not None else ""
        self.print(f"  {name:<28}{stage.seconds:>8.1f} s{memory}   {stage.note}".rstrip())


def size_text(num_bytes: int) -> str:
    """1536 -> '1.5 KiB'"""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
