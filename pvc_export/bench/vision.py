"""Four ways to run one streaming vision step, side by side: one new frame behind W - 1 past ones, every slot in use.

    eager        the reference in PyTorch, its state joined frame by frame
    compile      the same call under torch.compile
    ort-default  what one gets without us: the step exported by torch with default options, the window an input and,
                 shifted, an output; ONNX Runtime with its defaults
    ours         trunk, temporal and compressor graphs with a ring: what PVCStream runs

Unusual: nothing is compared that is not equal. Every output of every round is held to the first of `eager`, and a
difference above LIMIT ends the run with ParityError. The GEMM peak is measured in the same rounds, by torch and by
ONNX Runtime, and the better one counts. The variants themselves are in bench_variants.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from engines.errors import ParityError
from engines.memory import Array

from ..terminal.console import Console
from .flops import step_flops
from .rounds import Spread, describe_environment, environment, interleave, ratio
from .vision_variants import (
    GEMM_SIZE,
    SIZES,
    Scene,
    Step,
    compiled_step,
    default_step,
    eager_step,
    gemm_steps,
    our_sessions,
    our_step,
)

TITLES = {
    "eager": "torch eager",
    "compile": "torch.compile",
    "ort-default": "ONNX Runtime, default export",
    "ours": "ours",
}
SKIPPABLE = ("compile",)
LIMIT = 1e-4
"""Largest difference to eager, relative to eager's largest value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """What to measure. `skip` names variants that are left out, of SKIPPABLE. Raises ValueError for what is unknown."""

    size: str = "mid"
    window: int = 16
    rounds: int = 7
    threads: int = 1
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_known("size", self.size, SIZES)
        for name in self.skip:
            require_known("skip", name, SKIPPABLE)
        if self.window < 2:
            raise ValueError(f"--window {self.window}: expected at least 2, or there is no past to stream")

    def command(self) -> str:
        skip = "".join(f" --skip {name}" for name in self.skip)
        return (
            f"pvc-export bench --size {self.size} --window {self.window} --rounds {self.rounds} "
            f"--threads {self.threads}{skip}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant: its time, or why it was not run. Ratios are medians over rounds of the ratio within a round."""

    variant: str
    not_run: str | None = None
    time: Spread | None = None
    times_eager: float | None = None
    times_ort_default: float | None = None
    gflop_per_s: float | None = None
    percent_of_peak: float | None = None
    max_difference: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """All rows, and what they were measured with. peak_gflop_per_s has one entry per library."""

    rows: tuple[Row, ...]
    request: BenchRequest
    gflop: float
    peak_gflop_per_s: dict[str, float]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limit": LIMIT}


def bench(request: BenchRequest, *, console: Console | None = None) -> BenchReport:
    """Measure every variant. Raises ParityError if one of them computes something else than eager."""
    console = console or Console(quiet=True)
    facts = environment(request.command(), threads=request.threads)
    with tempfile.TemporaryDirectory() as folder, torch_threads(request.threads), torch.no_grad():
        with console.stage("fill the window"):
            scene = Scene.render(SIZES[request.size], window=request.window)
        steps, not_run = _prepare(scene, request, Path(folder), console)
        differences = dict.fromkeys(steps, 0.0)
        expected = steps["eager"]()

        def compare(name: str, embeds: Any) -> None:
            if name in steps:
                differences[name] = max(differences[name], difference(embeds, expected, name=name))

        # A line and no bar: a bar redraws from a thread of this process, whose CPU time is being measured.
        console.print(f"  measure, {request.rounds} interleaved rounds")
        everything = steps | gemm_steps()
        interleave(everything, rounds=1, threads=request.threads, look=compare)  # warm up
        seconds = interleave(everything, rounds=request.rounds, threads=request.threads, look=compare)
    gflop = step_flops(scene.config, window=request.window) / 1e9
    peak = {name: 2e-9 * GEMM_SIZE**3 / median(seconds[name]) for name in everything if name not in steps}
    rows = [Row(variant=name, not_run=not_run[name]) for name in TITLES if name in not_run]
    rows += [_row(name, seconds, gflop=gflop, peak=max(peak.values()), difference=differences[name]) for name in steps]
    order = list(TITLES)
    return BenchReport(
        rows=tuple(sorted(rows, key=lambda row: order.index(row.variant))),
        request=request,
        gflop=gflop,
        peak_gflop_per_s=peak,
        environment=facts,
    )


def require_known(option: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError, with the nearest of `known`, unless `name` is one of them."""
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"--{option} {name}: expected one of {', '.join(known)}{hint}")


def difference(embeds: Array, expected: Array, *, name: str) -> float:
    """Largest difference, relative to the largest expected value. Raises ParityError above LIMIT."""
    found = float(np.abs(embeds - expected).max() / np.abs(expected).max())
    if not found <= LIMIT:  # NaN as well
        raise ParityError(
            f"variant '{name}' differs from torch eager by {found:.1e} of its largest value, more than {LIMIT:.0e}. "
            "They do not compute the same, so their times are not compared"
        )
    return found


def table(report: BenchReport) -> list[str]:
    """The report for people: what was measured, a line a variant, and with what."""
    request, best = report.request, max(report.peak_gflop_per_s.values())
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in report.peak_gflop_per_s.items())
    lines = [
        f"streaming vision step, size {request.size}, window {request.window}, random weights, float32, "
        f"{report.gflop:.1f} GFLOP; {request.rounds} interleaved rounds",
        f"fp32 GEMM peak {best:.0f} GFLOP/s ({peaks})",
        "",
        f"{'':<30}{'ms':>9}{'quartiles':>18}{'x eager':>9}{'x default':>11}"
        f"{'GFLOP/s':>9}{'of peak':>9}{'max diff':>10}",
    ]
    for row in report.rows:
        title = TITLES[row.variant]
        if row.time is None:
            lines.append(f"{title:<30}  not run: {row.not_run}")
            continue
        quartiles = f"{row.time.q1_ms:.1f} - {row.time.q3_ms:.1f}"
        lines.append(
            f"{title:<30}{row.time.median_ms:>9.1f}{quartiles:>18}{row.times_eager:>9.2f}{row.times_ort_default:>11.2f}"
            f"{row.gflop_per_s:>9.0f}{row.percent_of_peak:>8.0f}%{row.max_difference:>10.1e}"
        )
    return [*lines, "", *describe_environment(report.environment)]


def _prepare(
    scene: Scene, request: BenchRequest, folder: Path, console: Console
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that can be run, and the reasons why others cannot."""
    steps: dict[str, Step] = {"eager": eager_step(scene)}
    not_run = {name: f"left out by --skip {name}" for name in request.skip}
    if "compile" not in not_run:
        with console.stage("torch.compile"):
            try:
                steps["compile"] = compiled_step(scene)
            except Exception as error:  # a compiler that is missing or fails raises anything, from any depth
                not_run["compile"] = " ".join(str(error).split())[:160] or type(error).__name__
    with console.stage("our graphs"):
        steps["ours"] = our_step(scene, our_sessions(scene, folder, threads=request.threads))
    with console.stage("default export"):
        steps["ort-default"] = default_step(scene, folder / "default.onnx", threads=request.threads)
    return steps, not_run


def _row(name: str, seconds: dict[str, list[float]], *, gflop: float, peak: float, difference: float) -> Row:
    rate = gflop / median(seconds[name])
    return Row(
        variant=name,
        time=Spread.of(seconds[name]),
        times_eager=ratio(seconds["eager"], seconds[name]),
        times_ort_default=ratio(seconds["ort-default"], seconds[name]),
        gflop_per_s=rate,
        percent_of_peak=100 * rate / peak,
        max_difference=difference,
    )


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """That many threads for torch within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
