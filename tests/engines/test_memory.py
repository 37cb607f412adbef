"""Host and GPU memory obey the same rules: what is placed, cleared, counted and freed. The GPU is a recording fake."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.cache import LinearCache, RingCache
from engines.cuda import CudaRuntime
from engines.errors import SpecError
from engines.fake import RecordingCuda
from engines.graph_specs import graph_specs
from engines.memory import DeviceArray, DeviceMemory, HostMemory, Memory, host_dtype
from engines.spec import ITEM_BYTES, StateSpec, StreamLimits

from .test_spec import SHAPE

AXES = {"BWNHD": 1, "BNHWD": 3, "BSKD": 1}
DTYPES = ("float16", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cache, and steps on it: place or clear `count` rows from `slot` on."""

    state: StateSpec
    shape: tuple[int, ...]
    steps: tuple[tuple[str, int, int], ...]

    def rows_shape(self, count: int) -> tuple[int, ...]:
        axis = self.state.slot_axis
        middle = (count,) if self.state.order == "linear" else ()
        return (*self.shape[:axis], *middle, *self.shape[axis + 1 :])


def make_state(layout: str, dtype: str) -> StateSpec:
    return StateSpec(
        input="past.0.key",
        output="new.0.key",
        dtype=dtype,
        layout=layout,
        slot_axis=AXES[layout],
        order="linear" if layout == "BSKD" else "ring",
        row_bytes=0,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layout, dtype = draw(st.sampled_from(sorted(AXES))), draw(st.sampled_from(DTYPES))
    state = make_state(layout, dtype)
    shape = tuple(draw(st.integers(1, 3)) for _ in layout)
    num_slots = shape[state.slot_axis]
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        kind, slot = draw(st.sampled_from(["place", "place", "clear"])), draw(st.integers(0, num_slots - 1))
        longest = num_slots - slot if kind == "clear" or state.order == "linear" else 1
        steps.append((kind, slot, draw(st.integers(1, longest))))
    return Case(state=state, shape=shape, steps=tuple(steps))


def on_device(memory: DeviceMemory, array: np.ndarray) -> DeviceArray:
    return memory.upload(array, memory.empty(array.shape, str(array.dtype)))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_a_cache_on_a_gpu_holds_what_a_cache_on_the_host_holds(case: Case) -> None:
    cuda = RecordingCuda()
    host, device = HostMemory(), DeviceMemory(cuda)
    caches = host.zeros(case.shape, case.state.dtype), device.zeros(case.shape, case.state.dtype)
    rng = np.random.default_rng(0)
    for kind, slot, count in case.steps:
        if kind == "place":
            rows = rng.normal(size=case.rows_shape(count)).astype(host_dtype(case.state.dtype))
            host.place(caches[0], rows, case.state, slot, count)
            device.place(caches[1], on_device(device, rows), case.state, slot, count)
        else:
            host.clear(caches[0], case.state, slot, count)
            device.clear(caches[1], case.state, slot, count)
        expected, got = host.to_host(caches[0]), device.to_host(caches[1])
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
    assert host.traffic.state == device.traffic.state == cuda.num_bytes("copy")
    assert (device.traffic.upload, device.traffic.download, device.traffic.syncs) == (
        cuda.num_bytes("upload"),
        cuda.num_bytes("download"),
        cuda.count("sync"),
    )


@settings(deadline=None, max_examples=40)
@given(cases())
def test_a_placed_row_is_that_row_and_no_other_changes(case: Case) -> None:
    """Against plain indexing along the slot axis, in case both memories are wrong in the same way."""
    memory = DeviceMemory(RecordingCuda())
    cache = memory.zeros(case.shape, case.state.dtype)
    model = np.zeros(case.shape, host_dtype(case.state.dtype))
    for number, (kind, slot, count) in enumerate(case.steps, start=1):
        by_slot = np.moveaxis(model, case.state.slot_axis, 0)
        by_slot[slot : slot + count] = number if kind == "place" else 0
        if kind == "place":
            rows = np.full(case.rows_shape(count), number, model.dtype)
            memory.place(cache, on_device(memory, rows), case.state, slot, count)
        else:
            memory.clear(cache, case.state, slot, count)
    assert memory.to_host(cache).tobytes() == model.tobytes()


def both() -> list[Memory]:
    return [HostMemory(), DeviceMemory(RecordingCuda())]


def tensor(memory: Memory, shape: tuple[int, ...], dtype: str = "float32") -> object:
    return memory.zeros(shape, dtype)


@pytest.mark.parametrize("memory", both(), ids=["host", "gpu"])
@pytest.mark.parametrize(
    ("layout", "cache", "rows", "slot", "count"),
    [
        ("BWNHD", (1, 4, 2, 2, 2), (1, 2, 2, 2), 4, 1),
        ("BWNHD", (1, 4, 2, 2, 2), (1, 2, 2, 2), -1, 1),
        ("BNHWD", (1, 2, 2, 4, 2), (1, 2, 2, 3), 0, 1),
        ("BNHWD", (1, 2, 3, 4, 2), (1, 3, 2, 2), 0, 1),
        ("BSKD", (1, 4, 1, 2), (1, 2, 1, 2), 3, 2),
        ("BSKD", (1, 4, 1, 2), (1, 1, 1, 2), 4, 1),
        ("BSKD", (1, 4, 1, 2), (1, 1, 1, 2), 0, 2),
    ],
    ids=["past the ring", "before it", "wider", "turned", "past the end", "one past the end", "fewer than said"],
)
def test_rows_that_do_not_fit_are_refused(
    memory: Memory, layout: str, cache: tuple[int, ...], rows: tuple[int, ...], slot: int, count: int
) -> None:
    """numpy alone would wrap a negative slot, broadcast a narrower row, and write nothing past the end."""
    place = memory.zeros(cache, "float32")
    with pytest.raises(SpecError, match=r"state 'past\.0\.key'"):
        memory.place(place, memory.zeros(rows, "float32"), make_state(layout, "float32"), slot, count)
    assert memory.traffic.state == 0


@pytest.mark.parametrize("memory", both(), ids=["host", "gpu"])
def test_rows_of_another_dtype_are_refused(memory: Memory) -> None:
    cache, rows = memory.zeros((1, 4, 1, 2), "float16"), memory.zeros((1, 1, 1, 2), "float32")
    with pytest.raises(SpecError, match="rows are float32") as info:
        memory.place(cache, rows, make_state("BSKD", "float16"), 0)
    assert info.value.expected.startswith("float16")


@settings(deadline=None, max_examples=40)
@given(cases(), st.data())
def test_a_copied_row_is_that_row_and_no_other_changes(case: Case, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, case.shape[case.state.slot_axis]))
    dtype = host_dtype(case.state.dtype)
    old, new = (np.random.default_rng(seed).normal(size=case.shape).astype(dtype) for seed in (0, 1))
    want = np.moveaxis(old.copy(), case.state.slot_axis, 0)
    want[:count] = np.moveaxis(new, case.state.slot_axis, 0)[:count]
    for memory in both():
        target, source = (memory.from_host(array.copy(), case.state.dtype) for array in (old, new))
        memory.copy(target, source, case.state, count)
        got = memory.to_host(target)
        assert np.array_equal(np.moveaxis(got, case.state.slot_axis, 0), want) and np.array_equal(
            memory.to_host(source), new
        )
        assert memory.traffic.state == want[:count].nbytes


@pytest.mark.parametrize("memory", both(), ids=["host", "gpu"])
@pytest.mark.parametrize(
    ("shape", "dtype", "count", "message"),
    [
        ((1, 4, 1, 2), "float32", 5, "5 slots from 0 on were requested"),
        ((1, 4, 1, 2), "float32", -1, "-1 slots from 0 on were requested"),
        ((1, 4, 1, 1), "float32", 2, r"\(1, 4, 1, 1\) does not fit into one that is float32 \(1, 4, 1, 2\)"),
        ((1, 4, 1, 2), "float16", 2, "a cache float16 .* does not fit into one that is float32"),
    ],
    ids=["too many", "fewer than none", "narrower", "another dtype"],
)
def test_caches_that_are_not_alike_are_not_copied(
    memory: Memory, shape: tuple[int, ...], dtype: str, count: int, message: str
) -> None:
    target, source = memory.zeros((1, 4, 1, 2), "float32"), memory.zeros(shape, dtype)
    with pytest.raises(SpecError, match=message):
        memory.copy(target, source, make_state("BSKD", "float32"), count)
    assert memory.traffic.state == 0


@pytest.mark.parametrize("memory", both(), ids=["host", "gpu"])
@pytest.mark.parametrize(("slot", "count"), [(3, 2), (-1, 1), (2, -1)], ids=str)
def test_slots_that_are_not_there_cannot_be_cleared_or_handed_out(memory: Memory, slot: int, count: int) -> None:
    cache, state = memory.zeros((1, 4, 1, 2), "float32"), make_state("BSKD", "float32")
    for call in (lambda: memory.clear(cache, state, slot, count), lambda: memory.prefix(cache, state, 5)):
        with pytest.raises(SpecError, match="slots from .* on were requested") as info:
            call()
        assert info.value.expected == "slots 0 to 3"


@pytest.mark.parametrize("memory", both(), ids=["host", "gpu"])
def test_a_prefix_is_the_cache_itself(memory: Memory) -> None:
    cache, state = memory.zeros((1, 4, 1, 2), "float32"), make_state("BSKD", "float32")
    front = memory.prefix(cache, state, 2)
    assert front.shape == (1, 2, 1, 2)
    row = np.full((1, 1, 1, 2), 7, np.float32)
    memory.place(cache, on_device(memory, row) if isinstance(memory, DeviceMemory) else row, state, 1)
    assert memory.to_host(front)[0, :, 0, 0].tolist() == [0, 7]


def test_a_prefix_of_several_streams_is_refused_on_a_gpu() -> None:
    memory = DeviceMemory(RecordingCuda())
    with pytest.raises(SpecError, match="of several streams has no contiguous prefix"):
        memory.prefix(memory.zeros((2, 4, 1, 2), "float32"), make_state("BSKD", "float32"), 2)


def test_a_reset_value_that_a_gpu_cannot_fill_is_refused() -> None:
    from dataclasses import replace

    memory = DeviceMemory(RecordingCuda())
    with pytest.raises(SpecError, match=r"the reset value is 1\.0"):
        memory.clear(memory.zeros((1, 4, 1, 2), "float32"), replace(make_state("BSKD", "float32"), reset=1.0), 0, 1)


def test_an_upload_that_is_too_large_or_of_another_dtype_is_refused() -> None:
    memory = DeviceMemory(RecordingCuda())
    buffer = memory.empty((2, 3), "float16")
    assert memory.upload(np.ones((1, 3), np.float16), buffer).shape == (1, 3)
    for array in (np.ones((3, 3), np.float16), np.ones((1, 3), np.float32), np.ones((1, 3), np.int16)):
        with pytest.raises(SpecError, match="cannot upload an array") as info:
            memory.upload(array, buffer)
        assert info.value.expected == "at most float16 (2, 3)"
    assert memory.traffic.upload == 6


def calls_beyond(cuda: CudaRuntime, address: int, host: int, stream: int) -> list[tuple[object, ...]]:
    return [
        (cuda.copy_to_device, address + 1, host, 8, stream),
        (cuda.copy_to_host, host, address - 1, 8, stream),
        (cuda.copy_rows, address + 4, 8, address, 8, 8, 1, stream),
        (cuda.copy_rows, address, 8, address, 5, 4, 3, stream),
        (cuda.fill_rows, address, 4, 0, 4, 3, stream),
    ]


def test_the_fake_refuses_every_access_outside_its_allocation() -> None:
    cuda = RecordingCuda()
    address, stream, host = cuda.allocate(8), cuda.create_stream(), np.zeros(16, np.uint8)
    for call, *arguments in calls_beyond(cuda, address, host.ctypes.data, stream):
        with pytest.raises(SpecError, match="not inside one allocation"):
            call(*arguments)  # type: ignore[operator]
    with pytest.raises(SpecError, match="overlap"):
        cuda.copy_rows(address, 2, address, 4, 4, 2, stream)
    with pytest.raises(SpecError, match="stream 9 is not open"):
        cuda.synchronize(9)
    assert [call.kind for call in cuda.calls] == ["allocate"]
    cuda.free(address)
    with pytest.raises(SpecError, match="never allocated"):
        cuda.free(address)
    with pytest.raises(SpecError, match="not inside one allocation"):
        cuda.copy_to_device(address, host.ctypes.data, 1, stream)


def test_the_fake_delivers_a_download_only_when_it_is_waited_for() -> None:
    memory = DeviceMemory(RecordingCuda())
    array = on_device(memory, np.full(4, 7, np.uint8))
    host = np.zeros(4, np.uint8)
    memory.cuda.copy_to_host(host.ctypes.data, array.address, 4, memory.stream)
    assert 7 not in host
    memory.cuda.synchronize(memory.stream)
    assert host.tolist() == [7, 7, 7, 7]


def test_fresh_memory_of_the_fake_is_not_zero_and_zeros_is() -> None:
    memory = DeviceMemory(RecordingCuda())
    assert memory.to_host(memory.empty((3,), "uint8")).all()
    assert not memory.to_host(memory.zeros((3, 2), "float16")).any()


def test_closing_frees_everything_once() -> None:
    cuda = RecordingCuda()
    memory = DeviceMemory(cuda)
    kept = [memory.zeros((4, 4), dtype) for dtype in ITEM_BYTES]
    assert cuda.allocated() == sum(array.num_bytes for array in kept)
    memory.close()
    assert cuda.allocated() == 0
    memory.close()
    later = DeviceMemory(cuda).zeros((4, 4), "float32")
    del kept
    gc.collect()
    assert cuda.allocated() == later.num_bytes, "closed memory must not be freed again after a new owner has it"


def test_a_memory_that_is_closed_or_dropped_leaves_no_stream() -> None:
    cuda = RecordingCuda()
    closed, dropped = DeviceMemory(cuda), DeviceMemory(cuda)
    assert cuda.num_streams() == 2
    closed.close()
    del dropped
    gc.collect()
    assert cuda.num_streams() == 0


def test_what_is_uploaded_lives_until_the_gpu_was_waited_for() -> None:
    """The copy may be made later than the call: a mask without other references must not be freed before it."""
    memory = DeviceMemory(RecordingCuda())
    into = memory.empty((4,), "float32")
    mask = np.arange(4, dtype=np.float32)
    alive = weakref.ref(mask)
    memory.upload(mask, into)
    del mask
    gc.collect()
    assert alive() is not None
    memory.to_host(into)
    gc.collect()
    assert alive() is None


def test_memory_goes_back_when_the_last_tensor_in_it_is_gone() -> None:
    """Each camera has a stream, for days: a dropped stream must not keep its caches on the GPU."""
    cuda = RecordingCuda()
    memory = DeviceMemory(cuda)
    cache = memory.zeros((1, 4, 1, 2), "float32")
    front = memory.prefix(cache, make_state("BSKD", "float32"), 2)
    del cache
    gc.collect()
    assert cuda.allocated() == 32, "a prefix must keep its cache alive"
    del front
    gc.collect()
    assert cuda.allocated() == 0


def test_a_dropped_stream_gives_its_caches_back() -> None:
    specs = graph_specs(SHAPE, StreamLimits(window=4, context=8, chunk=8, bucket=4), "fp16")
    cuda = RecordingCuda()
    memory = DeviceMemory(cuda)
    caches = RingCache(specs["temporal"], memory), LinearCache(specs["llm"], memory)
    ring, llm = (specs[name].states for name in ("temporal", "llm"))
    assert cuda.allocated() == sum(4 * s.row_bytes for s in ring) + sum(8 * s.row_bytes for s in llm)
    del caches
    gc.collect()
    assert cuda.allocated() == 0


def test_a_cache_cannot_be_cut_to_more_than_it_holds() -> None:
    specs = graph_specs(SHAPE, StreamLimits(window=4, context=8, chunk=8, bucket=4), "fp32")
    for memory in both():
        cache = LinearCache(specs["llm"], memory)
        with pytest.raises(SpecError, match="only 0 rows are in use") as info:
            cache.truncate(3)
        assert info.value.expected.startswith("at least 3")
        assert cache.length == 0


def test_clearing_the_counters_starts_a_new_count() -> None:
    memory = DeviceMemory(RecordingCuda())
    memory.to_host(on_device(memory, np.ones(3, np.uint8)))
    assert (memory.traffic.upload, memory.traffic.download, memory.traffic.syncs) == (3, 3, 1)
    memory.traffic.clear()
    assert memory.traffic == HostMemory().traffic
