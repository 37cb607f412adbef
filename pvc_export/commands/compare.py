"""`pvc-export compare`: the reference with a checkpoint's weights, beside what the released code computed of them."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer

from engines.errors import EXIT_DIFFERENT
from engines.terminal import print_json

from ..graphs.models import load_weights
from ..parity.original import Recording, compare
from ..terminal.console import Console


def compare_command(folder: Path, recording_path: Path, *, as_json: bool) -> NoReturn:
    """Print a row a value and the likely cause, and exit: 0, or 3 if one differs.

    Raises ModelError if the folder or the recording cannot be read, or the one is not of the other.
    """
    console = Console(quiet=as_json)
    recording = Recording.load(recording_path)  # first: it is read in a second
    with console.stage("load the model"):
        model = load_weights(folder)
    with console.stage("compare"):
        comparison = compare(model, recording)
    if as_json:
        print_json(comparison.to_json())
    for line in comparison.lines():
        console.print(line)
    raise typer.Exit(0 if comparison.passed else EXIT_DIFFERENT)
