"""Options of `check --graph`: what must be said of a graph that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Module = Annotated[str | None, typer.Option(help="With --graph: a torch module, as pkg.module:Model or FILE.py:Model.")]
GraphFile = Annotated[Path | None, typer.Option(help="Any ONNX file with state, instead of a BUNDLE.")]
StatePairs = Annotated[
    list[str] | None,
    typer.Option(
        help="With --graph: a state pair, e.g. past=present, or a pattern of pairs, 'cached_*=new_cached_*'; "
        "past=new@append:1 if the output holds only new rows; with @start:N it begins with N rows. Repeatable."
    ),
]
NoStates = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: an output that is no state, though its name looks like one. Repeatable."),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: size of an axis, as AXIS=N, or AXIS=A+B of other axes. Repeatable."),
]
Bounds = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: range of random values for an input, as INPUT=LOW:HIGH. Repeatable."),
]
BatchAxis = Annotated[
    str | None, typer.Option(help="With --graph: the dynamic axis that is the batch, where its name does not say.")
]
Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        help="With --graph: how far off outputs may be, as rel_l2=0.05 or max_abs=0.01, in place of a limit that "
        "is measured: for quantized graphs. Repeatable."
    ),
]
Steps = Annotated[int | None, typer.Option(help="With --graph: length of the stream. Default: 64.")]
