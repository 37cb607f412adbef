"""Variants of a streaming step, timed in the same rounds: shared by both comparisons of `pvc-export bench`.

Only equal variants are compared: every output of every round is compared with the first output of `eager`, and a
difference above LIMIT raises ParityError. The machine's peak rate is measured in the same rounds by two libraries, and
the better one counts.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.errors import ParityError
from engines.memory import Array
from engines.terminal import one_of

from ..graphs.machine import torch_threads
from ..terminal.console import Console
from .rounds import Spread, environment, interleave, ratio

TITLES = {
    "eager": "torch eager",
    "compile": "torch.compile",
    "ort-default": "ONNX Runtime, default export",
    "ours": "ours",
    "int8": "ours, int8 matmuls",
    "int4": "ours, int4 weights",
}
LIMIT = 1e-4
"""Largest difference to eager, relative to eager's largest value."""
FEW_BITS_LIMIT = 0.5
"""The same for int8 and int4 variants. It shows that they compute the same thing; the cost of rounding is measured by
answers and perplexity (docs/numerics.md)."""
PEAKS = {"GFLOP/s": "fp32 GEMM peak", "GB/s": "memory read peak"}
"""The hardware limit of a step, by the unit of its rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench(ABC):
    """One comparison: its options, preparation and report. Fields have the names of the command's options.

    `skip` names variants to leave out, from `skippable`. Raises ValueError for an unknown name.
    """

    program: ClassVar[str]

    size: str
    rounds: int = 7
    threads: int = 1
    skip: tuple[str, ...] = ()

    skippable: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for name in self.skip:
            one_of("--skip", name, self.skippable)

    def unless_skipped(self, name: str, make: Callable[[], Variant | str]) -> Variant | str:
        """The variant, or the reason it is not run."""
        return f"left out by --skip {name}" if name in self.skip else make()

    @abstractmethod
    def prepare(self, folder: Path, console: Console) -> Comparison:
        """Make the variants. `folder` is empty and takes their graphs."""

    @abstractmethod
    def to_json(self, report: Report) -> dict[str, Any]:
        """The report for machines."""

    @abstractmethod
    def describe(self, report: Report) -> list[str]:
        """The report as text: what was measured, one line per variant, and the environment."""

    def command(self) -> str:
        fields = ((name, given if isinstance(given, tuple) else (given,)) for name, given in asdict(self).items())
        return self.program + "".join(f" --{name} {one}" for name, given in fields for one in given)

    def run(self, console: Console | None = None) -> Report:
        """Measure every variant in every step. Raises ParityError if one does not compute what eager computes."""
        console = console or Console(quiet=True)
        facts = environment(self.command(), threads=self.threads)
        with torch_threads(self.threads), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            comparison = self.prepare(Path(folder), console)
            # A line and no bar: a bar redraws from a thread of this process, whose CPU time is being measured.
            console.print(f"  measure, {self.rounds} interleaved rounds")
            rows, peaks = measure(comparison, rounds=self.rounds, threads=self.threads)
        units = {name: step.peak.unit for name, step in comparison.steps.items()}
        return Report(rows=rows, request=self, facts=comparison.facts, units=units, peaks=peaks, environment=facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The measurements to take.

    variants  by name, or the reason one is not run; `eager` and `ort-default` always are
    facts     numbers for the report from which the steps' work follows
    """

    variants: Mapping[str, Variant | str]
    steps: Mapping[str, Step]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One step of one variant. `run` is timed; `output` turns its result into the compared array, untimed; `limit` is
    the largest allowed difference."""

    run: Callable[[], Any]
    output: Callable[[Any], Array] = lambda result: result
    limit: float = LIMIT


Variant = Mapping[str, Timed]
"""One way to run every step of a stream, by step name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The work every variant must do in a step, in GFLOP or GB, and the hardware limit.

    in_a_row  a stream takes many such steps in a row, so a round does too, and their mean counts. An untimed step goes
              first: it finds the processor's caches full of another variant's weights
    """

    work: float
    peak: Peak
    in_a_row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The machine's peak: per library, a run that only multiplies or only reads, and its GFLOP or GB."""

    work: float
    unit: str
    runs: Mapping[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The measurements and their environment.

    facts  from the comparison
    units  unit of each step's rate and peak
    peaks  step -> library -> peak rate per second
    """

    rows: tuple[Row, ...]
    request: Bench
    facts: Mapping[str, Any]
    units: dict[str, str]
    peaks: dict[str, dict[str, float]]
    environment: dict[str, Any]

    def table(self, step: str, *, digits: int) -> list[str]:
        """One line per variant; `digits` are the decimals of the rate."""
        unit = self.units[step]
        head = (
            f"{'':<30}{'ms':>9}{'quartiles':>18}{'x eager':>9}{'x default':>11}{unit:>9}{'of peak':>9}{'max diff':>10}"
        )
        return [head, *(_line(row, digits) for row in self.rows if row.step == step)]

    def peak_line(self, step: str) -> str:
        """The hardware limit of a step."""
        peak, unit = self.peaks[step], self.units[step]
        libraries = ", ".join(f"{name} {value:.0f}" for name, value in peak.items())
        return f"{PEAKS[unit]} {max(peak.values()):.0f} {unit} ({libraries})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant of one step: its figures, or the reason it was not run.

    times_*  speed-up: the median over rounds of the ratio within a round
    rate     the step's work per second, in the step's unit
    """

    step: str
    variant: str
    not_run: str | None = None
    time: Spread | None = None
    times_eager: float | None = None
    times_ort_default: float | None = None
    rate: float | None = None
    percent_of_peak: float | None = None
    max_difference: float | None = None


def _line(row: Row, digits: int) -> str:
    if row.time is None:
        return f"{TITLES.get(row.variant, row.variant):<30}  not run: {row.not_run}"
    quartiles = f"{row.time.q1_ms:.1f} - {row.time.q3_ms:.1f}"
    return (
        f"{TITLES.get(row.variant, row.variant):<30}{row.time.median_ms:>9.1f}{quartiles:>18}{row.times_eager:>9.2f}"
        f"{row.times_ort_default:>11.2f}{row.rate:>9.{digits}f}{row.percent_of_peak:>8.0f}%{row.max_difference:>10.1e}"
    )


def measure(
    comparison: Comparison, *, rounds: int, threads: int
) -> tuple[tuple[Row, ...], dict[str, dict[str, float]]]:
    """A row for every step and variant, and each library's peak in every step. Raises what Bench.run raises."""
    variants = {name: variant for name, variant in comparison.variants.items() if not isinstance(variant, str)}
    steps = comparison.steps
    timed = {(step, name): variant[step] for step in steps for name, variant in variants.items()}
    runs = {key: one.run for key, one in timed.items()}
    runs |= {(step, library): run for step in steps for library, run in steps[step].peak.runs.items()}
    in_a_row = {key: times for key in timed if (times := steps[key[0]].in_a_row)}
    expected = {step: timed[step, "eager"].output(timed[step, "eager"].run()) for step in steps}
    differences = dict.fromkeys(timed, 0.0)

    def look(key: tuple[str, str], result: Any) -> None:
        if key in timed:
            one = timed[key]
            found = difference(one.output(result), expected[key[0]], name="/".join(key), limit=one.limit)
            differences[key] = max(differences[key], found)

    interleave(runs, rounds=1, threads=threads, look=look)  # warm up
    seconds = interleave(runs, rounds=rounds, threads=threads, look=look, in_a_row=in_a_row)
    peaks = {
        name: {library: step.peak.work / median(seconds[name, library]) for library in step.peak.runs}
        for name, step in steps.items()
    }

    def row(step: str, name: str) -> Row:
        if isinstance(reason := comparison.variants[name], str):
            return Row(step=step, variant=name, not_run=reason)
        times = seconds[step, name]
        rate = steps[step].work / median(times)
        return Row(
            step=step,
            variant=name,
            time=Spread.of(times),
            times_eager=ratio(seconds[step, "eager"], times),
            times_ort_default=ratio(seconds[step, "ort-default"], times),
            rate=rate,
            percent_of_peak=100 * rate / max(peaks[step].values()),
            max_difference=differences[step, name],
        )

    return tuple(row(step, name) for step in steps for name in comparison.variants), peaks


def difference(got: Array, expected: Array, *, name: str, limit: float = LIMIT) -> float:
    """Largest difference, relative to the largest expected value. Raises ParityError above `limit`."""
    found = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not found <= limit:  # NaN as well
        raise ParityError(
            f"variant '{name}' differs from torch eager by {found:.1e} of its largest value, so their times are not "
            "compared",
            expected=f"at most {limit:.0e}, which different rounding explains",
            cause="this version of torch or ONNX Runtime, or a fault in the export",
            fix="export a small model and check it: pvc-export onnx -m tiny",
        )
    return found


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of a run, as torch counts them: a multiply-add is two.

    Only matmuls and convolutions count, so a share of the GEMM peak is a share of the possible: softmax, norms and GELU
    take time but are not counted as work. Masked scores count, since they are computed.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
