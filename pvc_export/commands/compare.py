"""`pvc-export compare`: the reference with a checkpoint's weights, compared with the results of the released code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import typer

from engines.errors import EXIT_DIFFERENT, ModelError
from engines.terminal import print_json
from pvc_ref.checkpoint.folder import detect_names
from pvc_ref.checkpoint.mapping import mapping_lines, read_mapping

from ..graphs.models import checkpoint_errors, load_weights
from ..parity.original import Recording, compare, decide
from ..terminal.console import Console


def compare_command(
    folder: Path, recording_path: Path, *, mapping: Path | None, save_mapping: Path | None, as_json: bool
) -> NoReturn:
    """Print one row per value and the likely cause, and exit: 0, or 3 if a value differs.

    If several mappings of the folder's tensors are possible, the recording decides. Raises ModelError if the folder or
    the recording cannot be read, if they do not belong together, or if the recording does not distinguish mappings.
    """
    console = Console(quiet=as_json)
    recording = Recording.load(recording_path)  # first, since it takes only a second
    with checkpoint_errors():
        given = None if mapping is None else read_mapping(mapping)
        names = detect_names(folder) if given is None else None
    if names is not None and names.num_candidates > 1:
        with console.stage(f"try {names.num_candidates} mappings") as (stage, progress):
            left = decide(names.groups, lambda one: load_weights(folder, one), recording, progress)
            stage.note = f"{len(left)} left"
        if len(left) > 1:
            raise ModelError(
                f"{recording_path} does not distinguish {len(left)} mappings of {folder}",
                expected="exactly one mapping that reproduces the recording",
                cause="tensors without effect, such as those scaled by an alpha of zeros, or a model that none fits",
                fix="record a trained checkpoint, in float32",
            )
        given = dict(left[0])
    with console.stage("load the model"):
        model = load_weights(folder, given)
    for line in mapping_lines(model.renamed, model.config.vision):
        console.print(f"  {line}")
    with console.stage("compare"):
        comparison = compare(model, recording)
    if save_mapping is not None and comparison.passed:
        save_mapping.write_text(json.dumps(dict(model.renamed), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(comparison.to_json() | {"mapping": dict(model.renamed)})
    for line in comparison.lines():
        console.print(line)
    raise typer.Exit(0 if comparison.passed else EXIT_DIFFERENT)
