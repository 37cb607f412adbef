"""Options and arguments shared by several commands, each with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("-m", "--model", help="'shapes' (trained), 'tiny', 'vision-8b' (random), or a folder.")
]
ModelToBreak = Annotated[
    str | None,
    typer.Option("-m", "--model", help="As for an export. Default: shapes. BUNDLE already has one."),
]
PlannedModel = Annotated[
    str,
    typer.Option(
        "-m", "--model", help="'shapes', a preset such as pvc-internvl2-8b, or a folder; config.json is enough."
    ),
]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Bundle folder. Default: build/NAME.")]
FP16 = Annotated[bool, typer.Option("--fp16", help="float16 graphs with float32 islands.")]
BF16 = Annotated[bool, typer.Option("--bf16", help="bfloat16 graphs with float32 islands.")]
FP32 = Annotated[bool, typer.Option("--fp32", help="float32 graphs.")]
Target = Annotated[str, typer.Option(help="Runtime to export for; pvc-export doctor lists them.")]
BuildsFor = Annotated[
    str | None,
    typer.Option("--target", help="Also report whether this machine can build engines for that target, or why not."),
]
Window = Annotated[
    int | None, typer.Option(help="Frames that temporal attention sees, including the current one. Default: 8.")
]
Context = Annotated[int | None, typer.Option(help="LLM rows that a stream can hold. Default: 2048.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory limit for a process with all streams, on a CPU, a Jetson or a card: chooses --window and "
        "--context, or the one not given, by an estimate that assumes re-anchoring streams. 2GiB, 2G, 900MiB, 2GB "
        "(decimal) or bytes.",
    ),
]
Streams = Annotated[int, typer.Option(help="Number of streams that one pass serves.")]
ClockChoice = Annotated[
    str,
    typer.Option(
        "--clock",
        help="At the trained number of frames: run-on (streams may continue past it) or reanchor (streams restart with "
        "the newest frames, and frame times become a table: 1 GB smaller at 8B).",
    ),
]
Golden = Annotated[
    bool, typer.Option("--golden", help="Add a golden recording, with which a device checks itself without torch.")
]
AgainstGolden = Annotated[
    bool,
    typer.Option("--golden", help="Compare with the bundle's golden recording, on the runtime used here; no torch."),
]
Island = Annotated[
    list[str] | None, typer.Option("--island", help="Module to keep in float32, e.g. trunk.layers.1.attn. Repeatable.")
]
Unfuse = Annotated[
    list[str] | None,
    typer.Option(
        "--unfuse",
        metavar="PART",
        help="Attention that the compiler must not fuse: spatial, temporal or llm. For a TensorRT that miscompiles it; "
        "slower. Repeatable.",
    ),
]
Int4 = Annotated[
    list[str] | None,
    typer.Option("--int4", metavar="PART", help="Store this part's weights in int4: llm. Repeatable."),
]
Int4Block = Annotated[
    int | None, typer.Option("--int4-block", help="Number of weights per scale. Default: the target's usual, 32.")
]
Int8 = Annotated[
    list[str] | None,
    typer.Option(
        "--int8",
        metavar="PART",
        help="int8 matmuls: vision, and for `--target cpu` also llm and head. int8 state: ring (frames) and cache (the "
        "LLM's rows), which halves the memory that grows with window and context. Repeatable.",
    ),
]
QuantizeBy = Annotated[
    str,
    typer.Option(
        "--quantize-by",
        help="search (the scale with the least error, the default) or round (scale from the largest weight).",
    ),
]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate", metavar="FILE",
        help="A typical video for calibration: engines with --int8 vision get the scales of their matmul inputs from "
        "it, and --int8 llm moves large input channels into the weights. Repeatable. Default: built-in rendered and "
        "real frames.",
    ),
]  # fmt: skip
CalibrateBy = Annotated[
    str | None,
    typer.Option(
        "--calibrate-by", help="error (the scale with the least error, the default), percentile (99.99 %) or max."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed for the random weights of tiny and vision-8b. Default: 0.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Reference = Annotated[
    str | None, typer.Option("-m", "--model", help="Reference model. Default: the one named in the bundle.")
]
MappingFile = Annotated[
    Path | None,
    typer.Option(
        "--mapping", metavar="FILE",
        help="JSON that maps a model folder's tensors to their roles, if their names are not recognised; inspect "
        "--suggest-mapping writes one.",
    ),
]  # fmt: skip
ByLayer = Annotated[
    bool | None,
    typer.Option(
        "--by-layer/--whole",
        help="Check the LLM layer by layer, with its weights read from the model's folder, or load the whole model. "
        "Default: the whole model if it fits in memory.",
    ),
]
TrustEngines = Annotated[
    bool, typer.Option("--trust-engines", help="Load engines that another machine built. They are executable code.")
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by pvc-export trt or onnx.")]
AfterTraining = Annotated[
    str | None,
    typer.Option(
        "--clock",
        help="When the trained number of frames is used up: reanchor (start again from the newest) or run-on.",
    ),
]
RuntimeChoice = Annotated[
    str,
    typer.Option(
        "--runtime", help="auto, target (what the bundle was exported for, or an error), or cpu (ONNX Runtime)."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads per graph. Default: 1 for small graphs, all for large ones."),
]
