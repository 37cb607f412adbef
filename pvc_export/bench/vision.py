"""Five ways to run one streaming vision step, side by side: one new frame after W - 1 past ones, every slot in use.

    eager        the PyTorch reference, its state concatenated frame by frame
    compile      the same call under torch.compile
    ort-default  the baseline without this project: the step exported by torch with default options, with the window as
                 an input and, shifted, as an output; ONNX Runtime with its defaults
    ours         trunk, temporal and compressor graphs with a ring, as PVCStream runs them
    int8         the same with int8 matmuls, as by --int8 vision

The variants are in vision_variants.py, and their comparison is in compare.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from engines.terminal import one_of

from ..terminal.console import Console
from .baselines import gemm_peak, int8
from .compare import FEW_BITS_LIMIT, LIMIT, Bench, Comparison, Report, Step, Timed, Variant, count_flops
from .rounds import describe_environment
from .vision_variants import SIZES, Scene, compiled_step, default_step, eager_step, our_sessions, our_step

STEP = "frame"


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionBench(Bench):
    """The vision benchmark. Raises ValueError for unknown names and invalid numbers."""

    program: ClassVar[str] = "pvc-export bench"
    skippable = ("compile", "int8")

    size: str = "mid"
    window: int = 16

    def __post_init__(self) -> None:
        Bench.__post_init__(self)  # not super(), which does not work in a dataclass with slots
        one_of("--size", self.size, SIZES)
        if self.window < 2:
            raise ValueError(f"--window is {self.window}, expected at least 2: streaming needs a past frame")

    def prepare(self, folder: Path, console: Console) -> Comparison:
        with console.stage("fill the window"):
            scene = Scene.render(SIZES[self.size], window=self.window)
        eager = eager_step(scene)
        compiled = self.unless_skipped("compile", lambda: _compiled(scene, console))
        with console.stage("default export"):
            default = default_step(scene, folder / "default.onnx", threads=self.threads)
        with console.stage("our graphs"):
            ours = our_step(scene, our_sessions(scene, folder / "ours", threads=self.threads))
        int8 = self.unless_skipped("int8", lambda: self._int8(scene, folder / "int8", console))
        gflop = count_flops(eager) / 1e9
        return Comparison(
            variants={
                "eager": {STEP: Timed(run=eager)},
                "compile": compiled,
                "ort-default": {STEP: Timed(run=default)},
                "ours": {STEP: Timed(run=ours)},
                "int8": int8,
            },
            steps={STEP: Step(work=gflop, peak=gemm_peak())},
            facts={"gflop": gflop},
        )

    def _int8(self, scene: Scene, folder: Path, console: Console) -> Variant:
        with console.stage("our graphs in int8"):
            sessions = our_sessions(scene, folder, threads=self.threads, quantization=int8("vision"))
        return {STEP: Timed(run=our_step(scene, sessions), limit=FEW_BITS_LIMIT)}

    def to_json(self, report: Report) -> dict[str, Any]:
        rows = [asdict(row) | {"gflop_per_s": row.rate} for row in report.rows]
        for row in rows:
            del row["step"], row["rate"]
        measured = {"rows": rows, "peak_gflop_per_s": report.peaks[STEP], "environment": report.environment}
        return {"request": asdict(self), "limit": LIMIT, **report.facts, **measured}

    def describe(self, report: Report) -> list[str]:
        return [
            f"streaming vision step, size {self.size}, window {self.window}, random weights, float32, "
            f"{report.facts['gflop']:.1f} GFLOP; {self.rounds} interleaved rounds",
            report.peak_line(STEP),
            "",
            *report.table(STEP, digits=0),
            "",
            *describe_environment(report.environment),
        ]


def _compiled(scene: Scene, console: Console) -> Variant | str:
    """The variant, or the reason why it cannot be made."""
    with console.stage("torch.compile"):
        try:
            return {STEP: Timed(run=compiled_step(scene))}
        except Exception as error:  # a missing or failing compiler can raise anything
            return " ".join(str(error).split())[:160] or type(error).__name__
