"""GraphSpec: one declaration from which export, profiles, binding and caches follow."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engines.errors import SpecError
from engines.graph_specs import graph_specs
from engines.spec import GRAPH_NAMES, CacheUpdate, GraphSpec, ModelShape, StreamLimits

SHAPE = ModelShape(
    image_size=28,
    num_positions=5,
    vision_width=16,
    num_trunk_layers=2,
    num_temporal_layers=3,
    vision_heads=2,
    vision_head_dim=8,
    num_frame_tokens=4,
    num_compressor_attentions=0,
    llm_width=12,
    num_llm_layers=2,
    num_kv_heads=1,
    llm_head_dim=6,
    vocab_size=50,
    max_positions=1024,
)
LIMITS = StreamLimits(window=6, context=512, streams=3, chunk=64, bucket=128)


def test_the_six_graphs_chain_into_one_another() -> None:
    specs = graph_specs(SHAPE, LIMITS, "fp16")
    assert tuple(specs) == GRAPH_NAMES
    assert specs["trunk"].output("trunk_features") == specs["temporal"].input("trunk_features")
    assert specs["temporal"].output("features") == specs["compressor"].input("features")
    assert specs["embed"].output("inputs_embeds") == specs["llm"].input("inputs_embeds")
    assert specs["llm"].output("hidden") == specs["head"].input("hidden")


@pytest.mark.parametrize("streams", [1, 3], ids=lambda n: f"streams={n}")
@pytest.mark.parametrize("cache_update", ["rows", "aliased"])
def test_a_spec_survives_json(streams: int, cache_update: CacheUpdate) -> None:
    for spec in graph_specs(SHAPE, StreamLimits(streams=streams), "fp32", cache_update=cache_update).values():
        assert GraphSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_that_is_no_spec_is_refused() -> None:
    with pytest.raises(SpecError, match="not a graph specification"):
        GraphSpec.from_json({"name": "trunk"})


def test_every_state_reads_an_input_and_fills_from_an_output() -> None:
    specs = graph_specs(SHAPE, LIMITS, "fp16")
    assert len(specs["temporal"].states) == 2 * SHAPE.num_temporal_layers
    assert len(specs["llm"].states) == 2 * SHAPE.num_llm_layers
    for spec in specs.values():
        for state in spec.states:
            cache, row = spec.input(state.input), spec.output(state.output)
            assert cache.dtype == row.dtype == state.dtype == "float16"
            assert state.layout[state.slot_axis] in "WS"


def test_row_bytes_are_those_of_one_frame_or_one_token_of_one_stream() -> None:
    specs = graph_specs(SHAPE, LIMITS, "fp16")
    assert specs["temporal"].states[0].row_bytes == 5 * 2 * 8 * 2  # N * H * D * bytes of float16
    assert specs["llm"].states[0].row_bytes == 1 * 6 * 2


def test_a_profile_covers_every_size_from_one_row_to_the_limits() -> None:
    llm = graph_specs(SHAPE, LIMITS, "fp16")["llm"]
    (profile,) = llm.profiles
    assert llm.profile_shapes(llm.input("inputs_embeds"), profile) == ((1, 1, 12), (3, 4, 12), (3, 64, 12))
    assert llm.profile_shapes(llm.input("attention_mask"), profile) == ((1, 129), (3, 132), (3, 576))  # past + rows
    assert llm.profile_shapes(llm.input("past.1.value"), profile) == ((1, 128, 1, 6), (3, 128, 1, 6), (3, 512, 1, 6))


@pytest.mark.parametrize("streams", [1, 3], ids=lambda n: f"streams={n}")
def test_in_place_decode_has_a_profile_of_its_own_and_never_of_a_single_row(streams: int) -> None:
    """For a batch of exactly one, the compiler would store the weights in a second layout."""
    limits = StreamLimits(context=512, streams=streams, chunk=64)
    llm = graph_specs(SHAPE, limits, "fp16", cache_update="aliased")["llm"]
    many, one = llm.profiles
    assert llm.profile_shapes(llm.input("position_ids"), many)[2] == (streams, 64)
    assert llm.profile_shapes(llm.input("position_ids"), one) == ((1, 1), (streams, 1), (max(streams, 2), 1))
    assert llm.input("past.0.key").shape == ("batch", 1, 512, 6), "a cache updated in place must have a fixed size"
    assert llm.profile_index({"batch": 1, "rows": 1}) == 1 and llm.profile_index({"batch": 1, "rows": 2}) == 0
    with pytest.raises(SpecError, match="fit none of its profiles"):
        llm.profile_index({"batch": 1, "rows": 65})


@pytest.mark.parametrize("cache_update", ["rows", "aliased"])
def test_what_a_graph_updates_in_place_is_reported_by_its_states(cache_update: CacheUpdate) -> None:
    llm = graph_specs(SHAPE, LIMITS, "fp16", cache_update=cache_update)["llm"]
    expected = {s.output: s.input for s in llm.states} if cache_update == "aliased" else {}
    assert llm.aliases == expected
    for state in llm.states:
        cache = np.zeros(llm.input(state.input).resolve({"batch": 2, "past": 512}), np.float16)
        assert state.as_rows(cache).shape == (2, 512, 1, 6) and np.shares_memory(state.as_rows(cache), cache)


def test_one_stream_makes_a_fixed_batch() -> None:
    specs = graph_specs(SHAPE, StreamLimits(streams=1), "fp32")
    assert specs["trunk"].dims == {} and specs["trunk"].input("frame").shape[0] == 1
    assert graph_specs(SHAPE, LIMITS, "fp32")["trunk"].input("frame").shape[0] == "batch"


def test_a_tensor_of_another_shape_or_dtype_is_named() -> None:
    spec = graph_specs(SHAPE, StreamLimits(), "fp32")["temporal"]
    good = np.zeros((1, 5, 16), dtype=np.float32)
    spec.input("trunk_features").check(good, "temporal")
    for wrong, found in ((good[..., :15], r"float32 \(1, 5, 15\)"), (good.astype(np.float64), "float64")):
        with pytest.raises(SpecError, match=f"'trunk_features' is {found}") as info:
            spec.input("trunk_features").check(wrong, "temporal")
        assert info.value.expected == "float32 (1, 5, 16)"
    with pytest.raises(SpecError, match="has no tensor 'frame'") as info:
        spec.input("frame")
    assert info.value.expected.startswith("one of trunk_features, frame_time")


@pytest.mark.parametrize(
    ("limits", "what", "number"),
    [
        ({"window": 0}, "window is 0", "at least 1"),
        ({"context": 1000, "bucket": 256}, "1000 is not a multiple of bucket = 256", "the next multiple is 1024"),
    ],
)
def test_limits_that_cannot_be_are_refused_with_the_number_that_can(
    limits: dict[str, int], what: str, number: str
) -> None:
    with pytest.raises(SpecError, match=what) as info:
        StreamLimits(**limits)
    assert number in (info.value.expected, info.value.fix)
