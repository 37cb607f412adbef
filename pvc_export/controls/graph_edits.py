"""Edits of an exported graph that its hashes do not show: the manifest is stamped anew, as a faulty exporter would."""

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
    """Change one graph of a bundle, weights included, and stamp the manifest so that the hashes agree."""
    path = bundle / graph_path(name)
    model = onnx.load(path)
    edit(model)
    path.with_name(path.name + ".data").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    sign_engines(restamp(bundle)).save(bundle)


def restamp(bundle: Path) -> Manifest:
    """Hashes of what lies there now, and engines that say they were built from it. What nobody but their builder could
    do is left out: they are not signed anew. Returns the manifest that it saved."""
    manifest, files = Manifest.load(bundle), hash_folder(bundle)
    engines = {
        name: replace(entry, built_from=fingerprint(files, graph_path(name)))
        for name, entry in manifest.engines.items()
    }
    manifest = replace(manifest, files=files, engines=engines)
    manifest.save(bundle)
    return manifest


def find(model: onnx.ModelProto, op_type: str, *, scope: str = "", operation: str = "", index: int = 0) -> Any:
    """The index-th node of that type whose module's name ends in `scope`, in torch's `operation`.

    Raises SpecError where there is none: a defect that changes nothing would prove nothing.
    """
    known = origins(model)
    found = [
        node
        for node in model.graph.node
        if node.op_type == op_type and _fits(known.get(node.output[0]), scope, operation)
    ]
    if index >= len(found):
        raise SpecError(
            f"the graph has {len(found)} nodes {op_type} of '{operation}' in '{scope}'",
            expected=f"at least {index + 1}",
        )
    return found[index]


def _fits(origin: Origin | None, scope: str, operation: str) -> bool:
    if not scope and not operation:
        return True
    return origin is not None and origin.scope.endswith(scope) and origin.operation.startswith(operation)


def weight(model: onnx.ModelProto, ending: str) -> Any:
    """The first initializer whose name ends so. Raises SpecError where there is none."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(ending):
            return tensor
    raise SpecError(f"the graph has no weight whose name ends in '{ending}'")


def weight_of(model: onnx.ModelProto, node: NodeProto) -> Any:
    """The first initializer that a node reads."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    return next(known[name] for name in node.input if name in known)


def change(tensor: TensorProto, to: Callable[[Array], Array]) -> None:
    """Replace a weight's values by a function of them, in its dtype."""
    values = numpy_helper.to_array(tensor)
    changed = np.array(to(values.copy()), values.dtype, order="C")  # ascontiguousarray makes a vector of a scalar
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def behind(model: onnx.ModelProto, name: str, nodes: Sequence[NodeProto]) -> None:
    """Let all that read the graph's input `name` read what the last of `nodes` returns; they read `name`."""
    read_instead(model, {name: nodes[-1].output[0]})
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def before(model: onnx.ModelProto, node: NodeProto, made: NodeProto) -> str:
    """Put a new node into the graph right before one that is to read it; returns the name of its result."""
    model.graph.node.insert(list(model.graph.node).index(node), made)
    return str(made.output[0])


def constant(model: onnx.ModelProto, name: str, value: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def read_instead(model: onnx.ModelProto, others: Mapping[str, str]) -> None:
    """Let every node that reads a key of `others` read its value."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = others.get(name, name)


def input_shape(model: onnx.ModelProto, name: str) -> list[int]:
    """Sizes of an input of the graph, 0 where they are not constant."""
    value = next(value for value in model.graph.input if value.name == name)
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


# -- what faulty exporters do --------------------------------------------------------------------------------------


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
    """The past of the first layer is read the wrong way round."""
    read_instead(model, {"past.0.key": "past.0.value", "past.0.value": "past.0.key"})


def swap_colours(model: onnx.ModelProto) -> None:
    order = constant(model, "bgr", np.array([2, 1, 0], np.int64))
    behind(model, "frame", [helper.make_node("Gather", ["frame", order], ["swapped_frame"], axis=3)])


def widen_epsilon(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            set_attribute(node, "epsilon", 1e-3)


def drop_layer_scale(model: onnx.ModelProto) -> None:
    """The first LayerScale is left out."""
    change(weight(model, "layers.0.ls1"), np.ones_like)


def approximate_gelu(model: onnx.ModelProto) -> None:
    set_attribute(find(model, "Gelu"), "approximate", "tanh")


def transpose_shuffle(model: onnx.ModelProto) -> None:
    """Space to depth with rows and columns of a token exchanged."""
    set_attribute(find(model, "Transpose", operation="permute"), "perm", [0, 1, 3, 4, 2, 5])


def swap_query_and_key(model: onnx.ModelProto) -> None:
    """The fused qkv is split in the wrong order."""
    node = find(model, "Split")
    third = len(node.output) // 3  # one output each, or one a head
    for index in range(third):
        query, key = node.output[index], node.output[third + index]
        node.output[index], node.output[third + index] = key, query


def stop_the_clock(model: onnx.ModelProto) -> None:
    """Time stands still after frame 20."""
    last = constant(model, "last_time", np.array(20.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Min", ["frame_time", last], ["stopped_time"])])


def round_the_clock(model: onnx.ModelProto) -> None:
    """The frame time passes through float16, as without its island: it has no integers beyond 2048."""
    cast = helper.make_node("Cast", ["frame_time"], ["half_time"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["half_time"], ["rounded_time"], to=TensorProto.FLOAT)
    behind(model, "frame_time", [cast, back])


def forget_the_time(model: onnx.ModelProto) -> None:
    """Every frame is frame 0."""
    zero = constant(model, "no_time", np.array(0.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Mul", ["frame_time", zero], ["frozen_time"])])


def first_stream_for_all(model: onnx.ModelProto) -> None:
    """Every stream of a batch gets the embeddings of stream 0."""
    zero, one = (constant(model, name, np.array(value, np.int64)) for name, value in (("zero", [0]), ("one", [1])))
    nodes = [
        helper.make_node("Shape", ["inputs_embeds"], ["embeds_shape"]),
        helper.make_node("Slice", ["inputs_embeds", zero, one, zero], ["first_stream"]),
        helper.make_node("Expand", ["first_stream", "embeds_shape"], ["same_embeds"]),
    ]
    behind(model, "inputs_embeds", nodes)


def return_the_old_row(model: onnx.ModelProto) -> None:
    """A stale state: the first key's new row is what the ring's slot 0 held."""
    window = input_shape(model, "slot_mask")[1]
    axis = input_shape(model, "past.0.key").index(window, 1)
    node = next(node for node in model.graph.node if "new.0.key" in node.output)
    node.output[list(node.output).index("new.0.key")] = "true_row"
    index = constant(model, "slot_zero", np.array(0, np.int64))
    model.graph.node.append(helper.make_node("Gather", ["past.0.key", index], ["new.0.key"], axis=axis))


def quantize_a_matrix(model: onnx.ModelProto) -> None:
    """One matrix is stored in eight bits."""

    def rounded(values: Array) -> Array:
        step = np.abs(values).max() / 127
        return np.asarray(np.round(values / step) * step)

    change(max((t for t in model.graph.initializer if len(t.dims) == 2), key=lambda t: int(np.prod(t.dims))), rounded)


def scale_attention(model: onnx.ModelProto) -> None:
    """Scores are scaled by 1 / D in place of 1 / sqrt(D)."""
    change(weight_of(model, find(model, "Mul", scope="attn")), np.square)


def see_the_next_row(model: onnx.ModelProto) -> None:
    """A causal mask that is off by one: every new row also sees the one behind it."""
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
    """InternLM2 fuses, for each key/value head, its query heads, the key and the value; here the fused matrix is cut as
    if it held all queries, then all keys, then all values."""
    matrix, cache = _matrix(model, "layers.0.attn.qkv_proj"), input_shape(model, "past.0.key")
    is_in_place = any(node.op_type == "TensorScatter" for node in model.graph.node)
    num_heads, num_kv = matrix.dims[1] // cache[-1], cache[1 if is_in_place else 2]
    sizes = np.array([num_heads - 2 * num_kv, num_kv, num_kv])  # heads of q, k and v
    heads = np.split(numpy_helper.to_array(matrix), sizes.sum(), axis=1)
    query, key, value = (heads[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True))
    if len(key) == 1:
        raise SpecError("with one key/value head both ways to cut wqkv are the same", expected="several of them")
    group = len(query) // len(key)
    fused = [
        head
        for index in range(len(key))
        for head in (*query[index * group : (index + 1) * group], key[index], value[index])
    ]
    change(matrix, lambda _: np.concatenate(fused, axis=1))


def _matrix(model: onnx.ModelProto, scope: str) -> Any:
    """The matrix of a linear layer, whether a bias is added to its product or not."""
    named = next(name for name, origin in origins(model).items() if origin.scope.endswith(scope))
    node = next(node for node in model.graph.node if named in node.output)
    if node.op_type != "MatMul":
        node = next(other for other in model.graph.node if other.op_type == "MatMul" and other.output[0] in node.input)
    return weight_of(model, node)


def repeat_a_frame_time(model: onnx.ModelProto) -> None:
    """Frame 13 has the time of frame 12: one row of a table, looked up wrongly. All our models are trained so far."""
    own, other = (constant(model, name, np.array(time, np.float32)) for name, time in (("own", 13.0), ("other", 12.0)))
    nodes = [
        helper.make_node("Equal", ["frame_time", own], ["is_own"]),
        helper.make_node("Where", ["is_own", other, "frame_time"], ["repeated_time"]),
    ]
    behind(model, "frame_time", nodes)


def begin_time_anew(model: onnx.ModelProto) -> None:
    """Time begins anew after 64 frames."""
    period = constant(model, "period", np.array(64.0, np.float32))
    behind(model, "frame_time", [helper.make_node("Mod", ["frame_time", period], ["wrapped_time"], fmod=1)])


def shift_positions_midway(model: onnx.ModelProto) -> None:
    """Positions 290 to 350 are one too large: no end of a bucket or of the context is among them."""
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
    """Rotary positions stand still 32 rows before the context ends (512 rows here)."""
    last = constant(model, "last_position", np.array(480, np.int64))
    behind(model, "position_ids", [helper.make_node("Min", ["position_ids", last], ["stopped_position"])])


def forget_a_residual(model: onnx.ModelProto) -> None:
    """The first MLP's result replaces what it should be added to."""
    node = find(model, "Add", scope="layers.0", operation="add", index=1)
    zero = constant(model, "nothing", np.zeros((), numpy_helper.to_array(weight(model, "ls2")).dtype))
    node.input[0] = before(model, node, helper.make_node("Mul", [node.input[1], zero], ["no_residual"]))


# -- what the noise of float16 covers, and what only shows where a weight is read ------------------------------------


def exchange_matrices(model: onnx.ModelProto) -> None:
    """Two layers have each other's output projection."""
    _exchange(_matrix(model, "layers.0.attn.proj"), _matrix(model, "layers.1.attn.proj"))


def exchange_biases(model: onnx.ModelProto) -> None:
    """Two layers have each other's bias."""
    _exchange(weight(model, "layers.0.attn.proj.bias"), weight(model, "layers.1.attn.proj.bias"))


def _exchange(one: TensorProto, other: TensorProto) -> None:
    first, second = numpy_helper.to_array(one).copy(), numpy_helper.to_array(other).copy()
    change(one, lambda _: second)
    change(other, lambda _: first)


def transpose_a_matrix(model: onnx.ModelProto) -> None:
    """A square matrix lies the wrong way round."""
    change(_matrix(model, "layers.0.attn.proj"), np.transpose)


def exchange_gate_and_up(model: onnx.ModelProto) -> None:
    """The two halves of a joined product stand in the wrong order."""
    change(_matrix(model, "layers.0.mlp.gate_up_proj"), lambda values: np.roll(values, values.shape[1] // 2, axis=1))


def take_the_next_alpha(model: onnx.ModelProto) -> None:
    """The first layer has the second's gain of attention over time."""
    change(weight(model, "layers.0.alpha"), lambda _: numpy_helper.to_array(weight(model, "layers.1.alpha")))


def roll_the_table(model: onnx.ModelProto) -> None:
    """Every token has the row of the one before it."""
    change(_largest(model), lambda values: np.roll(values, 1, axis=0))


def change_the_last_row(model: onnx.ModelProto) -> None:
    """One row of a table, of a token that no prompt has."""

    def changed(values: Array) -> Array:
        values[-1, 0] += values.dtype.type(values.std())
        return values

    change(_largest(model), changed)


def _largest(model: onnx.ModelProto) -> Any:
    return max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))


def widen_one_epsilon(model: onnx.ModelProto) -> None:
    """The first LayerNorm's epsilon is a tenth too large."""
    node = find(model, "LayerNormalization")
    epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
    set_attribute(node, "epsilon", 1.1 * epsilon)


def scale_attention_a_little(model: onnx.ModelProto) -> None:
    """Scores are a thousandth too large."""
    change(weight_of(model, find(model, "Mul", scope="attn")), lambda values: np.asarray(values * 1.001))


def shift_the_mean(model: onnx.ModelProto) -> None:
    """A colour's mean is off by one of the 256 values that a pixel can have."""
    change(weight_of(model, find(model, "Sub", operation="sub")), lambda values: values + np.array([1 / 255, 0, 0]))
