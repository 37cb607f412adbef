"""The files of a graph of any origin: the graph itself, and the weights next to it.

onnx and ONNX Runtime refuse to read weights through a symbolic or hard link, so that a graph from elsewhere cannot
point them at a file that is not its own. Download caches and content stores consist of links, so linked weights are
copied.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # comes with onnx, without types

from engines.errors import ModelError


def load_graph(path: Path) -> Any:
    """The onnx.ModelProto without external weights. Raises ModelError if the file is not a graph, or if weights that
    it names are missing."""
    if not path.is_file():
        raise ModelError(
            f"--graph {path} is not a file",
            expected="an ONNX graph",
            cause="it is in another folder, or has not been exported yet",
            fix="correct the path and run the check again",
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"--graph {path} is not an ONNX file: {error}",
            cause="it has another format or is damaged",
            fix="export it again",
        ) from error
    if not model.graph.output:
        raise ModelError(
            f"--graph {path} has no outputs",
            expected="a graph with outputs",
            cause="the file is empty",
            fix="export it again",
        )
    for file in external_files(path, model):
        if not file.is_file():
            is_link = file.is_symlink()
            fate = "a broken link" if is_link else "missing"
            raise ModelError(
                f"--graph {path} stores its weights in '{file.name}', which is {fate}",
                expected=f"the file {file}",
                cause="its target was deleted or moved" if is_link else "the graph was copied or downloaded without it",
                fix=f"put the file next to the graph, or export again; then look: ls -l {file.parent}",
            )
    return model


def external_files(path: Path, model: Any) -> list[Path]:
    """The graph's weight files, as the graph names them."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return [path.parent / name for name in dict.fromkeys(entry.value for entry in entries if entry.key == "location")]


@contextmanager
def without_links(path: Path, model: Any) -> Iterator[Path]:
    """Path from which the graph can be read: its own, or, if its weights are links, a temporary copy's.

    Weights outside the graph's folder are not copied: neither onnx nor ONNX Runtime reads those.
    """
    files = external_files(path, model)
    if not any(file.is_symlink() or file.stat().st_nlink > 1 for file in files):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pvc-graph-") as name:
        copy = Path(name) / path.name
        shutil.copyfile(path, copy)
        for file in files:
            if file.is_relative_to(path.parent) and ".." not in file.relative_to(path.parent).parts:
                inside = Path(name) / file.relative_to(path.parent)
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, inside)
        yield copy
