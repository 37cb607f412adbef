"""Options of `check --graph`: the facts that a graph of any origin does not contain."""

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
        "past=new@append:1 if the output holds only new rows; @start:N to begin with N rows. Repeatable."
    ),
]
NoStates = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: an output that is not a state, although its name looks like one. Repeatable."),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: size of an axis, as AXIS=N, or AXIS=A+B as a sum of other axes. Repeatable."),
]
Bounds = Annotated[
    list[str] | None,
    typer.Option(help="With --graph: range of random values for an input, as INPUT=LOW:HIGH. Repeatable."),
]
BatchAxis = Annotated[
    str | None, typer.Option(help="With --graph: the dynamic axis that is the batch, if its name does not show it.")
]
Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        help="With --graph: allowed error of outputs, as rel_l2=0.05 or max_abs=0.01, instead of the measured limit; "
        "for quantized graphs. Repeatable."
    ),
]
Steps = Annotated[int | None, typer.Option(help="With --graph: length of the stream. Default: 64.")]
