"""The weights of an exported graph are the reference's, bit for bit.

Numbers alone cannot show it: in float16 one wrong weight of a million drowns in rounding. So every parameter is looked
for in the ONNX file, by a digest of its values that ignores their order, since exporters transpose and reshape weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from engines.bundle import graph_path
from engines.manifest import Manifest
from engines.memory import Array, host_dtype

from ..graphs.joined import joint_sizes
from ..graphs.models import LoadedModel
from ..graphs.modules import graph_parameters
from ..graphs.precision import cast_model
from ..graphs.weights_file import weight_values
from .evidence import Evidence

Digest = tuple[str, int, int]
"""dtype, number of values, and the sum of all values' mixed bits."""

BLOCK = 1 << 22  # values mixed at a time, so that a large table needs little memory beside itself


def compare_weights(folder: Path, manifest: Manifest, loaded: LoadedModel) -> Evidence:
    """How many weights the graphs' files hold bit for bit, and by graph the names of those that they do not."""
    model = cast_model(loaded.model, manifest.precision, manifest.islands)
    num_equal, wrong = 0, dict[str, list[str]]()
    for graph, spec in manifest.graphs.items():
        parameters = graph_parameters(model, spec)
        if missing := missing_weights(folder / graph_path(graph), parameters, joint_sizes(model, graph)):
            wrong[graph] = missing
        num_equal += len(parameters) - len(missing)
    return Evidence(num_weights=num_equal, wrong_weights=wrong)


def missing_weights(path: Path, parameters: Mapping[str, Tensor], joint: Collection[tuple[int, ...]] = ()) -> list[str]:
    """Names of the parameters whose values, in their dtype, are in no initializer of the ONNX file.

    joint  the sizes of the parts of joined weights, whose slices are looked at as well
    """
    graph = onnx.load(path, load_external_data=False)
    found = {
        digest(values)
        for tensor in _constants(graph)
        for values in _with_parts(weight_values(tensor, path.parent).reshape(tuple(tensor.dims)), joint)
    }
    return [name for name, value in parameters.items() if digest(_to_numpy(value)) not in found]


def _with_parts(values: Array, joint: Collection[tuple[int, ...]]) -> Iterator[Array]:
    """A weight, and where it may be a joined one its parts, along whichever axis the exporter left them."""
    yield values
    for sizes in joint:
        for axis in range(values.ndim):
            if values.shape[axis] == sum(sizes):
                yield from np.split(values, np.cumsum(sizes)[:-1], axis)


def _to_numpy(value: Tensor) -> np.ndarray[Any, Any]:
    value = value.detach().contiguous()
    if value.dtype != torch.bfloat16:
        return value.numpy()
    bits: np.ndarray[Any, Any] = value.view(torch.int16).numpy()
    return bits.view(host_dtype("bfloat16"))


def digest(array: np.ndarray[Any, Any]) -> Digest:
    """Equal for arrays of the same dtype and the same values in any order; differs if one bit of one value does."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    total = 0
    for start in range(0, bits.size, BLOCK):
        total += int(_mix(bits[start : start + BLOCK].astype(np.uint64)).sum(dtype=np.uint64))
    return str(array.dtype), array.size, total % 2**64


def _mix(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finalizer of MurmurHash3: a bijection that spreads every bit, so that a sum of changes cannot cancel."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(multiplier)
    mixed: np.ndarray[Any, np.dtype[np.uint64]] = x ^ (x >> np.uint64(33))
    return mixed


def _constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
