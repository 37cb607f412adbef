"""The runtime's caches, checked against plain lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.cache import LinearCache, RingCache
from engines.errors import SpecError, StreamFull
from engines.fake import RecordingCuda
from engines.graph_specs import graph_specs
from engines.memory import DeviceMemory, HostMemory, Tensor
from engines.spec import CacheUpdate, StreamLimits

from .test_spec import SHAPE

W = 4
SPECS = graph_specs(SHAPE, StreamLimits(window=W, context=8, chunk=8, bucket=4), "fp32")


def vision_rows(value: int) -> dict[str, np.ndarray]:
    """Rows that identify their frame and their state."""
    states = SPECS["temporal"].states
    return {s.output: np.full((1, 5, 2, 8), 100 * value + i, np.float32) for i, s in enumerate(states)}


def llm_rows(values: list[int]) -> dict[str, np.ndarray]:
    column = np.array(values, np.float32)[None, :, None, None]
    return {
        s.output: np.broadcast_to(column + i / 8, (1, len(values), 1, 6)) for i, s in enumerate(SPECS["llm"].states)
    }


@pytest.mark.parametrize("num_frames", [0, 1, W - 1, W, W + 1, 3 * W + 2], ids=lambda n: f"T={n}")
def test_the_readable_slots_hold_exactly_the_last_w_minus_1_frames(num_frames: int) -> None:
    ring = RingCache(SPECS["temporal"])
    for t in range(num_frames):
        ring.push(vision_rows(t + 1))
    feeds = ring.feeds()
    for i, state in enumerate(SPECS["temporal"].states):
        readable = feeds[state.input][:, feeds["slot_mask"][0]]
        frames = sorted((readable[0, :, 0, 0, 0] - i) / 100)
        assert frames == [t + 1 for t in range(max(0, num_frames - W + 1), num_frames)]


def test_the_slot_that_the_next_frame_overwrites_is_masked() -> None:
    ring = RingCache(SPECS["temporal"])
    for t in range(W + 1):
        ring.push(vision_rows(t))
    mask = ring.feeds()["slot_mask"]
    assert mask.dtype == bool and mask.shape == (1, W)
    assert list(np.flatnonzero(~mask[0])) == [(W + 1) % W]


def test_a_reset_ring_is_a_fresh_ring() -> None:
    ring = RingCache(SPECS["temporal"])
    for t in range(W + 2):
        ring.push(vision_rows(t + 1))
    ring.reset()
    fresh = RingCache(SPECS["temporal"]).feeds()
    assert all(np.array_equal(fresh[name], array) for name, array in ring.feeds().items())


def test_rings_never_move() -> None:
    ring = RingCache(SPECS["temporal"])
    before = {name: array.ctypes.data for name, array in ring.feeds().items() if name != "slot_mask"}
    for t in range(2 * W):
        ring.push(vision_rows(t))
    assert before == {name: array.ctypes.data for name, array in ring.feeds().items() if name != "slot_mask"}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.integers(1, 5), st.just("rollback")), max_size=12))
def test_a_linear_cache_is_a_list_that_can_be_cut(steps: list[int | str]) -> None:
    """After appending rows and setting the length back in any order, it has what a plain list would have."""
    cache, model = LinearCache(SPECS["llm"]), list[int]()
    for number, step in enumerate(steps):
        if step == "rollback":
            del model[len(model) // 2 :]
            cache.length = len(model)
            continue
        rows = [10 * number + i for i in range(int(step))]
        if len(model) + len(rows) > cache.capacity:
            with pytest.raises(StreamFull, match="--context"):
                cache.append(llm_rows(rows), len(rows))
            continue
        cache.append(llm_rows(rows), len(rows))
        model += rows
    feeds = cache.feeds(num_rows=2)
    mask = feeds["attention_mask"][0]
    visible = np.flatnonzero(mask[:-2])
    assert list(mask[-2:]) == [1, 1]
    assert list(feeds["position_ids"][0]) == [len(model), len(model) + 1]
    for i, state in enumerate(SPECS["llm"].states):
        assert list(feeds[state.input][0, visible, 0, 0] - i / 8) == model


@pytest.mark.parametrize(("length", "fed"), [(0, 4), (1, 4), (4, 4), (5, 8), (8, 8)])
def test_the_linear_cache_is_fed_in_whole_buckets(length: int, fed: int) -> None:
    cache = LinearCache(SPECS["llm"])
    if length:
        cache.append(llm_rows(list(range(length))), length)
    feeds = cache.feeds(num_rows=1)
    assert feeds["past.0.key"].shape[1] == fed
    assert feeds["attention_mask"].shape == (1, fed + 1) and feeds["attention_mask"].sum() == length + 1


LONG = StreamLimits(window=W, context=2048)


@pytest.mark.parametrize("num_rows", [1, 64], ids=["a token", "a frame"])
@pytest.mark.parametrize("cache_update", ["rows", "aliased"])
def test_at_every_length_each_row_in_use_is_read_and_no_other(cache_update: CacheUpdate, num_rows: int) -> None:
    """From an empty cache to a full one, so across every edge of every bucket."""
    spec = graph_specs(SHAPE, LONG, "fp32", cache_update=cache_update)["llm"]
    cache = LinearCache(spec)
    for length in range(LONG.context - num_rows + 1):
        cache.length = length
        feeds = cache.feeds(num_rows)
        assert feeds["position_ids"].tolist() == [list(range(length, length + num_rows))]
        fed = {feeds[state.input].shape[state.slot_axis] for state in spec.states}
        if cache_update == "aliased":
            assert fed == {LONG.context} and feeds["write_index"].tolist() == [length]
            continue
        buckets = max(1, (length + LONG.bucket - 1) // LONG.bucket)
        assert fed == {buckets * LONG.bucket}
        mask = feeds["attention_mask"]
        assert mask.dtype == np.int64 and mask.shape == (1, buckets * LONG.bucket + num_rows)
        read = np.flatnonzero(mask[0])
        new = np.arange(num_rows) + buckets * LONG.bucket
        assert np.array_equal(read, np.concatenate([np.arange(length), new])) and mask.max() == 1


IN_PLACE = graph_specs(SHAPE, StreamLimits(window=W, context=8, chunk=8, bucket=4), "fp32", cache_update="aliased")[
    "llm"
]


def test_a_cache_that_a_graph_updates_in_place_is_fed_whole_and_only_counted() -> None:
    cache = LinearCache(IN_PLACE)
    feeds = cache.feeds(num_rows=3)
    caches = {state.output: feeds[state.input] for state in IN_PLACE.states}
    for array in caches.values():  # as the graph does
        array[:, :, :3] = 7.0
    assert all(np.all(rows == 7.0) and rows.shape == (1, 1, 3, 6) for rows in cache.new_rows(caches, 3).values())
    cache.append(caches, 3)
    feeds = cache.feeds(num_rows=1)
    assert cache.length == 3 and list(feeds["write_index"]) == [3] and list(feeds["position_ids"][0]) == [3]
    assert all(feeds[state.input] is caches[state.output] for state in IN_PLACE.states)


GROWING = graph_specs(SHAPE, StreamLimits(window=W, context=192, bucket=64), "fp32", "split", cache_update="aliased")[
    "llm"
]
"""A cache that is fed the rows in use, rounded up to a multiple of 64."""


def written(cache: LinearCache, values: Sequence[float]) -> dict[str, Tensor]:
    """Write these rows as a graph would, and return the feeds."""
    feeds = cache.feeds(len(values))
    for index, state in enumerate(GROWING.states):
        array = feeds[state.input]
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        heads = np.arange(array.shape[1])[None, :, None, None]
        array[:, :, cache.length : cache.length + len(values)] = np.asarray(values)[:, None] + index / 8 + heads / 64
    cache.append({}, len(values))
    return feeds


def test_a_cache_that_is_fed_what_is_there_grows_by_steps_and_keeps_its_rows() -> None:
    cache, values = LinearCache(GROWING), list[float]()
    for count in (1, 62, 1, 1, 64, 3, 60):
        new = [float(len(values) + index) for index in range(count)]
        values += new
        feeds = written(cache, new)
        room = -(-len(values) // 64) * 64
        for index, state in enumerate(GROWING.states):
            array = feeds[state.input]
            assert array.shape == (1, 1, room, 6) == GROWING.input(state.input).resolve({"batch": 1, "past": room})
            assert np.array_equal(array[0, 0, :, 0], [*(x + index / 8 for x in values), *[0.0] * (room - len(values))])
    assert cache.length == cache.capacity == 192
    with pytest.raises(StreamFull):
        cache.reserve(1)


def test_what_it_is_fed_depends_on_its_length_alone() -> None:
    """So rows that were rolled back leave no trace, not even in the last bit."""
    cache, fresh = LinearCache(GROWING), LinearCache(GROWING)
    for one in (cache, fresh):
        written(one, [1.0] * 60)
    written(cache, [2.0] * 90)
    cache.truncate(60)
    fed, other = cache.feeds(1), fresh.feeds(1)
    assert all(np.array_equal(fed[name], other[name]) for name in other)
    bigger = LinearCache(GROWING)
    written(bigger, [3.0] * 130)
    bigger.discard(1)
    copied, restored = LinearCache(GROWING), LinearCache(GROWING)
    copied.copy_from(bigger)
    restored.restore({name: rows.view("u4") for name, rows in bigger.dump().items()}, bigger.length)
    for one in (copied, restored):
        assert all(np.array_equal(one.feeds(1)[name], array) for name, array in bigger.feeds(1).items())


@pytest.mark.parametrize("num_heads", [1, 2, 5])
def test_rows_are_moved_apart_and_together_without_one_being_lost(num_heads: int) -> None:
    rng, memory = np.random.default_rng(num_heads), HostMemory()
    state = replace(GROWING.states[0], layout="BKSD", slot_axis=2)
    whole = memory.zeros((1, num_heads, 40, 3), "float32")
    count, want = 40, np.zeros((num_heads, 40, 3), np.float32)
    for _ in range(60):
        new_count = int(rng.integers(1, 41))
        cache = memory.laid_out(whole, state, count, new_count)
        kept = min(count, new_count)
        assert np.array_equal(cache[0, :, :kept], want[:, :kept]) and not cache[0, :, kept:].any()
        assert np.shares_memory(cache, whole) and cache.flags.c_contiguous
        cache[...] = rng.normal(size=cache.shape)
        count, want = new_count, cache[0].copy()


def test_a_gpu_s_cache_and_one_that_is_written_elsewhere_are_fed_whole() -> None:
    fed = LinearCache(GROWING, DeviceMemory(RecordingCuda())).feeds(1)
    assert {fed[state.input].shape for state in GROWING.states} == {(1, 1, 192, 6)}


def test_what_a_failed_pass_wrote_in_place_is_cleared() -> None:
    """Rows past the length are masked, but a masked NaN is still a NaN."""
    cache = LinearCache(IN_PLACE)
    arrays = [cache.feeds(1)[state.input] for state in IN_PLACE.states]
    for array in arrays:
        array[:, :, :2], array[:, :, 2:6] = 1.0, np.nan
    cache.length = 2
    cache.discard(4)
    assert cache.length == 2
    assert all(np.all(array[:, :, :2] == 1.0) and np.all(array[:, :, 2:] == 0.0) for array in arrays)
    cache.discard(100)  # a pass that could never fit has written nothing past the end


def test_a_state_that_asks_for_another_update_rule_is_refused() -> None:
    spec = SPECS["temporal"]
    foreign = replace(spec, states=(replace(spec.states[0], update="aliased"), *spec.states[1:]))
    with pytest.raises(SpecError, match="update 'aliased'"):
        RingCache(foreign)
    mixed = replace(SPECS["llm"], states=(SPECS["llm"].states[0], *IN_PLACE.states[1:]))
    with pytest.raises(SpecError, match="update 'aliased'"):
        LinearCache(mixed)
    with pytest.raises(SpecError, match="has order 'ring'"):
        LinearCache(replace(SPECS["llm"], states=spec.states))


def test_a_ring_obeys_the_slot_axis_of_its_spec() -> None:
    """The `split` spelling puts slots on another axis: (B, N, H, W, D). The rows are the same."""
    spec = graph_specs(SHAPE, StreamLimits(window=W), "fp32", "split")["temporal"]
    assert {state.layout for state in spec.states} == {"BNHWD"} and spec.states[0].slot_axis == 3
    ring, other = RingCache(spec), RingCache(SPECS["temporal"])
    rng = np.random.default_rng(0)
    for _ in range(W + 2):
        rows = {state.output: rng.normal(size=(1, 5, 2, 8)).astype(np.float32) for state in spec.states}
        ring.push(rows)
        other.push(rows)
    for state in spec.states:
        same = np.moveaxis(ring.feeds()[state.input], 3, 1)
        assert same.shape == (1, W, 5, 2, 8) and np.array_equal(same, other.feeds()[state.input])
