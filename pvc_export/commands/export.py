"""`pvc-export trt` and `onnx`: from what was asked for to a published bundle."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import typer

from engines.errors import EXIT_DIFFERENT, SpecError
from engines.spec import Precision, StreamLimits
from engines.target import Target, load_target
from engines.terminal import print_json

from ..bundles.export import ExportRequest, export
from ..graphs.models import RANDOM, load_model
from ..terminal.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """The command line of an export, as it was given."""

    model: str
    output: Path | None
    precision: Precision
    target: str
    window: int
    context: int
    streams: int
    islands: tuple[str, ...]
    seed: int | None
    engines: bool
    as_json: bool


def export_command(ask: Ask) -> None:
    """Export, check and publish. Raises BadParameter for flags that contradict each other, before any work."""
    target, limits = _target(ask), _limits(ask)
    if ask.seed is not None and ask.model not in RANDOM:
        raise typer.BadParameter(
            f"--seed makes random weights, and '{ask.model}' has its own; it goes with -m {' or -m '.join(RANDOM)}"
        )
    if ask.islands and ask.precision == "fp32":
        raise typer.BadParameter("--island keeps a part in float32, and with --fp32 all of them are")
    console = Console(quiet=ask.as_json)
    out = ask.output or Path("build") / Path(ask.model).resolve().name
    console.print(
        f"{ask.model} -> {out}   {ask.precision}, target {target.name}, window {ask.window}, context {ask.context}, "
        f"streams {ask.streams}" + "".join(f", float32 {name}" for name in ask.islands)
    )
    with console.stage("load the model") as (stage, _):
        loaded = load_model(ask.model, seed=ask.seed or 0)
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        origin = f", random (seed {loaded.source.seed})" if loaded.source.random_weights else ""
        stage.note = f"{count / 1e6:.1f} M parameters{origin}"
    request = ExportRequest(out=out, target=target, precision=ask.precision, limits=limits, islands=ask.islands)
    parity = export(loaded, request, console=console)
    if ask.as_json:
        print_json(
            {
                "bundle": str(out),
                "precision": ask.precision,
                "target": target.name,
                "published": parity.passed,
                "parity": parity.receipt(),
                "faults": [asdict(fault) for fault in parity.faults()],
                "culprit": parity.culprit and parity.culprit.to_json(),
                "stages": [asdict(stage) for stage in console.stages],
            }
        )
    if not parity.passed:
        print(f"FAIL: {parity.failure_text()}\nNothing was published", file=sys.stderr)
        raise typer.Exit(EXIT_DIFFERENT)
    console.print(f"published {out}")
    console.print(f"next: pvc-export run {shlex.quote(str(out))} --video FILE --ask 'What happens?'")


def _target(ask: Ask) -> Target:
    try:
        target = load_target(ask.target)
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error
    if ask.precision not in target.precisions:
        raise typer.BadParameter(
            f"target '{target.name}' does not compute {ask.precision}; it has {', '.join(target.precisions)}"
        )
    if ask.engines and target.builder is None:
        raise typer.BadParameter(f"target '{target.name}' runs ONNX files and has no engines; use: pvc-export onnx")
    return target if ask.engines else replace(target, engine_graphs=(), builder=None)


def _limits(ask: Ask) -> StreamLimits:
    try:
        return StreamLimits(window=ask.window, context=ask.context, streams=ask.streams)
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error
