"""Three ways to run the LLM in a stream, side by side: one decoded token, and one frame ingested, behind P past rows.

    eager        the reference in PyTorch, its cache joined step by step; logits of the last row in either step
    ort-default  what one gets without us: the decoder exported by torch with default options, its cache an input and,
                 longer, an output, logits of every row; ONNX Runtime with its defaults
    ours         embed, llm and head graphs with a linear cache: what PVCStream runs. Ingest computes no logits

Unusual: one artefact a variant, for both steps. As in bench.py nothing is compared that is not equal: the last row's
logits of every step of every round are held to eager's first; our ingest's are made for that, outside the clock. The
limits are measured in the same rounds: reading memory for decode, which must read every weight, and GEMM for ingest.
The variants themselves are in bench_language_variants.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..terminal.console import Console
from .flops import ingest_flops
from .language_variants import (
    NUM_FRAME_ROWS,
    READ_BYTES,
    SIZES,
    LanguageScene,
    Timed,
    default_variant,
    eager_variant,
    our_language_model,
    our_language_sessions,
    our_variant,
    read_steps,
)
from .rounds import Spread, describe_environment, environment, interleave, ratio
from .vision import LIMIT, TITLES, difference, require_known, torch_threads
from .vision_variants import GEMM_SIZE, gemm_steps

UNITS = {"decode": "GB/s", "ingest": "GFLOP/s"}
"""Of each step's rate and its limit."""
Key = tuple[str, str]
"""Step and variant, or step and the library that measures its limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageRequest:
    """What to measure. Raises ValueError for a size that is unknown and a past that the model cannot hold."""

    size: str = "0.5b"
    past: int = 1024
    rounds: int = 7
    threads: int = 1

    def __post_init__(self) -> None:
        require_known("size", self.size, SIZES)
        most = SIZES[self.size].llm.max_positions - NUM_FRAME_ROWS
        if not 1 <= self.past <= most:
            raise ValueError(f"--past {self.past}: expected 1 to {most}, or a frame would not fit behind it")

    def command(self) -> str:
        return (
            f"pvc-export bench --part language --size {self.size} --past {self.past} --rounds {self.rounds} "
            f"--threads {self.threads}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageRow:
    """One variant in one step. Ratios are medians over rounds of the ratio within a round.

    rate  GB/s of what decode must read, or GFLOP/s of what ingest must compute, whatever the variant does beyond it
    """

    step: str
    variant: str
    time: Spread
    times_eager: float
    times_ort_default: float
    rate: float
    percent_of_peak: float
    max_difference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageReport:
    """All rows, and what they were measured with. `peaks` has, for each step, the limit that each library reaches.

    context        rows that our cache has room for
    decode_bytes   weights of layers, norm and head, and the past keys and values: read once a token
    ingest_gflop   products of the layers, without the head
    """

    rows: tuple[LanguageRow, ...]
    request: LanguageRequest
    context: int
    decode_bytes: dict[str, int]
    ingest_gflop: float
    peaks: dict[str, dict[str, float]]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limit": LIMIT, "units": UNITS}


def bench_language(request: LanguageRequest, *, console: Console | None = None) -> LanguageReport:
    """Measure both steps of every variant. Raises ParityError if one of them computes something else than eager."""
    console = console or Console(quiet=True)
    facts = environment(request.command(), threads=request.threads)
    with tempfile.TemporaryDirectory() as folder, torch_threads(request.threads), torch.no_grad():
        with console.stage("draw the weights, fill the past"):
            scene = LanguageScene.render(SIZES[request.size], num_past=request.past)
        steps = _prepare(scene, request, Path(folder), console)
        limits = {"decode": read_steps(), "ingest": gemm_steps()}
        # A line and no bar: a bar redraws from a thread of this process, whose CPU time is being measured.
        console.print(f"  measure, {request.rounds} interleaved rounds")
        seconds, differences = _measure(steps, limits, request)
    decode_bytes = {"weights": scene.decode_weight_bytes, "cache": scene.cache_bytes}
    gflop = ingest_flops(scene.model.config.llm, num_rows=NUM_FRAME_ROWS, num_past=request.past) / 1e9
    work = {"decode": sum(decode_bytes.values()) / 1e9, "ingest": gflop}
    limit_work = {"decode": READ_BYTES / 1e9, "ingest": 2e-9 * GEMM_SIZE**3}
    peaks = {
        step: {library: limit_work[step] / median(seconds[step, library]) for library in limits[step]} for step in UNITS
    }
    return LanguageReport(
        rows=tuple(
            _row(key, seconds, work=work[key[0]], peak=max(peaks[key[0]].values()), difference=differences[key])
            for key in steps
        ),
        request=request,
        context=scene.context,
        decode_bytes=decode_bytes,
        ingest_gflop=gflop,
        peaks=peaks,
        environment=facts,
    )


def language_table(report: LanguageReport) -> list[str]:
    """The report for people: each step with its limit, a line a variant, and with what."""
    request, megabytes = report.request, {name: count / 1e6 for name, count in report.decode_bytes.items()}
    lines = [
        f"language model, size {request.size}, {request.past} past rows, our cache for {report.context}; random "
        f"weights, float32, one artefact a variant; {request.rounds} interleaved rounds",
    ]
    heads = {
        "decode": (
            "decode: one token, through layers and head to its logits",
            f"reads {megabytes['weights']:.1f} MB of weights, {megabytes['cache']:.1f} MB of cache; memory read peak",
        ),
        "ingest": (
            f"ingest: {NUM_FRAME_ROWS} rows; logits of all in the default export, of the last in eager, none in ours",
            f"multiplies {report.ingest_gflop:.2f} GFLOP without logits; fp32 GEMM peak",
        ),
    }
    for step, unit in UNITS.items():
        peak = report.peaks[step]
        libraries = ", ".join(f"{name} {value:.0f}" for name, value in peak.items())
        title, limit = heads[step]
        lines += [
            "",
            title,
            f"{limit} {max(peak.values()):.0f} {unit} ({libraries})",
            f"{'':<30}{'ms':>9}{'quartiles':>18}{'x eager':>9}{'x default':>11}{unit:>9}{'of peak':>9}{'max diff':>10}",
        ]
        for row in report.rows:
            if row.step == step:
                quartiles = f"{row.time.q1_ms:.1f} - {row.time.q3_ms:.1f}"
                lines.append(
                    f"{TITLES[row.variant]:<30}{row.time.median_ms:>9.1f}{quartiles:>18}{row.times_eager:>9.2f}"
                    f"{row.times_ort_default:>11.2f}{row.rate:>9.1f}{row.percent_of_peak:>8.0f}%{row.max_difference:>10.1e}"
                )
    return [*lines, "", *describe_environment(report.environment)]


def _prepare(scene: LanguageScene, request: LanguageRequest, folder: Path, console: Console) -> dict[Key, Timed]:
    variants = {"eager": eager_variant(scene)}
    with console.stage("default export"):
        variants["ort-default"] = default_variant(scene, folder / "default.onnx", threads=request.threads)
    with console.stage("our graphs"):
        sessions = our_language_sessions(scene, folder, threads=request.threads)
        variants["ours"] = our_variant(scene, our_language_model(scene, sessions))
    return {(step, name): variant[step] for step in UNITS for name, variant in variants.items()}


def _measure(
    steps: Mapping[Key, Timed], limits: Mapping[str, Mapping[str, Callable[[], Any]]], request: LanguageRequest
) -> tuple[dict[Key, list[float]], dict[Key, float]]:
    """Seconds of every step and limit in every round, and the largest difference of every step, warm-up included."""
    everything = {key: timed.run for key, timed in steps.items()}
    everything |= {(step, library): run for step, limit in limits.items() for library, run in limit.items()}
    names = {f"{step}/{variant}": (step, variant) for step, variant in everything}
    expected = {step: steps[step, "eager"].run() for step in UNITS}
    differences = dict.fromkeys(steps, 0.0)

    def compare(name: str, result: Any) -> None:
        key = names[name]
        if key in steps:
            logits = steps[key].last_logits(result)
            differences[key] = max(differences[key], difference(logits, expected[key[0]], name=name))

    runs = {name: everything[key] for name, key in names.items()}
    interleave(runs, rounds=1, threads=request.threads, look=compare)  # warm up
    seconds = interleave(runs, rounds=request.rounds, threads=request.threads, look=compare)
    return {names[name]: values for name, values in seconds.items()}, differences


def _row(key: Key, seconds: Mapping[Key, list[float]], *, work: float, peak: float, difference: float) -> LanguageRow:
    step, variant = key
    rate = work / median(seconds[key])
    return LanguageRow(
        step=step,
        variant=variant,
        time=Spread.of(seconds[key]),
        times_eager=ratio(seconds[step, "eager"], seconds[key]),
        times_ort_default=ratio(seconds[step, "ort-default"], seconds[key]),
        rate=rate,
        percent_of_peak=100 * rate / peak,
        max_difference=difference,
    )
