"""`pvc-export trt`, `onnx` and `kit`: from the options to a published bundle or a kit."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from engines.clock import Clock
from engines.errors import EXIT_DIFFERENT
from engines.spec import Fusable, Precision
from engines.target import Target, load_target
from engines.terminal import print_json

from ..bundles.calibrate import CalibrationRequest
from ..bundles.export import ExportRequest, export
from ..bundles.kit import make_kit
from ..graphs.models import RANDOM, load_model
from ..parity.report import ParityReport
from ..plan.budget import choose_limits
from ..plan.model import planned_model
from ..terminal.console import Console
from ..terminal.limits import AskedLimits
from ..terminal.quantization import FewBits, quantization_text
from ..terminal.usage import Made, usage_errors


def export_command(
    *, model: str, output: Path | None, precision: Precision, target_name: str, asked: AskedLimits, clock: Clock,
    islands: tuple[str, ...], few_bits: FewBits, seed: int | None, mapping: Path | None, made: Made,
    golden: bool, unfused: tuple[Fusable, ...], as_json: bool,
) -> None:  # fmt: skip
    """Export, check and publish. Raises BadParameter for flags that contradict each other, before any work."""
    target = chosen_target(target_name, precision, made=made)
    limits = asked.limits()
    if seed is not None and model not in RANDOM:
        raise typer.BadParameter(
            f"--seed is for random weights, but '{model}' has its own; use it with -m {' or -m '.join(RANDOM)}"
        )
    refuse_islands(islands, precision)
    refuse_to_unfuse(unfused, target_name)
    quantization = few_bits.of(target, streams=limits.streams)
    calibration = CalibrationRequest(clips=tuple(few_bits.clips or ()), method=few_bits.calibration_method)
    console = Console(quiet=as_json)
    name = Path(model).resolve().name
    out = output or Path("build") / (f"{name}-kit" if made == "kit" else name)
    request = ExportRequest(
        out=out, target=target, precision=precision, limits=limits, islands=islands, clock=clock,
        quantization=quantization, calibration=calibration, int8_states=few_bits.states, golden=golden,
        unfused=unfused,
    )  # fmt: skip
    budget = None
    if asked.memory is not None:
        budget = choose_limits(planned_model(model, mapping=mapping).model, request, asked)
        request = replace(request, limits=budget.limits)
    console.print(f"{model} -> {out}   {_asked_text(request)}")
    if budget is not None:
        console.print(str(budget))
    with console.stage("load the model") as (stage, _):
        loaded = load_model(model, seed=seed or 0, mapping=mapping, on_disk=True)
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        origin = f", random (seed {loaded.source.seed})" if loaded.source.random_weights else ""
        stage.note = f"{count / 1e6:.1f} M parameters{origin}"
    for line in loaded.renamed():
        console.print(f"  {line}")
    parity = (make_kit if made == "kit" else export)(loaded, request, console=console)
    if as_json:
        print_json(_result(parity, request, console) | ({} if budget is None else {"memory": budget.to_json()}))
    if not parity.passed:
        print(f"FAIL: {parity.failure_text()}\nNothing was published", file=sys.stderr)
        raise typer.Exit(EXIT_DIFFERENT)
    console.print(f"published {out}")
    folder = shlex.quote(str(out))
    on_device = f"copy {folder} to the device, and run there: ./build.sh (see its README.md)"
    run = f"pvc-export run {folder} --video FILE --ask 'What happens?'"
    console.print(f"next: {on_device if made == 'kit' else run}")


def _result(parity: ParityReport, request: ExportRequest, console: Console) -> dict[str, Any]:
    return {
        "bundle": str(request.out),
        "precision": request.precision,
        "target": request.target.name,
        "published": parity.passed,
        "parity": parity.receipt(),
        "faults": [asdict(fault) for fault in parity.faults()],
        "culprit": parity.culprit and parity.culprit.to_json(),
        "stages": [asdict(stage) for stage in console.stages],
    }


def _asked_text(request: ExportRequest) -> str:
    limits = request.limits
    return (
        f"{request.precision}, target {request.target.name}, window {limits.window}, context {limits.context}, "
        f"streams {limits.streams}, clock {request.clock}"
        + "".join(f", {quantization_text(part, how)}" for part, how in request.quantization.items())
        + "".join(f", {state} in int8" for state in request.int8_states)
        + "".join(f", float32 {name}" for name in request.islands)
        + "".join(f", {part} attention unfused" for part in request.unfused)
    )


def refuse_islands(islands: tuple[str, ...], precision: Precision) -> None:
    """Raise BadParameter for islands without effect."""
    if islands and precision == "fp32":
        raise typer.BadParameter("--island keeps a module in float32, but with --fp32 all of them are")


def refuse_to_unfuse(unfused: tuple[Fusable, ...], target_name: str) -> None:
    """Raise BadParameter for a target that fuses nothing anyway."""
    if unfused and load_target(target_name).builder is None:
        raise typer.BadParameter(
            f"--unfuse keeps a compiler from fusing attention, but target '{target_name}' has none: ONNX Runtime runs "
            "its graphs as written"
        )


def chosen_target(name: str, precision: Precision, *, made: Made) -> Target:
    """The target of that name, without engines unless they are built here. Raises BadParameter for what the target does
    not support."""
    with usage_errors():
        target = load_target(name)
    if precision not in target.precisions:
        raise typer.BadParameter(f"target '{name}' does not compute {precision}; it has {', '.join(target.precisions)}")
    if made != "onnx" and target.builder is None:
        raise typer.BadParameter(f"target '{name}' runs ONNX files and has no engines; use: pvc-export onnx")
    return target if made == "trt" else replace(target, engine_graphs=(), builder=None)
