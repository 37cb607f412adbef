"""Edits of an exported graph that its hashes do not reveal: the manifest is restamped, as after a faulty export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.bundle import graph_path
from engines.errors import SpecError
from engines.manifest import Manifest, fingerprint, hash_folder
from engines.memory import Array
from engines.provenance import sign_engines

from ..parity.culprit.pieces import Origin, origins

Edit = Callable[[onnx.ModelProto], None]


def edit_graph(bundle: Path, name: str, edit: Edit) -> None:
    """Change one graph of a bundle, including its weights, and restamp the manifest so that the hashes agree."""
    path = bundle / graph_path(name)
    model = onnx.load(path)
    edit(model)
    path.with_name(path.name + ".data").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    sign_engines(restamp(bundle)).save(bundle)


def restamp(bundle: Path) -> Manifest:
    """Update the manifest to the present files: their hashes, and engine entries that claim to be built from them. Only
    the engines' builder could sign them again, so this does not. Returns the saved manifest."""
    manifest, files = Manifest.load(bundle), hash_folder(bundle)
    engines = {
        name: replace(entry, built_from=fingerprint(files, graph_path(name)))
        for name, entry in manifest.engines.items()
    }
    manifest = replace(manifest, files=files, engines=engines)
    manifest.save(bundle)
    return manifest


def find(model: onnx.ModelProto, op_type: str, *, scope: str = "", operation: str = "", index: int = 0) -> Any:
    """Return the index-th node of a type whose module's name ends in `scope` and that is of torch's `operation`.

    Raises SpecError if there is none: a defect that changes nothing would prove nothing.
    """
    known = origins(model)
    found = [
        node
        for node in model.graph.node
        if node.op_type == op_type and _fits(known.get(node.output[0]), scope, operation)
    ]
    if index >= len(found):
        raise SpecError(
            f"the graph has {len(found)} {op_type} nodes of operation '{operation}' in '{scope}'",
            expected=f"at least {index + 1}",
        )
    return found[index]


def _fits(origin: Origin | None, scope: str, operation: str) -> bool:
    if not scope and not operation:
        return True
    return origin is not None and origin.scope.endswith(scope) and origin.operation.startswith(operation)


def weight(model: onnx.ModelProto, ending: str) -> Any:
    """Return the first initializer whose name ends in `ending`. Raises SpecError if there is none."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(ending):
            return tensor
    raise SpecError(f"the graph has no weight whose name ends in '{ending}'")


def weight_of(model: onnx.ModelProto, node: NodeProto) -> Any:
    """Return the first initializer that a node reads."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    return next(known[name] for name in node.input if name in known)


def change(tensor: TensorProto, to: Callable[[Array], Array]) -> None:
    """Replace a weight's values by a function of them, in its dtype."""
    values = numpy_helper.to_array(tensor)
    changed = np.array(to(values.copy()), values.dtype, order="C")  # ascontiguousarray would make a scalar a vector
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def behind(model: onnx.ModelProto, name: str, nodes: Sequence[NodeProto]) -> None:
    """Insert `nodes` after the graph's input `name`: all other readers get the last node's output instead."""
    read_instead(model, {name: nodes[-1].output[0]})
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def before(model: onnx.ModelProto, node: NodeProto, made: NodeProto) -> str:
    """Insert a new node directly before the node that will read it. Returns the name of its result."""
    model.graph.node.insert(list(model.graph.node).index(node), made)
    return str(made.output[0])


def constant(model: onnx.ModelProto, name: str, value: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def read_instead(model: onnx.ModelProto, others: Mapping[str, str]) -> None:
    """Make every node that reads a key of `others` read its value instead."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = others.get(name, name)


def input_shape(model: onnx.ModelProto, name: str) -> list[int]:
    """Return the sizes of a graph input, 0 where they are not constant."""
    value = next(value for value in model.graph.input if value.name == name)
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


# -- typical faults of exporters -----------------------------------------------------------------------------------


def perturb_one_weight(model: onnx.ModelProto) -> None:
    """Add one standard deviation to one element in the middle of the largest matrix."""
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and tensor.dims[0] > 1]
    tensor = max(matrices, key=lambda t: int(np.prod(t.dims)))

    def perturbed(values: Array) -> Array:
        values.flat[values.size // 2 + 1] += values.dtype.type(values.std())
        return values

    change(tensor, perturbed)


def roll_slot_mask(model: onnx.ModelProto) -> None:
    """Read the slot mask shifted by one slot: an off-by-one inside the graph."""
    order = constant(model, "rolled_order", np.roll(np.arange(input_shape(model, "slot_mask")[1]), 1))
    behind(model, "slot_mask", [helper.make_node("Gather", ["slot_mask", order], ["rolled_slot_mask"], axis=1)])


def swap_keys_and_values(model: onnx.ModelProto) -> None:
    """Exchange keys and values of the first layer's past."""
    read_instead(model, {"past.0.key": "past.0.value", "past.0.value": "past.0.key"})


def swap_colours(model: onnx.ModelProto) -> None:
    order = constant(model, "bgr", np.array([2, 1, 0], np.int64))
    behind(model, "frame", [helper.make_node("Gather", ["frame", order], ["swapped_frame"], axis=3)])


def widen_epsilon(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            set_attribute(node, "epsilon", 1e-3)


def drop_layer_scale(model: onnx.ModelProto) -> None:
    """Leave out the first LayerScale."""
    change(weight(model, "layers.0.ls1"), np.ones_like)


def approximate_gelu(model: onnx.ModelProto) -> None:
    set_attribute(find(model, "Gelu"), "approximate", "tanh")


def transpose_shuffle(model: onnx.ModelProto) -> None:
    """Do space to depth with a token's rows and columns exchanged."""
    set_attribute(find(model, "Transpose", operation="permute"), "perm", [0, 1, 3, 4, 2, 5])


def swap_query_and_key(model: onnx.ModelProto) -> None:
    """Split the fused qkv in the wrong order."""
    node = find(model, "Split")
    third = len(node.output) // 3  # one output each, or one per head
    for index in range(third):
        query, key = node.output[index], node.output[third + index]
        node.output[index], node.output[third + index] = key, query


def stop_the_clock(model: onnx.ModelProto) -> None:
    """Stop time after frame 20."""
    last = constant(model, "last_time", np.array(20.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Min", ["frame_time", last], ["stopped_time"])])


def round_the_clock(model: onnx.ModelProto) -> None:
    """Round the frame time to float16, as without its island: float16 has not all integers above 2048."""
    cast = helper.make_node("Cast", ["frame_time"], ["half_time"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["half_time"], ["rounded_time"], to=TensorProto.FLOAT)
    behind(model, "frame_time", [cast, back])


def forget_the_time(model: onnx.ModelProto) -> None:
    """Set the time of every frame to 0."""
    zero = constant(model, "no_time", np.array(0.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Mul", ["frame_time", zero], ["frozen_time"])])


def first_stream_for_all(model: onnx.ModelProto) -> None:
    """Give every stream of a batch the embeddings of stream 0."""
    zero, one = (constant(model, name, np.array(value, np.int64)) for name, value in (("zero", [0]), ("one", [1])))
    nodes = [
        helper.make_node("Shape", ["inputs_embeds"], ["embeds_shape"]),
        helper.make_node("Slice", ["inputs_embeds", zero, one, zero], ["first_stream"]),
        helper.make_node("Expand", ["first_stream", "embeds_shape"], ["same_embeds"]),
    ]
    behind(model, "inputs_embeds", nodes)


def return_the_old_row(model: onnx.ModelProto) -> None:
    """A stale state: return the row in the ring's slot 0 as the first key's new row."""
    window = input_shape(model, "slot_mask")[1]
    axis = input_shape(model, "past.0.key").index(window, 1)
    node = next(node for node in model.graph.node if "new.0.key" in node.output)
    node.output[list(node.output).index("new.0.key")] = "true_row"
    index = constant(model, "slot_zero", np.array(0, np.int64))
    model.graph.node.append(helper.make_node("Gather", ["past.0.key", index], ["new.0.key"], axis=axis))


def quantize_a_matrix(model: onnx.ModelProto) -> None:
    """Round the largest matrix to int8."""

    def rounded(values: Array) -> Array:
        step = np.abs(values).max() / 127
        return np.asarray(np.round(values / step) * step)

    change(max((t for t in model.graph.initializer if len(t.dims) == 2), key=lambda t: int(np.prod(t.dims))), rounded)


def scale_attention(model: onnx.ModelProto) -> None:
    """Scale scores by 1 / D instead of 1 / sqrt(D)."""
    change(weight_of(model, find(model, "Mul", scope="attn")), np.square)


def see_the_next_row(model: onnx.ModelProto) -> None:
    """Shift the causal mask by one: every new row also sees the next one."""
    node = find(model, "LessOrEqual")
    one = constant(model, "one_more", np.array(1, np.int64))
    node.input[1] = before(model, node, helper.make_node("Add", [node.input[1], one], ["later_rows"]))


def widen_rms_epsilon(model: onnx.ModelProto) -> None:
    if norm := next((node for node in model.graph.node if node.op_type == "RMSNormalization"), None):
        next(entry for entry in norm.attribute if entry.name == "epsilon").f = 1e-2
    else:
        node = find(model, "Add", scope="attn_norm", operation="add")
        change(weight_of(model, node), lambda values: np.full_like(values, 1e-2))


def split_wqkv_plainly(model: onnx.ModelProto) -> None:
    """Split InternLM2's fused wqkv as if it had all queries, then all keys, then all values. In fact it has, for each
    key/value head, its query heads, the key and the value."""
    matrix, cache = _matrix(model, "layers.0.attn.qkv_proj"), input_shape(model, "past.0.key")
    is_in_place = any(node.op_type == "TensorScatter" for node in model.graph.node)
    num_heads, num_kv = matrix.dims[1] // cache[-1], cache[1 if is_in_place else 2]
    sizes = np.array([num_heads - 2 * num_kv, num_kv, num_kv])  # heads of q, k and v
    heads = np.split(numpy_helper.to_array(matrix), sizes.sum(), axis=1)
    query, key, value = (heads[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True))
    if len(key) == 1:
        raise SpecError("with one key/value head both ways to split wqkv agree", expected="several key/value heads")
    group = len(query) // len(key)
    fused = [
        head
        for index in range(len(key))
        for head in (*query[index * group : (index + 1) * group], key[index], value[index])
    ]
    change(matrix, lambda _: np.concatenate(fused, axis=1))


def _matrix(model: onnx.ModelProto, scope: str) -> Any:
    """Return the matrix of a linear layer, with or without a bias."""
    named = next(name for name, origin in origins(model).items() if origin.scope.endswith(scope))
    node = next(node for node in model.graph.node if named in node.output)
    if node.op_type != "MatMul":
        node = next(other for other in model.graph.node if other.op_type == "MatMul" and other.output[0] in node.input)
    return weight_of(model, node)


def repeat_a_frame_time(model: onnx.ModelProto) -> None:
    """Give frame 13 the time of frame 12, as with a wrong table index. All our models are trained that far."""
    own, other = (constant(model, name, np.array(time, np.float32)) for name, time in (("own", 13.0), ("other", 12.0)))
    nodes = [
        helper.make_node("Equal", ["frame_time", own], ["is_own"]),
        helper.make_node("Where", ["is_own", other, "frame_time"], ["repeated_time"]),
    ]
    behind(model, "frame_time", nodes)


def begin_time_anew(model: onnx.ModelProto) -> None:
    """Restart time after 64 frames."""
    period = constant(model, "period", np.array(64.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Mod", ["frame_time", period], ["wrapped_time"], fmod=1)])


def shift_positions_midway(model: onnx.ModelProto) -> None:
    """Make positions 290 to 350 one too large; no end of a bucket or of the context is among them."""
    ends = [constant(model, name, np.array(value, np.int64)) for name, value in (("first", 290), ("last", 350))]
    nodes = [
        helper.make_node("GreaterOrEqual", ["position_ids", ends[0]], ["is_behind"]),
        helper.make_node("LessOrEqual", ["position_ids", ends[1]], ["is_before"]),
        helper.make_node("And", ["is_behind", "is_before"], ["is_between"]),
        helper.make_node("Cast", ["is_between"], ["one_or_none"], to=TensorProto.INT64),
        helper.make_node("Add", ["position_ids", "one_or_none"], ["shifted_position"]),
    ]
    behind(model, "position_ids", nodes)


def end_positions_early(model: onnx.ModelProto) -> None:
    """Stop rotary positions 32 rows before the end of the context (512 rows here)."""
    last = constant(model, "last_position", np.array(480, np.int64))
    behind(model, "position_ids", [helper.make_node("Min", ["position_ids", last], ["stopped_position"])])


def forget_a_residual(model: onnx.ModelProto) -> None:
    """Replace the residual stream by the first MLP's result, instead of adding it."""
    node = find(model, "Add", scope="layers.0", operation="add", index=1)
    zero = constant(model, "nothing", np.zeros((), numpy_helper.to_array(weight(model, "ls2")).dtype))
    node.input[0] = before(model, node, helper.make_node("Mul", [node.input[1], zero], ["no_residual"]))


# -- faults hidden by the noise of float16, and faults visible only where a weight is read ---------------------------


def exchange_matrices(model: onnx.ModelProto) -> None:
    """Exchange the output projections of two layers."""
    _exchange(_matrix(model, "layers.0.attn.proj"), _matrix(model, "layers.1.attn.proj"))


def exchange_biases(model: onnx.ModelProto) -> None:
    """Exchange the biases of two layers."""
    _exchange(weight(model, "layers.0.attn.proj.bias"), weight(model, "layers.1.attn.proj.bias"))


def _exchange(one: TensorProto, other: TensorProto) -> None:
    first, second = numpy_helper.to_array(one).copy(), numpy_helper.to_array(other).copy()
    change(one, lambda _: second)
    change(other, lambda _: first)


def transpose_a_matrix(model: onnx.ModelProto) -> None:
    """Transpose a square matrix."""
    change(_matrix(model, "layers.0.attn.proj"), np.transpose)


def exchange_gate_and_up(model: onnx.ModelProto) -> None:
    """Exchange the two halves of a joined matmul."""
    change(_matrix(model, "layers.0.mlp.gate_up_proj"), lambda values: np.roll(values, values.shape[1] // 2, axis=1))


def take_the_next_alpha(model: onnx.ModelProto) -> None:
    """Give the first layer the second layer's alpha."""
    change(weight(model, "layers.0.alpha"), lambda _: numpy_helper.to_array(weight(model, "layers.1.alpha")))


def roll_the_table(model: onnx.ModelProto) -> None:
    """Give every token the row of the token before it."""
    change(_largest(model), lambda values: np.roll(values, 1, axis=0))


def change_the_last_row(model: onnx.ModelProto) -> None:
    """Change one row of a table, that of a token in no prompt."""

    def changed(values: Array) -> Array:
        values[-1, 0] += values.dtype.type(values.std())
        return values

    change(_largest(model), changed)


def _largest(model: onnx.ModelProto) -> Any:
    return max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))


def widen_one_epsilon(model: onnx.ModelProto) -> None:
    """Make the first LayerNorm's epsilon a tenth too large."""
    node = find(model, "LayerNormalization")
    epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
    set_attribute(node, "epsilon", 1.1 * epsilon)


def scale_attention_a_little(model: onnx.ModelProto) -> None:
    """Make scores a thousandth too large."""
    change(weight_of(model, find(model, "Mul", scope="attn")), lambda values: np.asarray(values * 1.001))


def shift_the_mean(model: onnx.ModelProto) -> None:
    """Shift one colour's mean by one pixel value (1/255)."""
    change(weight_of(model, find(model, "Sub", operation="sub")), lambda values: values + np.array([1 / 255, 0, 0]))
