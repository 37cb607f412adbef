"""Export of one graph to one ONNX file: dynamo exporter, standard operators, weights in a separate file.

Names and dynamic dimensions come from the GraphSpec and are read back from the saved file. A signature that differs in
one name, dtype or dimension is a BuildError, because a specialised dimension would fail only later, on a device.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from engines.errors import BuildError
from engines.needs import opset_of
from engines.spec import Dim, GraphSpec, TensorSpec

from .codes import TESTED, can_be_codes, hollow_parts, put_codes
from .notes import keep_own_notes
from .weights_file import save_beside

EXPORTER = ("torch", "onnx", "onnxscript", "onnx_ir")
"""Packages that determine how a graph is written."""
HOLLOW = "no values"
"""File name given as the location of a constant without values (hollow.py)."""


def export_graph(module: nn.Module, spec: GraphSpec, path: Path, *, beside: Path | None = None) -> None:
    """Write `module` as path (.onnx) and path + '.data'. Raises BuildError if that fails or if its signature differs.

    beside  another graph with the same weights: its '.data' is shared, and none is written (save_beside)
    """
    with exporting(spec, path):
        save(traced(module, spec), path, beside=beside)
    check_signature(path, spec)


def save(program: torch.onnx.ONNXProgram, path: Path, *, beside: Path | None) -> None:
    """Save a graph with its weights in a separate file, or in that of another graph with the same weights."""
    if beside is None:
        program.save(path, external_data=True)
    else:
        save_beside(program.model, path, beside)


def export_hollow(module: nn.Module, spec: GraphSpec, path: Path) -> None:
    """Write only the graph of a module whose matrices are one expanded number each (hollow.filled).

    In the file these have a dtype and a shape, but no values. Raises BuildError if that fails.
    """
    with exporting(spec, path):
        program = traced(module, spec)
        graph = program.model.graph
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.size == 1 or any(tensor.numpy().strides):
                continue
            if spec.quantization is not None and can_be_codes(value, spec):
                put_codes(graph, value, spec.quantization, hollow_parts(value, spec.quantization, _hollow_tensor))
            else:
                value.const_value = _hollow_tensor(name, tensor.dtype, tensor.shape)
        onnx.save(ir.to_proto(program.model), path)


def _hollow_tensor(name: str, dtype: ir.DataType, shape: ir.ShapeProtocol) -> ir.ExternalTensor:
    return ir.ExternalTensor(HOLLOW, 0, 0, dtype, shape=ir.Shape(shape.numpy()), name=name)


def is_hollow(tensor: onnx.TensorProto) -> bool:
    """Whether a constant has no values (export_hollow)."""
    return any(entry.key == "location" and entry.value == HOLLOW for entry in tensor.external_data)


@contextlib.contextmanager
def exporting(spec: GraphSpec, path: Path) -> Iterator[None]:
    """Settings during the export of a graph. Raises BuildError if the export fails."""
    try:
        with torch.no_grad(), quiet_exporter(), collector_paused(), translations_kept(), pairs_matched_quickly():
            yield
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise BuildError(
            f"graph '{spec.name}' could not be exported to {path}: {error}",
            cause="this version of torch or onnxscript exports differently from the tested one",
            fix=TESTED,
        ) from error


def traced(module: nn.Module, spec: GraphSpec) -> torch.onnx.ONNXProgram:
    """Trace a module to a graph, with the names of its spec."""
    # A dynamic dimension must not be traced at 0 or 1, nor two at one size: the exporter would treat them as constants.
    sizes = {name: 3 + index for index, name in enumerate(sorted(spec.dims))}
    examples = tuple(_example(tensor, sizes) for tensor in spec.inputs)
    dynamic = tuple({axis: torch.export.Dim.AUTO for axis, dim in enumerate(t.shape) if isinstance(dim, str)}
                    for t in spec.inputs)  # fmt: skip
    program = torch.onnx.export(
        module,
        examples,
        dynamo=True,
        opset_version=opset_of(spec),
        input_names=[t.name for t in spec.inputs],
        output_names=[t.name for t in spec.outputs],
        dynamic_shapes=_fold_varargs(module, dynamic),
        verify=False,
        report=False,
    )
    assert program is not None
    keep_own_notes(program.model)
    _stamp(program, spec)
    return program


def check_signature(path: Path, spec: GraphSpec) -> None:
    """Raise BuildError unless the saved file has exactly the inputs and outputs of `spec` and is valid ONNX."""
    model = onnx.load(path, load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if opset != opset_of(spec) or foreign:
        raise BuildError(
            f"{path} has opset {opset} and operators of the domains {sorted(foreign)}",
            expected=f"opset {opset_of(spec)} and only standard operators",
            fix=TESTED,
        )
    input_and_output = (("input", spec.inputs, model.graph.input), ("output", spec.outputs, model.graph.output))
    for kind, tensors, found in input_and_output:
        expected, got = [_signature(t) for t in tensors], [_read_signature(value) for value in found]
        if expected != got:
            wrong = next((e, g) for e, g in zip([*expected, None], [*got, None], strict=False) if e != g)
            raise BuildError(
                f"{path}: the {kind} is {wrong[1]}",
                expected=f"{wrong[0]}, from the GraphSpec",
                cause="the exporter made a dynamic dimension constant, or the graph belongs to another spec",
                fix=TESTED,
            )
    onnx.checker.check_model(str(path))


def _example(tensor: TensorSpec, sizes: dict[str, int]) -> Tensor:
    filled = torch.ones if tensor.dtype in ("int64", "bool") else torch.zeros
    return filled(tensor.resolve(sizes), dtype=getattr(torch, tensor.dtype))


def _fold_varargs(module: nn.Module, dynamic: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """Nest the shapes of *args in one tuple for torch.export; without *args there is no tuple."""
    code, named = module.forward.__code__, module.forward.__code__.co_argcount - 1
    if not code.co_flags & 0x04 or len(dynamic) == named:
        return dynamic
    return (*dynamic[:named], dynamic[named:])


def _stamp(program: torch.onnx.ONNXProgram, spec: GraphSpec) -> None:
    """Name the dynamic dimensions as in the spec, and put the state table in the file's metadata."""
    graph = program.model.graph
    for values, tensors in ((graph.inputs, spec.inputs), (graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            # Only a dimension that the exporter kept dynamic gets a name. Constant dimensions, missing
            # shapes and shapes of another rank stay, and fail check_signature.
            if value.shape is not None and len(value.shape) == len(tensor.shape):
                value.shape = ir.Shape(
                    want if isinstance(want, str) and not isinstance(have, int) else have
                    for want, have in zip(tensor.shape, value.shape, strict=True)
                )
    program.model.metadata_props["pvc.graph_spec"] = json.dumps(spec.to_json())


def _signature(tensor: TensorSpec) -> tuple[str, int, tuple[Dim, ...]]:
    return tensor.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape


def _read_signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[Dim, ...]]:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim)
    return value.name, tensor.elem_type, dims


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector.

    Tracing makes a million objects that live until its end; scanning them again and again takes a seventh of the time
    (16.9 s of CPU time against 14.3 for `tiny`, x86-64, torch 2.13.0, 2026-11-26).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def _translations(read: Callable[..., object], **options: object) -> object:
    return read(**options)


@contextlib.contextmanager
def translations_kept() -> Iterator[None]:
    """Cache torch's translations to ONNX.

    torch reads the sources of its 500 translations again for every graph, 1.4 s of CPU time each (x86-64, torch 2.13.0,
    2026-11-28), although they never change. With a torch that keeps them elsewhere, the export just takes that longer.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    before = ONNXRegistry.__dict__["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(functools.partial(_translations, ONNXRegistry.from_torchlib))  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = before  # type: ignore[method-assign]


@contextlib.contextmanager
def pairs_matched_quickly() -> Iterator[None]:
    """Speed up onnxscript's pattern matching.

    Its rule that makes a Split of two Slices searches the whole graph at every node, even if the node is not a Slice:
    47 of the 103 s of CPU time for an LLM of 30 layers (x86-64, onnxscript 0.7.2, 2026-11-28). Nodes that cannot begin
    a match are skipped; the resulting graph is the same. An onnxscript with another matcher is not changed.
    """
    try:
        from onnxscript.rewriter._matcher import SimplePatternMatcher
    except ImportError:
        yield
        return
    match = SimplePatternMatcher.match

    def quick(self: SimplePatternMatcher, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        first, *others = self.pattern.output_nodes
        if others and first.op_identifier() not in (None, node.op_identifier()):
            return None  # as for a failed match
        return match(self, model, graph, node, **options)

    SimplePatternMatcher.match = quick  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SimplePatternMatcher.match = match  # type: ignore[method-assign]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's banner and its internal warnings; errors still raise."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
