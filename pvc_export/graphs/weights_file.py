"""The file of weights beside an exported graph: read value by value, and shared with a second graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engines.memory import Array


def weight_values(tensor: TensorProto, folder: Path) -> Array:
    """A weight's values, wherever they lie. onnx itself refuses a file of weights while a second link to it exists, as
    while another check runs."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        return np.frombuffer(file.read(int(place["length"])), dtype)


def share_weights(source: Path, folder: Path) -> None:
    """A link to the weights' file of a graph in another folder, or a copy where there are no links."""
    data = source.with_name(source.name + ".data")
    link = folder / data.name
    if data.exists() and not link.exists():
        try:
            link.hardlink_to(data)
        except OSError:  # another disk, another owner, or a file system without links
            shutil.copy(data, link)
