"""pvc-export: trt | onnx | check | run | inspect | bench | doctor.

Exit codes: 0 ok, 2 usage, 3 parity failed, 4 environment, 5 build failed, 6 bad input (engines/errors.py).
Unusual: heavy packages are imported inside the commands, so that --help and doctor work on a machine without torch.
"""

from __future__ import annotations

import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from engines.errors import BackendUnavailable, PVCError, SpecError

from . import interrupt
from .console import Console
from .output import fail, print_json, system_error

if TYPE_CHECKING:
    from engines.bundle import Runtime
    from engines.clock import Clock
    from engines.ingest import Ingest
    from engines.spec import Precision

app = typer.Typer(
    help="Export a PVC video model to a streaming bundle, and prove that nothing was lost on the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[
    str, typer.Option("-m", "--model", help="'shapes' (trained), 'tiny', 'vision-8b' (random), or a folder.")
]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Bundle folder. Default: build/NAME.")]
FP16 = Annotated[bool, typer.Option("--fp16", help="float16 graphs with float32 islands.")]
BF16 = Annotated[bool, typer.Option("--bf16", help="bfloat16 graphs with float32 islands.")]
FP32 = Annotated[bool, typer.Option("--fp32", help="float32 graphs.")]
Window = Annotated[int, typer.Option(help="Frames that temporal attention sees, the current one included.")]
Context = Annotated[int, typer.Option(help="LLM rows that a stream can hold.")]
Streams = Annotated[int, typer.Option(help="Streams that one pass can serve.")]
Seed = Annotated[int | None, typer.Option(help="Of the random weights of tiny and vision-8b. Default: 0.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
Reference = Annotated[str | None, typer.Option("-m", "--model", help="Reference. Default: what the bundle names.")]
RUNTIMES = ("auto", "target", "cpu")
INGESTS = ("eager", "lazy")
CLOCKS = ("reanchor", "run-on")
BENCH_PARTS = ("vision", "language")
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by pvc-export trt or onnx.")]

EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors")
"""What a runtime without the exporter lacks."""


@app.command()
def trt(
    model: Model = "shapes",
    output: Out = None,
    fp16: FP16 = False,
    bf16: BF16 = False,
    fp32: FP32 = False,
    target: Annotated[str, typer.Option(help="What the engines are built for.")] = "rtx",
    window: Window = 8,
    context: Context = 2048,
    streams: Streams = 1,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Export, build TensorRT engines, check, and publish a bundle. float16 unless --bf16 or --fp32."""
    precision = _precision(default="fp16", fp16=fp16, bf16=bf16, fp32=fp32)
    _export(model, output, precision, target, window, context, streams, seed, as_json, engines=True)


@app.command()
def onnx(
    model: Model = "shapes",
    output: Out = None,
    fp16: FP16 = False,
    bf16: BF16 = False,
    fp32: FP32 = False,
    target: Annotated[str, typer.Option(help="What the graphs are spelled for.")] = "cpu",
    window: Window = 8,
    context: Context = 2048,
    streams: Streams = 1,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Export ONNX graphs without engines, check, and publish a bundle. float32 unless --fp16 or --bf16."""
    precision = _precision(default="fp32", fp16=fp16, bf16=bf16, fp32=fp32)
    _export(model, output, precision, target, window, context, streams, seed, as_json, engines=False)


@app.command()
def check(
    bundle: BundleFolder,
    model: Reference = None,
    as_json: Json = False,
) -> None:
    """Run a bundle beside the PyTorch reference and compare every output and cache row. Exit 3 if they differ."""
    from engines.errors import ParityError
    from engines.manifest import Manifest

    from .check import check_bundle
    from .models import load_reference

    console = Console(quiet=as_json)
    manifest = Manifest.load(bundle)
    with console.stage("load the reference"):
        loaded = load_reference(manifest, model)
    with console.stage("check against the reference") as (_, report):
        parity = check_bundle(bundle, loaded, progress=report)
    for line in parity.table():
        console.print(f"  {line}")
    if not parity.passed:
        if as_json:  # the report itself; the message goes to standard error only
            print_json(parity.to_json() | {"bundle": str(bundle)})
            print(f"ParityError: {parity.failure_text()}", file=sys.stderr)
            raise typer.Exit(ParityError.exit_code)
        raise ParityError(parity.failure_text())
    if as_json:
        print_json(parity.to_json() | {"bundle": str(bundle)})
    console.print(f"{parity.summary()} ({parity.precision}, computed in {parity.computed_in})")
    console.print(f"next: pvc-export run {shlex.quote(str(bundle))} --video FILE --ask 'What happens?'")


@app.command()
def run(
    bundle: BundleFolder,
    video: Annotated[Path | None, typer.Option(help="A video file.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; give it again for several.")] = None,
    ask: Annotated[
        str | None, typer.Option(help="The question. Where it says <image>, an image is; else they come first.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=0, help="Frames sampled evenly from the video; 0 takes every one. Default: 16.")
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(min=1, help="Tiles that an image is cut into at most. Default: 6, as PVC's evaluation."),
    ] = None,
    ingest: Annotated[
        str, typer.Option(help="eager (the LLM takes in each frame at once) or lazy (with the question).")
    ] = "eager",
    clock: Annotated[
        str | None, typer.Option(help="At the trained number of frames: reanchor (start anew with the last) or run-on.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    reference: Annotated[
        bool, typer.Option("--reference", help="Hold the text against the PyTorch reference.")
    ] = False,
    model: Reference = None,
    runtime: Annotated[
        str, typer.Option(help="auto, target (what the bundle was made for, or an error), or cpu (ONNX Runtime).")
    ] = "auto",
    trust_engines: Annotated[
        bool, typer.Option("--trust-engines", help="Load engines that another machine built. They are executable code.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stream a video file through a bundle, or show it images, and ask. With neither, just ask."""
    from .run import RunRequest, report_run
    from .run import run as run_request

    try:
        request = RunRequest(
            bundle=bundle,
            ask=ask,
            video=video,
            images=tuple(image or ()),
            frames=frames,
            max_new_tokens=max_new_tokens,
            tiles=tiles,
            ingest=cast("Ingest", _one_of("--ingest", ingest, INGESTS)),
            clock=cast("Clock", _one_of("--clock", clock, CLOCKS)) if clock is not None else None,
            runtime=cast("Runtime", _one_of("--runtime", runtime, RUNTIMES)),
            trust_engines=trust_engines,
            keep_frames=reference,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    opened, result = run_request(request, console := Console(quiet=as_json))
    report_run(console, request, opened, result, reference=reference, model_name=model, as_json=as_json)


def _one_of(option: str, name: str, known: tuple[str, ...]) -> str:
    """`name`, if it is known. Raises BadParameter with the nearest one."""
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise typer.BadParameter(f"{option} is '{name}', expected {', '.join(known)}{hint}")
    return name


@app.command()
def inspect(bundle: BundleFolder, as_json: Json = False) -> None:
    """Say what a bundle is: model, limits, graphs, state, engines, parity. Reads the manifest, runs nothing."""
    from dataclasses import asdict

    from engines.manifest import Manifest

    from .describe import describe

    manifest = Manifest.load(bundle)
    if as_json:
        print_json(asdict(manifest))
        return
    console = Console()
    for line in describe(manifest):
        console.print(line)


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Stream frames through a bundle.")] = None,
    part: Annotated[str | None, typer.Option(help="What to compare: vision or language. Default: vision.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="tiny, mid or half; of --part language tiny or 0.5b (8 GB). Default: mid, 0.5b."),
    ] = None,
    past: Annotated[int | None, typer.Option(min=1, help="LLM rows before the step. Default: 1024.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Frames in sight, the new one too. Default: 16.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds. Default: 7.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Variant to leave out: compile.")] = None,
    frames: Annotated[int | None, typer.Option(min=100, help="Frames to stream through BUNDLE. Default: 500.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="1 measures CPU time, more measure wall time.")] = 1,
    as_json: Json = False,
) -> None:
    """Compare torch, torch.compile, ONNX Runtime and our graphs on one streaming step; or time a bundle.

    The step is a frame through the vision side, or, with --part language, a decoded token and an ingested frame.
    With one thread the clock is this process's CPU time, which other programs hardly change.
    """
    console = Console(quiet=as_json)
    if bundle is not None:
        given = {"--part": part, "--size": size, "--past": past, "--window": window, "--rounds": rounds, "--skip": skip}
        _refuse(given, "a BUNDLE is measured as it is: {} cannot be given with it")
        from .bench_bundle import bench_bundle, describe_stream

        stream = bench_bundle(bundle, num_frames=frames or 500, threads=threads, console=console)
        _print_report(stream.to_json(), describe_stream(stream), console, as_json)
        return
    if frames is not None:
        raise typer.BadParameter("--frames needs a BUNDLE to stream them through")
    from .bench import BenchRequest, require_known, table
    from .bench import bench as compare
    from .bench_language import LanguageRequest, bench_language, language_table

    request: BenchRequest | LanguageRequest
    try:
        require_known("part", part or "vision", BENCH_PARTS)
        if part == "language":
            _refuse({"--window": window, "--skip": skip}, "{} cannot be given with --part language")
            request = LanguageRequest(size=size or "0.5b", past=past or 1024, rounds=rounds or 7, threads=threads)
        else:
            _refuse({"--past": past}, "{} needs --part language")
            request = BenchRequest(
                size=size or "mid", window=window or 16, rounds=rounds or 7, threads=threads, skip=tuple(skip or ())
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if isinstance(request, LanguageRequest):
        measured = bench_language(request, console=console)
        _print_report(measured.to_json(), language_table(measured), console, as_json)
        return
    report = compare(request, console=console)
    _print_report(report.to_json(), table(report), console, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can export, build and run, and what is missing."""
    from dataclasses import asdict

    from .doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    console = Console()
    for finding in findings:
        console.print(f"{'ok' if finding.ok else '--':<3} {finding.name:<24} {finding.detail}")
        if not finding.ok:
            console.print(f"    {'':<24} -> {finding.remedy}")


def _refuse(options: dict[str, Any], message: str) -> None:
    """A usage error that names the options that were given, if any were."""
    if wrong := [name for name, value in options.items() if value not in (None, [])]:
        raise typer.BadParameter(message.format(", ".join(wrong)))


def _precision(*, default: Precision, **given: bool) -> Precision:
    chosen = [name for name in ("fp16", "bf16", "fp32") if given[name]]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} contradict each other; give one")
    return cast("Precision", chosen[0]) if chosen else default


def _export(
    model: str, output: Path | None, precision: Precision, target_name: str, window: int, context: int, streams: int,
    seed: int | None, as_json: bool, *, engines: bool,
) -> None:  # fmt: skip
    from dataclasses import asdict, replace

    from engines.spec import StreamLimits
    from engines.target import load_target

    try:
        target = load_target(target_name)
        limits = StreamLimits(window=window, context=context, streams=streams)
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error
    if precision not in target.precisions:
        raise typer.BadParameter(
            f"target '{target.name}' does not compute {precision}; it has {', '.join(target.precisions)}"
        )
    if engines and target.builder is None:
        raise typer.BadParameter(f"target '{target.name}' runs ONNX files and has no engines; use: pvc-export onnx")
    if not engines:
        target = replace(target, engine_graphs=(), builder=None)

    from .export import ExportRequest, export
    from .models import RANDOM, load_model

    if seed is not None and model not in RANDOM:
        raise typer.BadParameter(
            f"--seed makes random weights, and '{model}' has its own; it goes with -m {' or -m '.join(RANDOM)}"
        )
    console = Console(quiet=as_json)
    out = output or Path("build") / Path(model).resolve().name
    console.print(
        f"{model} -> {out}   {precision}, target {target.name}, window {window}, context {context}, streams {streams}"
    )
    with console.stage("load the model") as (stage, _):
        loaded = load_model(model, seed=seed or 0)
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        origin = f", random (seed {loaded.source.seed})" if loaded.source.random_weights else ""
        stage.note = f"{count / 1e6:.1f} M parameters{origin}"
    parity = export(loaded, ExportRequest(out=out, target=target, precision=precision, limits=limits), console=console)
    if as_json:
        stages = [asdict(stage) for stage in console.stages]
        print_json(
            {
                "bundle": str(out),
                "precision": precision,
                "target": target.name,
                "parity": parity.receipt(),
                "stages": stages,
            }
        )
    console.print(f"published {out}")
    console.print(f"next: pvc-export run {shlex.quote(str(out))} --video FILE --ask 'What happens?'")


def _print_report(data: dict[str, Any], lines: list[str], console: Console, as_json: bool) -> None:
    if as_json:
        print_json(data)
    for line in lines:
        console.print(line)


def main() -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    interrupt.install()
    try:
        app()
    except PVCError as error:
        if interrupt.exit_code() is None:
            raise SystemExit(fail(error)) from None
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_PACKAGES:
            raise
        text = f"this command needs the package {error.name}, which is not installed. It is part of the extra 'export'."
        raise SystemExit(fail(BackendUnavailable(f"{text} Install it: pip install -e '.[export]'"))) from None
    except OSError as error:
        if interrupt.exit_code() is None:
            raise SystemExit(fail(system_error(error))) from None
    except BaseException:
        # After a signal, whatever surfaces is its echo: libraries turn a KeyboardInterrupt into errors of their own.
        if interrupt.exit_code() is None:
            raise
    if (code := interrupt.exit_code()) is not None:
        print(f"interrupted; {interrupt.outcome()}", file=sys.stderr)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
