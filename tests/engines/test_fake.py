"""The target files, and the fake session that stands in for every graph of any target."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest

from engines.cache import LinearCache, RingCache
from engines.errors import SpecError
from engines.fake import FakeSession
from engines.graph_specs import graph_specs
from engines.memory import Array, host_dtype
from engines.spec import GRAPH_NAMES, CacheUpdate, GraphSpec, Part, Precision, Quantization, Spelling, StreamLimits
from engines.target import FOLDER, Target, load_target, target_names

from .test_spec import LIMITS, SHAPE

RUNTIMES = {"ort-cpu": None, "ort-cuda": None, "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}
SIZES = {"batch": 2, "rows": 3, "past": 128}


def test_the_targets_are_the_ten_of_the_readme() -> None:
    assert target_names() == [
        "cpu", "cpu-vnni", "cuda", "jetson-orin-jp62", "jetson-orin-jp72",
        "jetson-thor-jp70", "jetson-thor-jp72", "rtx", "tensorrt", "tensorrt-10",
    ]  # fmt: skip


@pytest.mark.parametrize("name", target_names())
def test_a_target_file_says_what_a_target_has_and_nothing_else(name: str) -> None:
    data = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert set(data) == {field.name for field in fields(Target)}
    target = load_target(name)
    assert target.name == name and target.description and target.spelling in get_args(Spelling)
    assert target.precisions and set(target.precisions) <= set(get_args(Precision))
    assert all(capability[:2] == "SM" and capability[2:].isdigit() for capability in target.compute_capabilities)


@pytest.mark.parametrize("name", target_names())
def test_a_target_builds_engines_if_and_only_if_its_runtime_runs_them(name: str) -> None:
    target = load_target(name)
    assert target.builder == RUNTIMES[target.runtime]
    assert len(target.builder_versions) == (2 if target.builder else 0)
    assert target.engine_graphs == (tuple(g for g in GRAPH_NAMES if g != "embed") if target.builder else ())
    assert target.spelling == ("split" if target.runtime == "ort-cpu" else "concat")
    # TensorScatter and Attention came to TensorRT's parser with 10.15.
    since = tuple(int(part) for part in target.builder_versions[0].split(".")) if target.builder else (0,)
    in_place = name in ("cpu", "cpu-vnni", "rtx") or (target.runtime == "tensorrt" and since >= (10, 15))
    assert target.cache_update == ("aliased" if in_place else "rows")
    assert "bf16" in target.precisions or target.runtime == "ort-cpu"
    assert bool(target.compute_capabilities) == (name == "rtx" or name.startswith("jetson"))


@pytest.mark.parametrize("name", target_names())
def test_a_target_takes_weights_of_four_bits_or_says_why_not(name: str) -> None:
    target = load_target(name)
    assert bool(target.int4_blocks) == (not target.no_int4)
    serves_10_3 = bool(target.builder_versions) and target.builder_versions[0] == "10.3"
    assert bool(target.int4_blocks) == (not serves_10_3), "10.3 reads opset 20, and blocks came with opset 21"
    assert target.int4_zero_points == (target.runtime == "ort-cpu"), "TensorRT's codes are symmetric"
    for block in target.int4_blocks:
        Quantization(block=block, zero_points=target.int4_zero_points, method="round", inputs=target.int4_inputs)
    assert target.int4_inputs == ("blocks" if target.runtime == "ort-cpu" else "float")


@pytest.mark.parametrize("name", target_names())
def test_a_target_multiplies_in_eight_bits_or_says_why_not(name: str) -> None:
    target = load_target(name)
    assert set(target.int8) == set(get_args(Part)) or target.no_int8
    assert ("static" in target.int8.values()) == target.runtime.startswith("tensorrt")
    for inputs in target.int8.values():
        Quantization(bits=8, block=None, zero_points=False, method="round", inputs=inputs)


def feeds_of(spec: GraphSpec) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        tensor.name: rng.integers(0, 2, tensor.resolve(SIZES)).astype(host_dtype(tensor.dtype))
        for tensor in spec.inputs
    }


@pytest.mark.parametrize("limits", [LIMITS, StreamLimits(window=4)], ids=["three streams", "one stream"])
@pytest.mark.parametrize("spelling", get_args(Spelling))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_fake_session_obeys_every_spec(precision: Precision, spelling: Spelling, limits: StreamLimits) -> None:
    for spec in graph_specs(SHAPE, limits, precision, spelling).values():
        outputs = FakeSession(spec).run(feeds_of(spec))
        assert list(outputs) == [tensor.name for tensor in spec.outputs]
        for tensor in spec.outputs:
            assert outputs[tensor.name].shape == tensor.resolve(SIZES)
            tensor.check(outputs[tensor.name], spec.name)


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_a_fake_session_depends_on_every_input_and_on_nothing_else(name: str) -> None:
    spec = graph_specs(SHAPE, LIMITS, "bf16")[name]
    session, feeds = FakeSession(spec), feeds_of(spec)
    outputs = session.run(feeds)
    again = FakeSession(spec).run({key: value.copy() for key, value in reversed(feeds.items())})
    assert all(np.array_equal(outputs[key], again[key]) for key in outputs)
    for changed in feeds:
        other = feeds[changed].copy()
        other.flat[-1] = 1 - other.flat[-1]
        different = session.run({**feeds, changed: other})
        assert all(not np.array_equal(outputs[key], different[key]) for key in outputs), changed


def test_a_fake_session_refuses_what_a_real_one_refuses() -> None:
    spec = graph_specs(SHAPE, LIMITS, "fp32")["head"]
    with pytest.raises(SpecError, match="tensor 'hidden' is float16"):
        FakeSession(spec).run({"hidden": np.zeros((1, 1, 12), np.float16)})


@pytest.mark.parametrize("cache_update", get_args(CacheUpdate))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_caches_take_what_fake_sessions_return(precision: Precision, cache_update: CacheUpdate) -> None:
    """So a stream can be tested without any runtime, bfloat16 included."""
    specs = graph_specs(SHAPE, StreamLimits(window=4, context=512), precision, cache_update=cache_update)
    temporal, llm = FakeSession(specs["temporal"]), FakeSession(specs["llm"])
    ring, cache = RingCache(temporal.spec, temporal.memory), LinearCache(llm.spec, llm.memory)
    features = np.zeros((1, 5, 16), host_dtype(temporal.spec.input("trunk_features").dtype))
    for index in range(6):
        time = np.asarray([index], np.float32)
        ring.push(temporal.run({"trunk_features": features, "frame_time": time, **ring.feeds()}))
        embeds = np.full((1, 4, 12), index, host_dtype(llm.spec.input("inputs_embeds").dtype))
        cache.append(llm.run({"inputs_embeds": embeds, **cache.feeds(4)}), 4)
    rows = [llm.spec.states[0].as_rows(array) for name, array in cache.dump().items() if name == "past.0.key"][0]
    assert cache.length == 24 and len(np.unique(rows.astype(np.float32))) > 100, "all rows must differ"
    assert (ring.num_frames, cache.length) == (6, 24)
