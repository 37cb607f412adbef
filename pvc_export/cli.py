"""pvc-export: the command line. Its commands and their groups: terminal/groups.py.

Exit codes: 0 ok, 2 usage, 3 parity failed, 4 environment, 5 build failed, 6 bad input (engines/errors.py).
Heavy packages are imported inside the commands, so that --help and doctor work on a machine without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from engines.bundle import Runtime
from engines.clock import Clock
from engines.errors import BackendUnavailable, PVCError
from engines.ingest import Ingest
from engines.spec import GRAPH_NAMES
from engines.terminal import fail, one_of

from . import cli_export
from .terminal import graph_options as of_graph
from .terminal import options as opt
from .terminal.groups import EPILOG, GroupedCommands
from .terminal.interrupt import outcome, signals
from .terminal.usage import refuse, usage_errors

app = typer.Typer(
    cls=GroupedCommands,
    help="Export a PVC video model to a streaming bundle, and prove that nothing was lost on the way.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EXPORT_PACKAGES = ("jinja2", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors")
"""Packages missing from an installation without the extra `export`."""


cli_export.register(app)


@app.command(short_help="Compare a bundle with the PyTorch reference, output by output.")
def check(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder made by pvc-export.")] = None,
    model: opt.Reference = None,
    mapping: opt.MappingFile = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="On failure, export again with float32 islands until it passes.")
    ] = False,
    by_layer: opt.ByLayer = None,
    golden: opt.AgainstGolden = False,
    report: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML, for a CI system.")] = None,
    reference: of_graph.Module = None,
    graph: of_graph.GraphFile = None,
    state: of_graph.StatePairs = None,
    no_state: of_graph.NoStates = None,
    size: of_graph.Sizes = None,
    bound: of_graph.Bounds = None,
    batch_axis: of_graph.BatchAxis = None,
    tolerance: of_graph.Tolerances = None,
    steps: of_graph.Steps = None,
    seed: Annotated[int | None, typer.Option(help="With --graph: seed for the random inputs. Default: 0.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Compare every output and cache row of a bundle with the PyTorch reference. Exit 3 if they differ.

    With --reference and --graph: compare any stateful ONNX graph with any torch module. Exit 6 if nothing is wrong but
    the check lacks the meaning of an input or a state.
    """
    if golden:
        from .commands.golden import check_golden_command

        given = bisect or model or mapping or by_layer is not None or report or junit or reference or graph
        check_golden_command(bundle, alone=not given, as_json=as_json)
    from .commands.check import Wanted, check_any_graph, check_one_bundle

    wanted = Wanted(bisect=bisect, by_layer=by_layer, as_json=as_json, page=report, xml=junit)
    if graph is None or reference is None:
        others: dict[str, object] = {
            "--reference": reference, "--graph": graph, "--state": state, "--size": size, "--bound": bound,
            "--no-state": no_state, "--batch-axis": batch_axis, "--tolerance": tolerance, "--steps": steps,
            "--seed": seed,
        }  # fmt: skip
        why = "{} is for a graph of your own, which needs both --reference and --graph"
        refuse(others, why)
        if bundle is None:
            raise typer.BadParameter("name a BUNDLE, or --reference and --graph")
        check_one_bundle(bundle, model, mapping, wanted)
    of_bundles = {
        "BUNDLE": bundle,
        "--model": model,
        "--mapping": mapping,
        "--bisect": bisect or None,
        "--by-layer": by_layer,
    }
    refuse(of_bundles, "{} cannot be given with --graph")
    from .foreign import NUM_STEPS, ForeignRequest

    with usage_errors():
        request = ForeignRequest(
            reference=reference, graph=graph, states=tuple(state or ()), steps=NUM_STEPS if steps is None else steps,
            sizes=tuple(size or ()), bounds=tuple(bound or ()), seed=seed or 0, no_states=tuple(no_state or ()),
            batch_axis=batch_axis, tolerances=tuple(tolerance or ()),
        )  # fmt: skip
    check_any_graph(request, wanted)


@app.command(short_help="Compare our reference with the released model's own code.")
def compare(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder.")],
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="File made by record_original.py.")],
    mapping: opt.MappingFile = None,
    save_mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the mapping that reproduces the recording, for --mapping."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Compare our PyTorch reference with a recording of the released model's own code. Exit 3 if they differ.

    That code runs elsewhere: copy pvc_ref/checkpoint/record_original.py there. If tensor names are ambiguous, every
    possible mapping is tried.
    """
    from .commands.compare import compare_command

    compare_command(folder, recording, mapping=mapping, save_mapping=save_mapping, as_json=as_json)


@app.command(short_help="Plant known defects and show that the check catches each.")
def prove(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Plant the defect of --only in a copy of this bundle, at -o."),
    ] = None,
    model: opt.ModelToBreak = None,
    only: Annotated[list[str] | None, typer.Option(help="Plant only this defect. Repeatable.")] = None,
    graph: Annotated[
        list[str] | None, typer.Option(help=f"Plant only defects of this graph: {', '.join(GRAPH_NAMES)}. Repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="With BUNDLE: the broken copy.")] = None,
    seed: opt.Seed = None,
    mapping: opt.MappingFile = None,
    as_json: opt.Json = False,
) -> None:
    """Plant known defects in bundles of a model and show that the check catches each. Exit 3 if one is missed.

    With BUNDLE: only break a copy of it, to see what `pvc-export check` says about that defect.
    """
    if bundle is not None:
        from .commands.plant import plant_command, plantable

        refuse(
            {"--model": model, "--graph": graph, "--seed": seed, "--mapping": mapping}, "{} cannot be given with BUNDLE"
        )
        if output is None:
            raise typer.BadParameter("name the broken copy: -o FOLDER")
        with usage_errors():
            defect = plantable(only or ())
        plant_command(bundle, defect, output, as_json=as_json)
        return
    refuse({"--output": output}, "{} is for the broken copy of a BUNDLE, which is not given")
    from .commands.prove import defect_names, names_in, prove_command

    with usage_errors():
        chosen = [one_of("--only", name, defect_names()) for name in only or ()]
        chosen += names_in([one_of("--graph", name, GRAPH_NAMES) for name in graph or ()])
        chosen = chosen or list(defect_names())
    prove_command(model or "shapes", chosen, seed=seed or 0, mapping=mapping, as_json=as_json)


@app.command(short_help="Stream a video or images through a bundle and ask a question.")
def run(
    bundle: opt.BundleFolder,
    video: Annotated[
        str | None,
        typer.Option(
            help="A video file, one at http://, a folder of pictures, a pattern such as frames/%03d.png, an animation."
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file. Repeatable.")] = None,
    ask: Annotated[
        str | None, typer.Option(help="The question. <image> marks where an image goes; without it, images come first.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, help="Frame rate of a raw stream such as a .h264 file, or of pictures (default: 25)."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=0, help="Frames to sample evenly in time from the video; 0 = all. Default: 16.")
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(min=1, help="Most tiles an image is cut into. Default: 6, as in PVC's evaluation.")
    ] = None,
    ingest: Annotated[
        str, typer.Option(help="eager (the LLM reads each frame at once) or lazy (when a question comes).")
    ] = "eager",
    clock: opt.AfterTraining = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    reference: Annotated[
        bool, typer.Option("--reference", help="Compare the text with the PyTorch reference's. Exit 3 if it differs.")
    ] = False,
    model: opt.Reference = None,
    mapping: opt.MappingFile = None,
    runtime: opt.RuntimeChoice = "auto",
    trust_engines: opt.TrustEngines = False,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Stream a video or images through a bundle and ask a question. With neither, just ask."""
    from .commands.run import RunRequest, run_command

    with usage_errors():
        request = RunRequest(
            bundle=bundle, ask=ask, video=video, images=tuple(image or ()), fps=fps, frames=frames,
            tiles=tiles,
            ingest=cast("Ingest", one_of("--ingest", ingest, get_args(Ingest))),
            clock=cast("Clock", one_of("--clock", clock, get_args(Clock))) if clock is not None else None,
            runtime=cast("Runtime", one_of("--runtime", runtime, get_args(Runtime))),
            max_new_tokens=max_new_tokens, trust_engines=trust_engines, threads=threads, keep_frames=reference,
        )  # fmt: skip
    run_command(request, model_name=model, mapping=mapping, as_json=as_json)


@app.command(short_help="Ask about every video in a folder; continues after an interruption.")
def batch(
    bundle: opt.BundleFolder,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with videos; subfolders count.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The table: one JSON line per video.")],
    ask: Annotated[
        list[str] | None, typer.Option(help="A question about each video. Default: what happens. Repeatable.")
    ] = None,
    frames: Annotated[int, typer.Option(min=0, help="Frames sampled evenly in time from each; 0 = all.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    clock: opt.AfterTraining = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; with --ray, in the whole cluster.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Use a Ray cluster: auto, an address, or local to start one here."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Retry videos that could not be read.")] = False,
    runtime: opt.RuntimeChoice = "auto",
    trust_engines: opt.TrustEngines = False,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Ask about every video in a folder, one row per video. After an interruption, the same command continues.

    A video that cannot be read becomes a row with its error. A video that has changed is asked about again.
    """
    from .archive.job import Job
    from .commands.batch import DEFAULT_QUESTION, Where, batch_command

    with usage_errors():
        job = Job(
            bundle=bundle.absolute(), folder=folder.absolute(), questions=tuple(ask or [DEFAULT_QUESTION]),
            frames=frames, max_new_tokens=max_new_tokens,
            clock=cast("Clock", one_of("--clock", clock, get_args(Clock))) if clock is not None else None,
            runtime=cast("Runtime", one_of("--runtime", runtime, get_args(Runtime))),
            trust_engines=trust_engines, threads=threads,
        )  # fmt: skip
    batch_command(job, Where(workers=workers, ray=ray), output=output, retry=retry, as_json=as_json)


@app.command(short_help="Describe a bundle or a checkpoint; runs nothing.")
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A bundle, or a checkpoint as -m takes it.")],
    suggest_mapping: Annotated[
        bool,
        typer.Option("--suggest-mapping", help="Print a mapping of a checkpoint's tensors, null where unknown."),
    ] = False,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Print a checkpoint's names, shapes, dtypes and config.json; no weights, no paths."
        ),
    ] = False,
    mapping: opt.MappingFile = None,
    as_json: opt.Json = False,
) -> None:
    """Describe a bundle (model, limits, graphs, state, engines, parity) or a checkpoint. Runs nothing.

    For a checkpoint: sizes, and how tensors with unusual names are interpreted. Exit 6 if it does not load.
    """
    from .commands.inspect import inspect_command, is_bundle

    if is_bundle(folder):
        options = {"--suggest-mapping": suggest_mapping or None, "--share": share or None, "--mapping": mapping}
        refuse(options, "{} is for a checkpoint, and this folder is a bundle")
        inspect_command(folder, as_json=as_json)
        return
    from .commands.inspect_checkpoint import checkpoint_command, share_command, suggest_command

    if suggest_mapping + share + (mapping is not None) > 1:
        raise typer.BadParameter("--suggest-mapping, --share and --mapping are for one thing each; give one")
    if suggest_mapping:
        suggest_command(folder)
    elif share:
        share_command(folder)
    else:
        checkpoint_command(folder, mapping=mapping, as_json=as_json)


@app.command(short_help="Time our graphs next to torch and ONNX Runtime; or time a bundle.")
def bench(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Stream frames through a bundle.")] = None,
    part: Annotated[str | None, typer.Option(help="What to compare: vision or language. Default: vision.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="tiny, mid or half; with --part language tiny or 0.5b (8 GB). Default: mid, 0.5b."),
    ] = None,
    past: Annotated[int | None, typer.Option(min=1, help="LLM rows before the step. Default: 1024.")] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Frames that attention sees, including the new one. Default: 16.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds. Default: 7.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Variant to leave out: compile, int8; with --part language int8, int4.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=100, help="Frames to stream through BUNDLE. Default: 500.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="1 measures CPU time, more measure wall time.")] = 1,
    as_json: opt.Json = False,
) -> None:
    """Time one streaming step in torch, torch.compile, ONNX Runtime and our graphs; or time a bundle.

    The step is a frame through the vision side or, with --part language, a decoded token and an ingested frame. With
    one thread the clock is this process's CPU time, which other programs hardly change.
    """
    from .commands.bench import bench_command

    given = {
        "--part": part, "--size": size, "--past": past, "--window": window, "--rounds": rounds, "--frames": frames,
        "--skip": tuple(skip or ()) or None,
    }  # fmt: skip
    bench_command(bundle, given, threads=threads, as_json=as_json)


@app.command(short_help="Try every runtime on this machine's GPU, and write a report to send.")
def gpu(
    model: opt.Model = "shapes",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder. Default: build/gpu.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Try every runtime on this machine's NVIDIA GPU: bundles, ladder, golden self-test, times. One page, 10 minutes.

    A runtime that refuses the card is a result, and the run continues. Without a GPU it prints what it would have done.
    """
    from .commands.gpu import gpu_command

    gpu_command(model=model, output=output, as_json=as_json)


@app.command(short_help="What this machine can export, build and run, and what is missing.")
def doctor(target: opt.BuildsFor = None, as_json: opt.Json = False) -> None:
    """Show what this machine can export, build and run, and what is missing."""
    from .commands.doctor import doctor_command

    raise typer.Exit(doctor_command(target=target, as_json=as_json))


def main() -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    signals.install(second_kills=False)
    try:
        app()
    except BaseException as error:
        if (code := signals.exit_code) is not None:
            # Libraries turn a KeyboardInterrupt into other errors, so whatever surfaces here is the signal's.
            print(f"interrupted; {outcome()}", file=sys.stderr)
        elif isinstance(meant := _for_users(error), PVCError | OSError):
            code = fail(meant, as_json="--json" in sys.argv[1:])
        else:
            raise
        raise SystemExit(code) from None


def _for_users(error: BaseException) -> BaseException:
    """The error itself, or a clear one in place of a missing package of the exporter."""
    if not (isinstance(error, ModuleNotFoundError) and error.name in EXPORT_PACKAGES):
        return error
    return BackendUnavailable(
        f"this command needs the package {error.name}, which is not installed",
        cause="it is part of the extra 'export'",
        fix="pip install -e '.[export]'",
    )


if __name__ == "__main__":
    main()
