"""A plan's estimates next to measured values: bytes of the bundle, and peak memory of each step.

    python -m pvc_export.studies.plan [--only tiny] [--only wide]

Each export, `pvc-export onnx` or `trt` with its check, is a separate process. So is the run: ten frames and a question,
in ONNX Runtime on this CPU. Peaks are Linux's VmHWM of a stage. The models are `tiny`, two other random ones and the
bundled one; `wide` takes 1.3 GB of memory, and all of them take a quarter of an hour on two slow cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pvc_ref
from engines.spec import Precision, StreamLimits
from engines.target import load_target
from engines.threads import num_cores
from pvc_ref import PVC, PVCConfig
from pvc_ref.config import CompressorConfig
from pvc_ref.prompt import byte_tokenizer

from ..bench.rounds import describe_environment, environment
from ..bundles.export import ExportRequest
from ..plan.model import PlannedModel, planned_model
from ..plan.plan import Plan, make_plan

TINY = PVCConfig.preset("tiny")
MODELS = {
    "deep": replace(
        TINY,
        vision=replace(TINY.vision, num_layers=10, num_temporal_layers=4),
        llm=replace(TINY.llm, num_layers=6),
    ),
    "wide": replace(
        TINY,
        vision=replace(
            TINY.vision, image_size=224, hidden_size=256, num_heads=8, mlp_size=1024, num_layers=12,
            num_temporal_layers=4,
        ),
        compressor=CompressorConfig(num_tokens=16),
        llm=replace(
            TINY.llm, vocab_size=4000, hidden_size=256, num_heads=8, num_kv_heads=4, mlp_size=1024, num_layers=12
        ),
    ),
}  # fmt: skip
"""Random models, saved as checkpoint folders: `deep` has 10 and 6 narrow layers, `wide` has 111 M parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    model: str
    command: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.model} {self.command} {self.precision}"


CASES = (
    Case(model="tiny", command="onnx", precision="fp32"),
    Case(model="shapes", command="trt", precision="fp16"),
    Case(model="wide", command="onnx", precision="fp32"),
    Case(model="tiny", command="trt", precision="fp16"),
    Case(model="wide", command="trt", precision="fp16"),
    Case(model="shapes", command="onnx", precision="fp32"),
    Case(model="deep", command="onnx", precision="fp32"),
)
LIMITS = StreamLimits(window=8, context=512)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.plan", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=sorted({case.model for case in CASES}), help="only this model; repeatable"
    )
    args = parser.parse_args()
    print("| model | step | planned | measured | ratio |\n|---|---|---|---|---|")
    for case in CASES:
        if args.only and case.model not in args.only:
            continue
        for step, planned, measured in compare(case):
            sizes = f"{planned / 1e6:.2f} MB | {measured / 1e6:.2f} MB | {planned / measured:.3f}"
            print(f"| {case} | {step} | {sizes} |", flush=True)
    print("\n".join(describe_environment(environment("python -m pvc_export.studies.plan", threads=num_cores()))))


def compare(case: Case) -> Iterator[tuple[str, int, int]]:
    """Yield each step's name, planned bytes and measured bytes."""
    with tempfile.TemporaryDirectory(prefix="pvc-plan-") as name:
        folder = Path(name)
        model, bundle = case.model, folder / "bundle"
        if model in MODELS:
            pvc_ref.save(PVC.random(MODELS[model], seed=0), folder / "model", tokenizer=byte_tokenizer())
            model = str(folder / "model")
        plan = plan_of(case, planned_model(model), bundle)
        made = _command(
            "pvc_export.cli", case.command, "-m", model, f"--{case.precision}", "-o", str(bundle), "--json",
            "--window", str(LIMITS.window), "--context", str(LIMITS.context),
        )  # fmt: skip
        yield "bundle", plan.bundle.total, sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        peaks = peaks_of(json.loads(made)["stages"])
        peaks["run"] = int(_command("pvc_export.studies.stream_peak", str(bundle)))
        for step, peak in peaks.items():
            yield step, plan.costs[step].peak, peak


def peaks_of(stages: list[dict[str, Any]]) -> dict[str, int]:
    """Return the largest peak of each step's stages, by the step's name in a plan."""
    peaks: dict[str, int] = {}
    for stage in stages:
        step = {"load": "export"}.get(word := stage["name"].split()[0], word)
        peaks[step] = max(peaks.get(step, 0), cast(int, stage["peak_bytes"]))
    return peaks


def plan_of(case: Case, model: PlannedModel, bundle: Path) -> Plan:
    target = load_target("rtx" if case.command == "trt" else "cpu")
    request = ExportRequest(out=bundle, target=target, precision=case.precision, limits=LIMITS)
    return make_plan(model, request)


def _command(module: str, *args: str) -> str:
    return subprocess.run([sys.executable, "-m", module, *args], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
