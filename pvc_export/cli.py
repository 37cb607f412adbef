"""pvc-export: trt | onnx | check | prove | run | inspect | bench | doctor.

Exit codes: 0 ok, 2 usage, 3 parity failed, 4 environment, 5 build failed, 6 bad input (engines/errors.py).
Unusual: heavy packages are imported inside the commands, so that --help and doctor work on a machine without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from engines.errors import BackendUnavailable, PVCError
from engines.terminal import did_you_mean, fail, print_json

from .terminal import interrupt
from .terminal.console import Console
from .terminal.output import system_error

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
Island = Annotated[
    list[str] | None, typer.Option("--island", help="A part of the model to keep in float32: trunk.layers.1.attn.")
]
Seed = Annotated[int | None, typer.Option(help="Of the random weights of tiny and vision-8b. Default: 0.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
Reference = Annotated[str | None, typer.Option("-m", "--model", help="Reference. Default: what the bundle names.")]
RUNTIMES = ("auto", "target", "cpu")
INGESTS = ("eager", "lazy")
CLOCKS = ("reanchor", "run-on")
BENCH_PARTS = ("vision", "language")
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by pvc-export trt or onnx.")]

EXPORT_PACKAGES = ("jinja2", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors")
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
    island: Island = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Export, build TensorRT engines, check, and publish a bundle. float16 unless --bf16 or --fp32."""
    precision = _precision(default="fp16", fp16=fp16, bf16=bf16, fp32=fp32)
    from .commands.export import Ask, export_command

    export_command(
        Ask(
            model=model, output=output, precision=precision, target=target, window=window, context=context,
            streams=streams, islands=tuple(island or ()), seed=seed, engines=True, as_json=as_json,
        )
    )  # fmt: skip


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
    island: Island = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Export ONNX graphs without engines, check, and publish a bundle. float32 unless --fp16 or --bf16."""
    precision = _precision(default="fp32", fp16=fp16, bf16=bf16, fp32=fp32)
    from .commands.export import Ask, export_command

    export_command(
        Ask(
            model=model, output=output, precision=precision, target=target, window=window, context=context,
            streams=streams, islands=tuple(island or ()), seed=seed, engines=False, as_json=as_json,
        )
    )  # fmt: skip


@app.command()
def check(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder made by pvc-export.")] = None,
    model: Reference = None,
    bisect: Annotated[
        bool,
        typer.Option("--bisect", help="On failure, export again with the islands that it asks for, until it passes."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write it as JUnit XML, for a CI system.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Of --graph: pkg.module:Model or FILE.py:Model, a torch module.")
    ] = None,
    graph: Annotated[Path | None, typer.Option(help="Any ONNX file with state, in place of a BUNDLE.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Of --graph: IN=OUT, IN=NEW@append:AXIS, ...@start:N. Once a pair.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="Of --graph: AXIS=N, or AXIS=A+B of other axes.")] = None,
    bound: Annotated[list[str] | None, typer.Option(help="Of --graph: INPUT=LOW:HIGH, what is drawn for it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of --graph: length of the stream. Default: 64.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of --graph: of what is drawn. Default: 0.")] = None,
    as_json: Json = False,
) -> None:
    """Run a bundle beside the PyTorch reference and compare every output and cache row. Exit 3 if they differ.

    With --reference and --graph: any ONNX graph with state beside any torch module.
    """
    from .commands.check import Wanted, check_any_graph, check_one_bundle

    wanted = Wanted(bisect=bisect, as_json=as_json, page=report, xml=junit)
    if graph is None or reference is None:
        others = {"--reference": reference, "--graph": graph, "--state": state, "--size": size, "--bound": bound}
        _refuse(others | {"--steps": steps, "--seed": seed}, "{} cannot be given without both --reference and --graph")
        if bundle is None:
            raise typer.BadParameter("name a BUNDLE, or --reference and --graph")
        check_one_bundle(bundle, model, wanted)
    of_bundles = {"BUNDLE": bundle, "--model": model, "--bisect": bisect or None}
    _refuse(of_bundles, "{} cannot be given with --graph")
    from .foreign import NUM_STEPS, ForeignRequest

    try:
        request = ForeignRequest(
            reference=reference, graph=graph, states=tuple(state or ()), steps=NUM_STEPS if steps is None else steps,
            sizes=tuple(size or ()), bounds=tuple(bound or ()), seed=seed or 0,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    check_any_graph(request, wanted)


@app.command()
def prove(
    model: Model = "shapes",
    only: Annotated[list[str] | None, typer.Option(help="Plant this defect alone; give it again for several.")] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Plant known defects into bundles of a model, and show that the check catches each. Exit 3 if one is missed."""
    from .commands.prove import defect_names, prove_command

    chosen = [_one_of("--only", name, defect_names()) for name in only or defect_names()]
    prove_command(model, chosen, seed=seed or 0, as_json=as_json)


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
    from .commands.run import RunRequest, report_run
    from .commands.run import run as run_request

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
        raise typer.BadParameter(
            f"{option} is '{name}', expected {', '.join(known)}. {did_you_mean(name, known)}".rstrip()
        )
    return name


@app.command()
def inspect(bundle: BundleFolder, as_json: Json = False) -> None:
    """Say what a bundle is: model, limits, graphs, state, engines, parity. Reads the manifest, runs nothing."""
    from dataclasses import asdict

    from engines.manifest import Manifest

    from .commands.inspect import describe

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
        from .bench.bundle import bench_bundle, describe_stream

        stream = bench_bundle(bundle, num_frames=frames or 500, threads=threads, console=console)
        _print_report(stream.to_json(), describe_stream(stream), console, as_json)
        return
    if frames is not None:
        raise typer.BadParameter("--frames needs a BUNDLE to stream them through")
    from .bench.language import LanguageRequest, bench_language, language_table
    from .bench.vision import BenchRequest, require_known, table
    from .bench.vision import bench as compare

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

    from .commands.doctor import examine

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


def _print_report(data: dict[str, Any], lines: list[str], console: Console, as_json: bool) -> None:
    if as_json:
        print_json(data)
    for line in lines:
        console.print(line)


def main() -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    interrupt.install()
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except PVCError as error:
        if interrupt.exit_code() is None:
            raise SystemExit(fail(error, as_json=as_json)) from None
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_PACKAGES:
            raise
        missing = BackendUnavailable(
            f"this command needs the package {error.name}, which is not installed",
            cause="it is part of the extra 'export'",
            fix="pip install -e '.[export]'",
        )
        raise SystemExit(fail(missing, as_json=as_json)) from None
    except OSError as error:
        if interrupt.exit_code() is None:
            raise SystemExit(fail(system_error(error), as_json=as_json)) from None
    except BaseException:
        # After a signal, whatever surfaces is its echo: libraries turn a KeyboardInterrupt into errors of their own.
        if interrupt.exit_code() is None:
            raise
    if (code := interrupt.exit_code()) is not None:
        print(f"interrupted; {interrupt.outcome()}", file=sys.stderr)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
