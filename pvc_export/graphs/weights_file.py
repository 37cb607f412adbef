"""The file of weights beside an exported graph: read value by value, and shared with a second graph."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

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


def share_weights(source: Path, folder: Path) -> None:
    """A link to the weights' file of a graph in another folder, or a copy where there are no links."""
    data = source.with_name(source.name + ".data")
    link = folder / data.name
    if data.exists() and not link.exists():
        try:
            link.hardlink_to(data)
        except OSError:  # another disk, another owner, or a file system without links
            shutil.copy(data, link)
