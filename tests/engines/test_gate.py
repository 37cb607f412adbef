"""TensorRT's layer list, from its log and from its inspector: read in full or refused, and judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engines.errors import BuildError
from engines.gate import EngineLayer, check_layers, count_attention, parse_inspector, parse_layers
from engines.graph_specs import graph_specs
from engines.spec import FusedAttention, GraphSpec, StreamLimits

from .test_spec import SHAPE

TEMPORAL = graph_specs(SHAPE, StreamLimits(window=4), "fp16")["temporal"]
ONE_RING = replace(TEMPORAL, states=TEMPORAL.states[:1], fused_attention=FusedAttention(gemv=1))
"""A graph with one ring and one attention over time, for the layer lists below."""

Tensors = list[tuple[str, list[int], str]]
Layer = tuple[str, Tensors, Tensors]
RING = ("past.0.key", [1, 4, 5, 2, 8], "Half")
WEIGHT = ("__mye7_dconst", [64, 64], "Half")
ENGINE: list[Layer] = [
    ("__myl_MulSum_myl0_0", [WEIGHT, ("trunk_features", [1, 5, 16], "Half")], [("query", [1, 5, 16], "Half")]),
    ("_gemv_mha_v1_myl0_1", [("query", [1, 5, 16], "Half"), RING], [("features", [1, 4, 16], "Half")]),
]


def as_log(layers: list[Layer]) -> str:
    """Lists as TensorRT 10 logs them in a build: constants among the inputs, one line per layer, and other lines."""

    def tensors(entries: Tensors) -> str:
        return ", ".join(
            f"{{ Name: {name}, Dimensions: [{','.join(map(str, dims))}], Format/Datatype: {dtype} }}"
            for name, dims, dtype in entries
        )

    lines = [
        f"Name: {name}, LayerType: kgen, Inputs: [ {tensors(inputs)}], Outputs: [ {tensors(outputs)}], "
        "TacticName: __myl_0xc2, StreamId: 0, Metadata: "
        for name, inputs, outputs in layers
    ]
    return "\n".join(["Engine Layer Information:", *lines, "[MemUsageStats] Peak memory usage: 7 MiB"])


def as_inspection(layers: list[Layer]) -> str:
    def tensors(entries: Tensors) -> list[dict[str, Any]]:
        return [
            {"Name": name, "Location": "Device", "Dimensions": dims, "Format/Datatype": dtype}
            for name, dims, dtype in entries
        ]

    return json.dumps(
        {
            "Layers": [
                {"Name": name, "LayerType": "kgen", "Inputs": tensors(inputs), "Outputs": tensors(outputs)}
                for name, inputs, outputs in layers
            ],
            "Bindings": ["trunk_features", "past.0.key", "features"],
        }
    )


def parse_log(layers: list[Layer]) -> tuple[EngineLayer, ...]:
    return parse_layers(as_log(layers))


def parse_json(layers: list[Layer]) -> tuple[EngineLayer, ...]:
    return parse_inspector(as_inspection(layers))


Parse = Callable[[list[Layer]], tuple[EngineLayer, ...]]
both = pytest.mark.parametrize("parse", [parse_log, parse_json], ids=["log", "inspector"])


@both
def test_constants_are_the_inputs_that_no_layer_makes(parse: Parse) -> None:
    first, second = parse(ENGINE)
    assert (first.name, first.kind) == ("__myl_MulSum_myl0_0", "kgen")
    assert ("__mye7_dconst", "Half", 4096) in first.constants
    assert second.inputs == ("query", "past.0.key") and second.outputs == ("features",)
    assert not any(name == "query" for layer in (first, second) for name, _, _ in layer.constants)
    assert count_attention((first, second)) == {"gemm": 0, "gemv": 1}


def test_the_very_line_of_tensorrt_10_is_read() -> None:
    line = (
        "Name: __myl_MulSum_myl0_0, LayerType: kgen, Inputs: [ { Name: __mye116_dconst, Dimensions: [10,10], "
        "Format/Datatype: Float }, { Name: x, Dimensions: [10,1], Format/Datatype: Float }], Outputs: [ { Name: "
        "__myln_k_arg__bb1_2, Dimensions: [1,10], Format/Datatype: Float }], TacticName: __myl_MulSum_0xfa6c, "
        "StreamId: 0, Metadata: "
    )
    (layer,) = parse_layers(line)
    assert layer.inputs == ("__mye116_dconst", "x") and layer.outputs == ("__myln_k_arg__bb1_2",)
    assert layer.constants == (("__mye116_dconst", "Float", 100), ("x", "Float", 10))


@both
def test_an_engine_that_is_what_its_graph_asked_for_passes(parse: Parse) -> None:
    check_layers(parse(ENGINE), ONE_RING, num_float32_weights=0)


@both
def test_the_network_s_own_inputs_are_no_weights(parse: Parse) -> None:
    """The ring is an input that no layer makes, and here larger than any float32 tensor that is allowed."""
    wide = [("_gemv_mha_v1", [("past.0.key", [1, 99, 99, 2, 8], "Float")], [("features", [1], "Half")])]
    check_layers(parse(wide), ONE_RING, num_float32_weights=0)


@both
@pytest.mark.parametrize(
    "dtype", ["Float", "FP32", "Row major linear FP32", "N/A due to dynamic shapes"], ids=lambda d: d.replace(" ", "-")
)
def test_a_matrix_left_in_float32_is_refused_however_it_is_spelled(parse: Parse, dtype: str) -> None:
    name, inputs, outputs = ENGINE[0]
    wide: list[Layer] = [(name, [("__mye9_dconst", [64, 64], dtype), *inputs[1:]], outputs), ENGINE[1]]
    with pytest.raises(BuildError, match=r"has 4096 float32 values.*'__mye9_dconst' with 4096") as info:
        check_layers(parse(wide), ONE_RING, num_float32_weights=0)
    assert "left in float32" in info.value.cause
    check_layers(parse(wide), ONE_RING, num_float32_weights=4096)
    check_layers(parse(wide), ONE_RING, num_float32_weights=None)


@both
@pytest.mark.parametrize("dtype", ["Half", "FP16", "BF16", "BFloat16", "Row major linear FP16 format", "Int64", "Bool"])
def test_narrow_weights_are_no_float32(parse: Parse, dtype: str) -> None:
    name, inputs, outputs = ENGINE[0]
    check_layers(
        parse([(name, [("w", [64, 64], dtype), *inputs[1:]], outputs), ENGINE[1]]), ONE_RING, num_float32_weights=0
    )


@both
def test_a_size_that_is_not_known_hides_no_other(parse: Parse) -> None:
    """-1 stands for a dynamic size. Multiplied, it would cancel the size of another constant."""
    name, inputs, outputs = ENGINE[0]
    two: Tensors = [("a", [64, 64], "Float"), ("b", [-1, 64, 64], "Float")]
    with pytest.raises(BuildError, match="has 8192 float32 values"):
        check_layers(parse([(name, [*two, *inputs], outputs), ENGINE[1]]), ONE_RING, num_float32_weights=0)


@both
def test_a_second_reader_of_a_ring_is_refused(parse: Parse) -> None:
    copying: Layer = ("__myl_Move_myl0_2", [RING], [("copy", [1, 4, 5, 2, 8], "Half")])
    with pytest.raises(BuildError, match=r"reads the ring 'past\.0\.key' in \['_gemv.*', '__myl_Move_myl0_2'\]"):
        check_layers(parse([*ENGINE, copying]), ONE_RING, num_float32_weights=0)


@both
def test_an_attention_that_fell_apart_is_refused(parse: Parse) -> None:
    loose = [ENGINE[0], ("__myl_FcMulSof_myl0_1", *ENGINE[1][1:])]
    with pytest.raises(BuildError, match="0 over one row\nexpected: 0 and 1"):
        check_layers(parse(loose), ONE_RING, num_float32_weights=0)


def unnamed(spec: GraphSpec) -> str:
    """The inspector's text for an engine built without ProfilingVerbosity.DETAILED: only names."""
    return json.dumps({"Layers": [spec.name], "Bindings": []})


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "{}", '{"Layers": 7}', '{"Layers": [{"Name": "x"}]}', unnamed(TEMPORAL),
     as_inspection(ENGINE).replace('"Dimensions"', '"Shape"'), as_inspection(ENGINE).replace("[64, 64]", '["a"]')],
    ids=["empty", "text", "list", "no layers", "number", "half a layer", "names alone", "renamed", "no number"],
)  # fmt: skip
def test_an_inspection_that_cannot_be_read_fails(text: str) -> None:
    with pytest.raises(BuildError, match="inspector's list of layers cannot be read"):
        parse_inspector(text)


def test_an_inspection_without_layers_fails() -> None:
    with pytest.raises(BuildError, match="lists no layers"):
        parse_inspector('{"Layers": []}')


@pytest.mark.parametrize(
    "change",
    [("Dimensions: [64,64]", "Dimensions: [64, 64]"), ("Format/Datatype: Half }", "Type: Half }"), ("Inputs", "In")],
    ids=["spaces in sizes", "no dtype", "no inputs"],
)
def test_a_log_whose_tensors_cannot_be_read_fails(change: tuple[str, str]) -> None:
    """No gate sees a tensor that is skipped."""
    with pytest.raises(BuildError, match="cannot be read"):
        parse_layers(as_log(ENGINE).replace(*change))
