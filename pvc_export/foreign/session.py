"""Running a graph of any origin: file validation, dependencies of its outputs, and ONNX Runtime on the CPU."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from engines.memory import Array
from engines.session import import_onnxruntime

from .files import external_files
from .limits import UNIT_ROUNDOFF
from .states import Declared, Wiring

SMALL_BYTES = 64 * 2**20
"""Graphs below this size gain nothing from a second thread."""
LARGEST_LOADED = 2**30
"""Largest file to load into memory, well below protobuf's 2 GiB message limit."""


QUANTIZED = re.compile("[Qq]uantize|QLinear|Integer|^Q[A-Z]|NBits")


class RunFailed(Exception):
    """ONNX Runtime could not open or run the graph: its message, on one line. Levels turn it into a finding."""


class GraphSession:
    """Any graph in ONNX Runtime's CPU provider: numpy in and out. float16 is computed in float32."""

    def __init__(self, declared: Declared) -> None:
        """Raises BackendUnavailable without onnxruntime, RunFailed if it cannot open the file."""
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its messages are also raised as exceptions
        options.intra_op_num_threads = 1 if declared.wiring.num_bytes < SMALL_BYTES else 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(declared.readable), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise RunFailed(one_line(error)) from error
        self._names = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All inputs by name -> all outputs by name, in the file's order. Raises RunFailed."""
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        except Exception as error:  # as above
            raise RunFailed(one_line(error)) from error


def faults_of(path: Path, num_bytes: int) -> list[str]:
    """Objections of onnx.checker, or else of strict shape inference, one line each."""
    try:
        onnx.checker.check_model(str(path))
        if num_bytes < LARGEST_LOADED:
            onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
        else:
            with tempfile.NamedTemporaryFile(suffix=".onnx") as scratch:
                onnx.shape_inference.infer_shapes_path(str(path), scratch.name, check_type=True, strict_mode=True)
    except onnx.checker.ValidationError as error:
        return [f"onnx.checker rejects the file: {one_line(error)}"]
    except onnx.shape_inference.InferenceError as error:
        return [f"strict shape inference fails: {one_line(error)}"]
    return []


def wiring_of(path: Path, model: Any) -> Wiring:
    graph = model.graph
    inputs = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    needs: dict[str, frozenset[str]] = {name: frozenset({name}) for name in inputs}
    copies = {name: name for name in inputs}
    for node in graph.node:  # in topological order, as ONNX requires
        found = frozenset().union(*(needs.get(name, frozenset()) for name in _names_read(node)))
        needs |= {name: found for name in node.output}
        if node.op_type == "Identity" and node.input[0] in copies:
            copies[node.output[0]] = copies[node.input[0]]
    outputs = [value.name for value in graph.output]
    elements = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    elements += [tensor.data_type for tensor in graph.initializer]
    names = {onnx.TensorProto.DataType.Name(element).lower() for element in elements}
    narrow = max((name for name in names if name in UNIT_ROUNDOFF), key=lambda n: UNIT_ROUNDOFF[n], default="float32")
    return Wiring(
        dtype=narrow,
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        reads={name: needs.get(name, frozenset()) for name in outputs},
        copies={name: copies[name] for name in outputs if name in copies},
        num_bytes=_num_bytes(path, model),
        quantized=tuple(dict.fromkeys(node.op_type for node in graph.node if QUANTIZED.search(node.op_type))),
    )


def _num_bytes(path: Path, model: Any) -> int:
    return sum(file.stat().st_size for file in (path, *external_files(path, model)) if file.is_file())


def _names_read(node: Any) -> Iterator[str]:
    """Inputs of a node and of its subgraphs' nodes. Names defined in a subgraph have no meaning outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _names_read(inner)


def one_line(said: object) -> str:
    """An error's message without line breaks."""
    return " ".join(str(said).split())
