"""The commands that make something: trt, onnx, kit, triton; and plan, which estimates it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from engines.clock import Clock
from engines.spec import Fusable, Precision
from engines.terminal import one_of

from .terminal import options as opt
from .terminal.limits import AskedLimits
from .terminal.quantization import FewBits
from .terminal.usage import Made, one_precision, usage_errors


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    _export(
        app, "trt", precision="fp16", target="rtx", short="Export, build TensorRT engines, check, publish a bundle.",
        summary="Export, build TensorRT engines, check, and publish a bundle. float16 unless --bf16 or --fp32.",
    )  # fmt: skip
    _export(
        app, "onnx", precision="fp32", target="cpu", short="The same without engines, for ONNX Runtime.",
        summary="Export ONNX graphs without engines, check, and publish a bundle. float32 unless --fp16 or --bf16.",
    )  # fmt: skip
    _export(
        app, "kit", precision="fp16", target="jetson-orin-jp62", 
        short="A folder to copy to a Jetson, which builds its own engines.",
        summary="Export ONNX graphs and everything a device needs to build, check and run them: one folder to copy.",
    )  # fmt: skip
    app.command(short_help="Estimate an export's size, memory and time, and which devices it fits.")(plan)
    app.command(short_help="Make a Triton Inference Server model repository from a bundle.")(triton)


def _export(app: typer.Typer, name: Made, *, precision: Precision, target: str, short: str, summary: str) -> None:
    """Register `trt`, `onnx` or `kit`: the same options with different defaults."""

    @app.command(name, help=summary, short_help=short)
    def command(
        model: opt.Model = "shapes",
        output: opt.Out = None,
        fp16: opt.FP16 = False,
        bf16: opt.BF16 = False,
        fp32: opt.FP32 = False,
        target: opt.Target = target,
        window: opt.Window = None,
        context: opt.Context = None,
        memory: opt.Memory = None,
        streams: opt.Streams = 1,
        clock: opt.ClockChoice = "run-on",
        island: opt.Island = None,
        unfuse: opt.Unfuse = None,
        int4: opt.Int4 = None,
        int8: opt.Int8 = None,
        int4_block: opt.Int4Block = None,
        quantize_by: opt.QuantizeBy = "search",
        calibrate: opt.Calibrate = None,
        calibrate_by: opt.CalibrateBy = None,
        golden: opt.Golden = False,
        seed: opt.Seed = None,
        mapping: opt.MappingFile = None,
        as_json: opt.Json = False,
    ) -> None:
        chosen = one_precision(fp16=fp16, bf16=bf16, fp32=fp32) or precision
        with usage_errors():
            kept = cast("Clock", one_of("--clock", clock, get_args(Clock)))
            parts = tuple(cast("Fusable", one_of("--unfuse", part, get_args(Fusable))) for part in unfuse or ())
        from .commands.export import export_command

        export_command(
            model=model, output=output, precision=chosen, target_name=target, clock=kept, islands=tuple(island or ()),
            asked=AskedLimits(window=window, context=context, streams=streams, memory=memory),
            few_bits=FewBits(int4, int8, int4_block, quantize_by, calibrate, calibrate_by), seed=seed, mapping=mapping,
            made=name, golden=golden, unfused=parts, as_json=as_json,
        )  # fmt: skip


def plan(
    model: opt.PlannedModel = "shapes",
    fp16: opt.FP16 = False,
    bf16: opt.BF16 = False,
    fp32: opt.FP32 = False,
    target: opt.Target = "rtx",
    window: opt.Window = None,
    context: opt.Context = None,
    memory: opt.Memory = None,
    streams: opt.Streams = 1,
    clock: opt.ClockChoice = "run-on",
    island: opt.Island = None,
    int4: opt.Int4 = None,
    int8: opt.Int8 = None,
    int4_block: opt.Int4Block = None,
    mapping: opt.MappingFile = None,
    as_json: opt.Json = False,
) -> None:
    """Estimate what an export with these options takes, and which devices its bundle fits. Reads no weights.

    Prints bytes of each graph, engine and stream cache, and memory and time of every step. The default is float16 for
    a target with engines and float32 for one without.
    """
    chosen = one_precision(fp16=fp16, bf16=bf16, fp32=fp32)
    with usage_errors():
        kept = cast("Clock", one_of("--clock", clock, get_args(Clock)))
    from .commands.plan import plan_command

    plan_command(
        model=model, precision=chosen, target_name=target, clock=kept,
        asked=AskedLimits(window=window, context=context, streams=streams, memory=memory),
        islands=tuple(island or ()), few_bits=FewBits(int4, int8, int4_block), mapping=mapping, as_json=as_json,
    )  # fmt: skip


def triton(
    bundle: opt.BundleFolder,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The repository. Default: build/triton.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the repository. Default: the bundle's.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Sequences served at the same time, each with its own caches.")] = 8,
    idle: Annotated[float, typer.Option(min=0.001, help="Seconds after which a silent sequence is freed.")] = 60.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, unless a request sets it.")] = 64,
    trust_engines: opt.TrustEngines = False,
    as_json: opt.Json = False,
) -> None:
    """Write REPOSITORY/NAME: config.pbtxt, a Python backend, the bundle and the runtime's source, ready for a server.

    A Triton sequence is a stream: its requests carry frames and questions, and END frees it. No server is needed here.
    """
    from .commands.triton import triton_command

    triton_command(
        bundle=bundle, repository=output, name=name, slots=slots, idle_s=idle, max_new_tokens=max_new_tokens,
        trust_engines=trust_engines, as_json=as_json,
    )  # fmt: skip
