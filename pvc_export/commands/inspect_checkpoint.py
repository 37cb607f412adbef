"""`pvc-export inspect CHECKPOINT`: a description, a suggested mapping of its tensors, or a summary to share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.terminal import print_json
from pvc_ref import PVC
from pvc_ref.checkpoint.folder import detect_names, skeleton
from pvc_ref.checkpoint.mapping import mapping_lines, read_mapping
from pvc_ref.checkpoint.share import share

from ..graphs.models import checkpoint_errors
from ..terminal.console import Console

INDENT = " " * 12


def share_command(folder: Path) -> None:
    """Print names, shapes, dtypes and config.json as one JSON object. Raises ModelError if there are none."""
    with checkpoint_errors():
        print_json(share(folder))


def suggest_command(folder: Path) -> None:
    """Print a mapping as JSON, null for undecided tensors, which are listed on standard error. Raises ModelError."""
    with checkpoint_errors():
        detection = detect_names(folder)
    print(json.dumps(detection.mapping, indent=2, ensure_ascii=False))
    if detection.table:
        print("undecided, so null; write each tensor's role, its layers numbered as in its name:", *detection.table,
              sep="\n",
              file=sys.stderr)  # fmt: skip


def checkpoint_command(folder: Path, *, mapping: Path | None, as_json: bool) -> None:
    """Print a folder's contents and the interpretation of its tensors. Raises ModelError if it does not load."""
    with checkpoint_errors():
        model = skeleton(folder, mapping=None if mapping is None else read_mapping(mapping))
        num_tensors = len(share(folder)["tensors"])
    if as_json:
        print_json({**_facts(model), "tensors": num_tensors, "renamed": dict(model.renamed)})
        return
    console = Console()
    for line in _lines(model, num_tensors):
        console.print(line)


def _facts(model: PVC) -> dict[str, Any]:
    vision, compressor, llm = model.config.vision, model.config.compressor, model.config.llm
    return {
        "vision": f"{vision.image_size} px, width {vision.hidden_size}, {vision.num_layers} layers, the last "
        f"{vision.num_temporal_layers} temporal",
        "compressor": f"{compressor.kind}, {compressor.num_tokens} tokens per frame",
        "llm": f"{llm.family}, width {llm.hidden_size}, {llm.num_layers} layers, {llm.vocab_size} tokens",
        "time": f"{model.config.time_mode}, trained on {model.config.trained_frames} frames",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _lines(model: PVC, num_tensors: int) -> Iterator[str]:
    for label, fact in _facts(model).items():
        yield f"{label:<12}{f'{fact / 1e6:.1f} M' if isinstance(fact, int) else fact}"
    renamed = list(mapping_lines(model.renamed, model.config.vision))
    yield f"{'tensors':<12}{num_tensors}, each used once" + (", some under other names:" if renamed else "")
    yield from (f"{INDENT}{line}" for line in renamed)
