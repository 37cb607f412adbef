"""Ways to break a bundle that its hashes do not show: the manifest is stamped anew, as a faulty exporter would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from engines.manifest import Manifest, hash_folder


def edit_graph(bundle: Path, name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Change one graph of a bundle, weights included, and stamp the manifest so that the hashes agree."""
    path = bundle / "graphs" / f"{name}.onnx"
    model = onnx.load(path)
    edit(model)
    path.with_name(path.name + ".data").unlink()
    onnx.save(model, path, save_as_external_data=True, location=f"{name}.onnx.data")
    restamp(bundle)


def restamp(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    replace(manifest, files=hash_folder(bundle)).save(bundle)


def perturb_one_weight(model: onnx.ModelProto) -> None:
    """Add one standard deviation to one element in the middle of the largest matrix."""
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and tensor.dims[0] > 1]
    tensor = max(matrices, key=lambda t: int(np.prod(t.dims)))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2 + 1] += values.dtype.type(values.std())
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_inputs(model: onnx.ModelProto, first: str, second: str) -> None:
    """Let every node read `second` where it read `first`, and the other way round."""
    other = {first: second, second: first}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other.get(name, name)


def roll_slot_mask(model: onnx.ModelProto) -> None:
    """Read the slot mask shifted by one slot: an off-by-one inside the graph."""
    window = next(v for v in model.graph.input if v.name == "slot_mask").type.tensor_type.shape.dim[1].dim_value
    order = numpy_helper.from_array(np.roll(np.arange(window), 1), "rolled_order")
    model.graph.initializer.append(order)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "slot_mask":
                node.input[index] = "rolled_slot_mask"
    roll = onnx.helper.make_node("Gather", ["slot_mask", "rolled_order"], ["rolled_slot_mask"], axis=1)
    model.graph.node.insert(0, roll)


def stop_the_clock(model: onnx.ModelProto) -> None:
    """Time stands still after frame 20."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(20.0, np.float32), "last_time"))
    _replace_input(model, "frame_time", [onnx.helper.make_node("Min", ["frame_time", "last_time"], ["changed_input"])])


def round_the_clock(model: onnx.ModelProto) -> None:
    """The frame time passes through float16, as without its island: it has no integers beyond 2048."""
    cast = onnx.helper.make_node("Cast", ["frame_time"], ["half_time"], to=onnx.TensorProto.FLOAT16)
    back = onnx.helper.make_node("Cast", ["half_time"], ["changed_input"], to=onnx.TensorProto.FLOAT)
    _replace_input(model, "frame_time", [cast, back])


def first_stream_for_all(model: onnx.ModelProto) -> None:
    """Every stream of a batch gets the embeddings of stream 0."""
    for name, value in (("zero", [0]), ("one", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes = [
        onnx.helper.make_node("Shape", ["inputs_embeds"], ["embeds_shape"]),
        onnx.helper.make_node("Slice", ["inputs_embeds", "zero", "one", "zero"], ["first_stream"]),
        onnx.helper.make_node("Expand", ["first_stream", "embeds_shape"], ["changed_input"]),
    ]
    _replace_input(model, "inputs_embeds", nodes)


def _replace_input(model: onnx.ModelProto, name: str, nodes: list[onnx.NodeProto]) -> None:
    """Let every node read `changed_input`, which `nodes` make, where it read `name`."""
    for node in model.graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = "changed_input"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
