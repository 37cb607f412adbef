"""The file of weights beside an exported graph: read value by value, and shared with a second graph."""

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
"""Two values in a byte, the first in its low half."""


def weight_values(tensor: TensorProto, folder: Path) -> Array:
    """A weight's values, wherever they lie. onnx itself refuses a file of weights while a second link to it exists, as
    while another check runs."""
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
"""Of a constant that a second graph may have for itself: the bounds of a Slice. Weights are larger, or are shared."""


def save_beside(model: ir.Model, path: Path, other: Path) -> None:
    """Write a graph whose weights lie in the '.data' of another one, in the same folder: each is looked up there by its
    bits. Raises BuildError for one that is not there."""
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
                f"{path}: the constant {name}, {len(held)} bytes, is not among the weights of {other.name}",
                expected="the same weights, bit for bit, since it is the same part of the same model",
                cause="the two graphs were not made from one model, or the exporter folds another constant in one",
            )
    onnx.save(ir.to_proto(model), path)


def _places(graph: Path) -> dict[tuple[int, tuple[int, ...], bytes], tuple[str, int, int]]:
    """Dtype, shape and SHA-256 of each of its weights -> file, offset and length."""
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
    """A link to the weights' file of a graph in another folder, or a copy where there are no links."""
    data = source.with_name(source.name + ".data")
    link = folder / data.name
    if data.exists() and not link.exists():
        try:
            link.hardlink_to(data)
        except OSError:  # another disk, another owner, or a file system without links
            shutil.copy(data, link)
