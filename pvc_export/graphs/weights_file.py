"""The weights' file of an exported graph: reading single values, and sharing it with a second graph."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BuildError
from engines.memory import Array

PACKED = (TensorProto.INT4, TensorProto.UINT4)
"""Dtypes with two values per byte, the first in the low half."""


def weight_values(tensor: TensorProto, folder: Path) -> Array:
    """Read a weight's values from the graph or its weights' file.

    onnx itself refuses a weights' file while a second link to it exists, for example while another check runs.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        held = file.read(int(place["length"]))
    if tensor.data_type not in PACKED:
        return np.frombuffer(held, dtype)
    pairs = np.frombuffer(held, np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).ravel()[: math.prod(tensor.dims)]
    if tensor.data_type == TensorProto.INT4:  # 8 to 15 are -8 to -1
        codes = (codes.astype(np.int8) ^ 8) - 8
    return codes.astype(dtype)


FEW_BYTES = 1 << 12
"""Largest constant that a second graph may store itself, such as the bounds of a Slice. Weights must be shared."""


def save_beside(model: ir.Model, path: Path, other: Path) -> None:
    """Write a graph that uses the '.data' of another graph in the same folder; each weight is looked up by its bits.

    Raises BuildError for a weight that is not there.
    """
    places = _places(other)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        held = tensor.tobytes()
        place = places.get((int(tensor.dtype), tuple(tensor.shape.numpy()), hashlib.sha256(held).digest()))
        if place is not None:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(*place, tensor.dtype, shape=shape, name=name)
        elif len(held) > FEW_BYTES:
            raise BuildError(
                f"{path}: the constant {name} ({len(held)} bytes) is not among the weights of {other.name}",
                expected="bit-equal weights, because both graphs are the same part of the same model",
                cause="the graphs were made from different models, or the exporter folded a constant in only one",
            )
    onnx.save(ir.to_proto(model), path)


def _places(graph: Path) -> dict[tuple[int, tuple[int, ...], bytes], tuple[str, int, int]]:
    """Map dtype, shape and SHA-256 of each weight to file, offset and length."""
    found = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            place = entries["location"], int(entries.get("offset", 0)), int(entries["length"])
            with (graph.parent / place[0]).open("rb") as file:
                file.seek(place[1])
                digest = hashlib.sha256(file.read(place[2])).digest()
            found[tensor.data_type, tuple(tensor.dims), digest] = place
    return found


def share_weights(source: Path, folder: Path) -> None:
    """Hard-link a graph's weights' file into another folder, or copy it if links are not possible."""
    data = source.with_name(source.name + ".data")
    link = folder / data.name
    if data.exists() and not link.exists():
        try:
            link.hardlink_to(data)
        except OSError:  # another disk, another owner, or a file system without links
            shutil.copy(data, link)
