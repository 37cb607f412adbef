"""`pvc-export prove`: plants known defects, and shows that a check catches each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from engines.errors import EXIT_DIFFERENT
from engines.terminal import print_json

from ..controls.defects import DEFECTS, NAMES, PRECISION_DEFECTS
from ..controls.prove import prove
from ..graphs.models import load_model
from ..terminal.console import Console


def defect_names() -> tuple[str, ...]:
    """Names of all defects that `prove` can plant."""
    return (*NAMES, *(defect.name for defect in PRECISION_DEFECTS))


def names_in(graphs: Sequence[str]) -> list[str]:
    """Names of the defects in these graphs, including overflows of their layers."""
    return [
        *(defect.name for defect in DEFECTS if defect.where == "graph" and defect.named in graphs),
        *(defect.name for defect in PRECISION_DEFECTS if defect.layer.partition(".")[0] in graphs),
    ]


def prove_command(model: str, names: Sequence[str], *, seed: int, mapping: Path | None, as_json: bool) -> NoReturn:
    """Plant these defects, print the score, and exit: 0, or 3 if one was missed."""
    console = Console(quiet=as_json)
    with console.stage("load the model"):
        loaded = load_model(model, seed=seed, mapping=mapping)
    proof = prove(
        loaded,
        defects=[defect for defect in DEFECTS if defect.name in names],
        precision_defects=[defect for defect in PRECISION_DEFECTS if defect.name in names],
        console=console,
    )
    if as_json:
        print_json(proof.to_json())
    for line in (*proof.lines(), proof.summary()):
        console.print(line)
    raise typer.Exit(0 if proof.passed else EXIT_DIFFERENT)
