"""Export without memory for weights: a graph is traced without values, which are read one by one when it is written.

The matrices of the traced module are untouched memory: each has an address, but no physical pages. Whatever the
exporter does to a weight (rename it, transpose it ahead of time) yields a view of that memory, so the address and
strides of a constant identify the weight and its layout.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from engines.errors import BuildError
from engines.spec import GraphSpec

from .codes import CODES, TESTED, codes_dtype, put_codes, require_codes, scales_dtype, scales_shape
from .joined import PARTS
from .modules import layer_name
from .onnx_file import check_signature, exporting, save, traced
from .precision import copy_with
from .quantize import Grid, Quantizer

ReadWeight = Callable[[str], Tensor]
"""Reads a weight by its name in the model, in any dtype."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of a traced module without values.

    names  the model's weights of which it consists; several if it is a joined matmul
    """

    names: tuple[str, ...]
    empty: Tensor

    def read(self, read: ReadWeight, *, transposed: bool) -> Tensor:
        """Read its values for a constant: each part is cast and placed in one copy."""
        shape = tuple(self.empty.shape)
        return laid_out((read(name) for name in self.names), shape, self.empty.dtype, transposed=transposed)


def laid_out(parts: Iterable[Tensor], shape: tuple[int, ...], dtype: torch.dtype, *, transposed: bool) -> Tensor:
    """Concatenate parts as the rows of a matrix of this shape, optionally transposed."""
    values = torch.empty(shape[::-1] if transposed else shape, dtype=dtype)
    rows, start = values.T if transposed else values, 0
    for part in parts:
        rows[start : start + len(part)] = part.detach()
        start += len(part)
        del part  # before the next one is read
    return values


def export_lean(
    module: nn.Module,
    spec: GraphSpec,
    path: Path,
    read: ReadWeight,
    *,
    quantizer: Quantizer | None = None,
    progress: Callable[[float], None] | None = None,
    beside: Path | None = None,
) -> None:
    """Write a graph's module as path (.onnx) and path + '.data'.

    Parameters on `meta` are read by their names in the model and cast to their dtype in the module. Raises BuildError
    as export_graph does.

    quantizer  determines which of them become codes
    progress   called with the share of them that is written, 0 to 1
    beside     as in export_graph: they are read and compared, and not written
    """
    empty = {id(weight): _untouched(weight) for weight in module.parameters() if weight.is_meta}
    how = quantizer.how if quantizer is not None and spec.quantization is not None else {}
    matrices = [
        Matrix(_weights_of(spec.name, name), empty[id(weight)])
        for name, weight in module.named_parameters()
        if id(weight) in empty
    ]
    module = copy_with(module, lambda weight: empty.get(id(weight), weight))
    if progress is not None:  # a weight in codes is read twice, once for its scales
        read = _counted(read, sum(1 + (name in how) for matrix in matrices for name in matrix.names), progress)
    with exporting(spec, path):
        program = traced(module, spec)
        graph = program.model.graph
        for name, value in list(graph.initializers.items()):
            if (found := matrix_of(value, matrices, spec)) is None:
                continue
            matrix, transposed = found
            if quantizer is not None and matrix.names[0] in how:
                require_codes(value, spec, transposed=transposed)
                put_codes(graph, value, how[matrix.names[0]], _coded(value, matrix, quantizer, read))
            else:
                value.const_value = _lazy(name, value, matrix, transposed, read)
        save(program, path, beside=beside)
    check_signature(path, spec)


def _coded(value: ir.Value, matrix: Matrix, quantizer: Quantizer, read: ReadWeight) -> list[ir.LazyTensor]:
    """Codes, scales and zero points of a matrix with layout (inputs, outputs), computed when written.

    Scales are computed once and kept; the codes, which are most of the bytes, are not.
    """
    how, outputs = quantizer.how[matrix.names[0]], matrix.empty.shape[0]

    @functools.cache
    def grids() -> list[Grid]:
        return [quantizer.grid(name, read(name)) for name in matrix.names]

    def codes() -> Iterator[Tensor]:
        for name, grid in zip(matrix.names, grids(), strict=True):
            yield grid.codes(read(name))

    def zero_points() -> list[Tensor]:
        return [grid.zero_points for grid in grids() if grid.zero_points is not None]

    def tensor(name: str, dtype: ir.DataType, shape: ir.Shape, parts: Callable[[], Iterable[Tensor]]) -> ir.LazyTensor:
        def values() -> ir.TensorProtocol:
            kind = torch.int8 if dtype in CODES else quantizer.dtype_of_scales(how)
            width = shape.numpy()[0] if len(shape) == 2 else 1
            rows = laid_out(parts(), (outputs, int(width)), kind, transposed=True).reshape(shape.numpy())
            return ir.tensor(rows.numpy().astype(CODES[dtype])) if dtype in CODES else TorchTensor(rows, name=name)

        return ir.LazyTensor(values, dtype=dtype, shape=shape, name=name)

    inputs, coded = matrix.empty.shape[1], codes_dtype(how)
    scales = scales_shape(how, inputs, outputs)
    found = [
        tensor("codes", coded, ir.Shape((inputs, outputs)), codes),
        tensor("scales", scales_dtype(how, value), scales, lambda: [one.scales for one in grids()]),
    ]
    if how.zero_points:
        found.append(tensor("zero_points", coded, scales, zero_points))
    return found


def _counted(read: ReadWeight, total: int, progress: Callable[[float], None]) -> ReadWeight:
    """Wrap `read` so that it reports its progress."""
    done = itertools.count(1)

    def counted(name: str) -> Tensor:
        value = read(name)
        progress(min(next(done) / total, 1.0))
        return value

    return counted


def _untouched(weight: Tensor) -> nn.Parameter:
    """Allocate memory of this size; the system provides no pages until it is written to."""
    return nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=False)


def _weights_of(graph: str, parameter: str) -> tuple[str, ...]:
    """Map a parameter of a graph's module to its names in the model; several for the parts of a joined matmul."""
    owner, _, leaf = parameter.rpartition(".")
    name = layer_name(graph, owner)
    outside, _, product = name.rpartition(".")
    return tuple(f"{outside}.{part}.{leaf}" for part in PARTS.get(product, ())) or (f"{name}.{leaf}",)


def matrix_of(value: ir.Value, matrices: Sequence[Matrix], spec: GraphSpec) -> tuple[Matrix, bool] | None:
    """Return the weight that a constant is, and whether it is transposed; None for a constant that has values.

    Raises BuildError for a part of a weight: the exporter then did something unexpected.
    """
    assert value.const_value is not None
    array = value.const_value.numpy()
    address = array.__array_interface__["data"][0]
    matrix = next((one for one in matrices if 0 <= address - one.empty.data_ptr() < one.empty.nbytes), None)
    if matrix is None:
        return None
    shape, strides = tuple(matrix.empty.shape), np.empty(matrix.empty.shape, array.dtype).strides
    for transposed, wanted in ((False, (shape, strides)), (True, (shape[::-1], strides[::-1]))):
        if address == matrix.empty.data_ptr() and (array.shape, array.strides) == wanted:
            return matrix, transposed
    raise BuildError(
        f"graph '{spec.name}': the constant {value.name} is a view {array.shape} of {matrix.names[0]} {shape}",
        expected="the whole weight, unchanged or transposed",
        cause="this version of torch or onnxscript exports differently from the tested one",
        fix=TESTED,
    )


def _lazy(name: str, value: ir.Value, matrix: Matrix, transposed: bool, read: ReadWeight) -> ir.LazyTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.LazyTensor(
        lambda: TorchTensor(matrix.read(read, transposed=transposed), name=name),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
