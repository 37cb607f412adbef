"""Options and arguments that several commands have, with one help for all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("-m", "--model", help="'shapes' (trained), 'tiny', 'vision-8b' (random), or a folder.")
]
PlannedModel = Annotated[
    str,
    typer.Option(
        "-m", "--model", help="'shapes', a preset such as pvc-internvl2-8b, or a folder, which needs config.json only."
    ),
]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Bundle folder. Default: build/NAME.")]
FP16 = Annotated[bool, typer.Option("--fp16", help="float16 graphs with float32 islands.")]
BF16 = Annotated[bool, typer.Option("--bf16", help="bfloat16 graphs with float32 islands.")]
FP32 = Annotated[bool, typer.Option("--fp32", help="float32 graphs.")]
Target = Annotated[str, typer.Option(help="Runtime to export for; pvc-export doctor lists them.")]
BuildsFor = Annotated[
    str | None,
    typer.Option("--target", help="Also whether this machine can build engines for that target, or why not."),
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
        help="Choose --window and --context, or the one that is not given, so that a process with all streams takes no "
        "more of a CPU's, a Jetson's or a card's memory, by estimate. Streams count as re-anchoring. 2GiB, 2G, 900MiB, "
        "2GB (of 1000s) or bytes.",
    ),
]
Streams = Annotated[int, typer.Option(help="Streams that one pass serves.")]
ClockChoice = Annotated[
    str,
    typer.Option(
        "--clock",
        help="run-on (streams may go on beyond the trained number of frames) or reanchor (they start again with the "
        "newest, so that frame times are a table: 1 GB less at 8B).",
    ),
]
Golden = Annotated[
    bool, typer.Option("--golden", help="Add a golden recording, with which a device checks itself without torch.")
]
AgainstGolden = Annotated[
    bool, typer.Option("--golden", help="Against the bundle's own golden recording, by what runs it here; no torch.")
]
Island = Annotated[
    list[str] | None, typer.Option("--island", help="Module to keep in float32, e.g. trunk.layers.1.attn. Repeatable.")
]
Unfuse = Annotated[
    list[str] | None,
    typer.Option(
        "--unfuse",
        metavar="PART",
        help="Attention that no compiler may fuse: spatial, temporal or llm. For a TensorRT that miscompiles it; "
        "slower. Repeatable.",
    ),
]
Int4 = Annotated[
    list[str] | None,
    typer.Option("--int4", metavar="PART", help="Hold this part's weights in four bits: llm. Repeatable."),
]
Int4Block = Annotated[
    int | None, typer.Option("--int4-block", help="Weights that share a scale. Default: the target's usual, 32.")
]
Int8 = Annotated[
    list[str] | None,
    typer.Option(
        "--int8",
        metavar="PART",
        help="Multiply in eight bits: vision, or for `--target cpu` also llm and head. Remember in eight bits: ring "
        "(frames) and cache (the LLM's rows), half of what grows with window and context. Repeatable.",
    ),
]
QuantizeBy = Annotated[
    str,
    typer.Option(
        "--quantize-by", help="search (of the scales with the least error, the default) or round (to the largest)."
    ),
]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate", metavar="FILE",
        help="A video like those to come: with --int8 vision, engines scale what their products are fed by what it "
        "shows, and --int8 llm moves what is large in its inputs into weights. Repeatable. Default: rendered and real "
        "frames of this program.",
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
    str | None, typer.Option("-m", "--model", help="Reference model. Default: the one that the bundle names.")
]
MappingFile = Annotated[
    Path | None,
    typer.Option(
        "--mapping", metavar="FILE",
        help="JSON that says what the tensors of a model folder are, where their names do not: inspect "
        "--suggest-mapping makes one.",
    ),
]  # fmt: skip
ByLayer = Annotated[
    bool | None,
    typer.Option(
        "--by-layer/--whole",
        help="Hold the LLM layer by layer, its weights read from the model's folder, or take the whole model into "
        "memory. Default: the whole where it fits.",
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
