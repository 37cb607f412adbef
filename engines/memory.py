"""Memory for tensors: on the host or on a GPU. Every byte that the runtime itself writes is counted here.

On the host a tensor is a plain numpy array, on a GPU a DeviceArray, an address with a shape. Caches and sessions pass
both along and use a Memory for all operations on them. Placing a cache row is one strided copy on either side, so
"bytes written per frame" is measured the same way for every backend.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol

import numpy as np

from .cuda import CudaRuntime
from .errors import BackendUnavailable, SpecError
from .spec import ITEM_BYTES, GraphSpec, StateSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceArray:
    """A dense row-major array in GPU memory. The memory is freed with the last array that uses it.

    A session returns its output buffer, which is valid until that session runs again.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    block: object = field(default=None, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def front(self, shape: tuple[int, ...]) -> DeviceArray:
        """The array of this shape at the same address."""
        return replace(self, shape=shape)


class _Block:
    """One allocation, referenced by every array in it."""


Tensor = Array | DeviceArray


@dataclass(slots=True)
class Traffic:
    """Bytes the runtime wrote, and its waits for the GPU, since creation or the last clear.

    state     rows placed into caches
    upload    host to GPU: frames, masks, times, embeddings
    download  GPU to host: embeddings, hidden rows, logits
    syncs     times the host waited for the GPU
    """

    state: int = 0
    upload: int = 0
    download: int = 0
    syncs: int = 0

    def clear(self) -> None:
        self.state = self.upload = self.download = self.syncs = 0


class Memory(Protocol):
    """Operations that caches and sessions need where their tensors are."""

    traffic: Traffic

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A new tensor, all zero, at a fixed address."""

    def place(self, cache: Tensor, rows: Tensor, state: StateSpec, slot: int, count: int = 1) -> None:
        """Copy `count` rows into `cache`, from index `slot` of the state's slot axis on; counted as state.

        A ring takes one row at a time, without the slot axis. Raises SpecError for slots that do not exist, and for
        rows of another shape or dtype.
        """

    def copy(self, target: Tensor, source: Tensor, state: StateSpec, count: int) -> None:
        """Copy the first `count` rows of a cache into another one of this memory, on the device; counted as state.

        Raises SpecError for slots that do not exist, and for caches of different shapes or dtypes.
        """

    def clear(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> None:
        """Set `count` rows to their reset value. Raises SpecError for slots that do not exist."""

    def prefix(self, cache: Tensor, state: StateSpec, count: int) -> Tensor:
        """The first `count` rows of a cache of one stream, without a copy. Raises SpecError if it has fewer."""

    def fetch(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> Array:
        """A copy on the host of `count` rows of a cache, from index `slot` on. Raises SpecError if it has fewer."""

    def to_host(self, tensor: Tensor) -> Array:
        """The values as a numpy array: the tensor itself on the host, a copy from a GPU."""

    def from_host(self, array: Array, dtype: str) -> Tensor:
        """The values of a host array, with that dtype, in this memory."""


@dataclass(slots=True)
class HostMemory:
    """numpy arrays."""

    traffic: Traffic = field(default_factory=Traffic)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        tensor = np.empty(shape, dtype=host_dtype(dtype))
        tensor.fill(0)  # numpy.zeros would allocate pages only later, one by one, as a stream grows
        return tensor

    def place(self, cache: Tensor, rows: Tensor, state: StateSpec, slot: int, count: int = 1) -> None:
        cache, rows = _on_host(cache), _on_host(rows)
        _check_rows(cache, rows, state, slot, count)
        if state.order == "ring":  # one row, without the slot axis
            rows = np.expand_dims(rows, state.slot_axis)
        cache[state.rows(slot, count)] = rows
        self.traffic.state += rows.nbytes

    def copy(self, target: Tensor, source: Tensor, state: StateSpec, count: int) -> None:
        target, source = _on_host(target), _on_host(source)
        _check_alike(target, source, state, count)
        rows = source[state.rows(0, count)]
        target[state.rows(0, count)] = rows
        self.traffic.state += rows.nbytes

    def clear(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> None:
        _check_slots(cache, state, slot, count)
        _on_host(cache)[state.rows(slot, count)] = state.reset

    def prefix(self, cache: Tensor, state: StateSpec, count: int) -> Tensor:
        _check_slots(cache, state, 0, count)
        return _on_host(cache)[state.rows(0, count)]

    def fetch(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> Array:
        _check_slots(cache, state, slot, count)
        return np.array(_on_host(cache)[state.rows(slot, count)], order="C")

    def laid_out(self, whole: Tensor, state: StateSpec, count: int, new_count: int) -> Tensor:
        """A view of `whole`, the memory of all slots, in a layout for new_count rows. The content, in a layout for
        `count` rows, is moved; new slots are zero."""
        whole, axis = _on_host(whole), state.slot_axis
        flat, row = whole.reshape(-1), prod(whole.shape[axis + 1 :])
        kept = min(count, new_count) * row
        runs = range(prod(whole.shape[:axis]))
        for run in reversed(runs) if new_count > count else runs:  # none is overwritten before it is moved
            start, old = run * new_count * row, run * count * row
            flat[start : start + kept] = flat[old : old + kept]
            flat[start + kept : start + new_count * row] = state.reset
        shape = (*whole.shape[:axis], new_count, *whole.shape[axis + 1 :])
        return flat[: prod(shape)].reshape(shape)

    def to_host(self, tensor: Tensor) -> Array:
        return _on_host(tensor)

    def from_host(self, array: Array, dtype: str) -> Tensor:
        return array


class DeviceMemory:
    """GPU memory and one CUDA stream, on which all copies and graphs of a bundle run in order.

    The CUDA runtime may be a recording fake (engines/fake.py).
    """

    def __init__(self, cuda: CudaRuntime) -> None:
        self.cuda = cuda
        self.stream = cuda.create_stream()
        self._end = weakref.finalize(self, cuda.destroy_stream, self.stream)
        self._end.atexit = False
        self.traffic = Traffic()
        self._frees: dict[int, weakref.finalize[[int], _Block]] = {}
        self._in_flight: list[Array] = []  # uploads may read these until the next wait

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Raises BackendUnavailable if the GPU has too little memory left."""
        array = self.empty(shape, dtype)
        self.cuda.fill_rows(array.address, array.num_bytes, 0, array.num_bytes, 1, self.stream)
        return array

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new tensor with undefined content."""
        num_bytes = prod(shape) * ITEM_BYTES[dtype]
        address, block = self.cuda.allocate(max(num_bytes, 1)), _Block()
        free = weakref.finalize(block, self._free, address)
        free.atexit = False  # at exit the process frees it, and the library may already be unloaded
        self._frees[address] = free
        return DeviceArray(address=address, shape=shape, dtype=dtype, block=block)

    def place(self, cache: Tensor, rows: Tensor, state: StateSpec, slot: int, count: int = 1) -> None:
        cache, rows = _on_device(cache), _on_device(rows)
        _check_rows(cache, rows, state, slot, count)
        start, pitch, width, height = _region(cache, state, slot, count)
        self.cuda.copy_rows(start, pitch, rows.address, width, width, height, self.stream)
        self.traffic.state += rows.num_bytes

    def copy(self, target: Tensor, source: Tensor, state: StateSpec, count: int) -> None:
        target, source = _on_device(target), _on_device(source)
        _check_alike(target, source, state, count)
        start, pitch, width, height = _region(source, state, 0, count)
        if width:
            self.cuda.copy_rows(target.address, pitch, start, pitch, width, height, self.stream)
        self.traffic.state += width * height

    def clear(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> None:
        if state.reset != 0.0:
            raise SpecError(
                f"state '{state.input}': the reset value is {state.reset}", expected="0, the only value a GPU fills"
            )
        _check_slots(cache, state, slot, count)
        start, pitch, width, height = _region(_on_device(cache), state, slot, count)
        if width:
            self.cuda.fill_rows(start, pitch, 0, width, height, self.stream)

    def prefix(self, cache: Tensor, state: StateSpec, count: int) -> Tensor:
        cache, axis = _on_device(cache), state.slot_axis
        _check_slots(cache, state, 0, count)
        if prod(cache.shape[:axis]) != 1:
            raise SpecError(
                f"state '{state.input}': a cache {cache.shape} of several streams has no contiguous prefix",
                expected="a cache of one stream",
            )
        return cache.front((*cache.shape[:axis], count, *cache.shape[axis + 1 :]))

    def fetch(self, cache: Tensor, state: StateSpec, slot: int, count: int) -> Array:
        cache, axis = _on_device(cache), state.slot_axis
        _check_slots(cache, state, slot, count)
        dense = self.empty((*cache.shape[:axis], count, *cache.shape[axis + 1 :]), cache.dtype)
        start, pitch, width, height = _region(cache, state, slot, count)
        if width:
            self.cuda.copy_rows(dense.address, width, start, pitch, width, height, self.stream)
        return self.to_host(dense)

    def upload(self, array: Array, into: DeviceArray) -> DeviceArray:
        """Copy a host array to the start of `into`; return the tensor of its shape there."""
        array = np.ascontiguousarray(array)
        target = into.front(array.shape)
        if target.num_bytes > into.num_bytes or str(array.dtype) != into.dtype:
            raise SpecError(
                f"cannot upload an array {array.dtype} {array.shape}",
                expected=f"at most {into.dtype} {into.shape}",
            )
        self.cuda.copy_to_device(target.address, array.ctypes.data, array.nbytes, self.stream)
        self._in_flight.append(array)
        self.traffic.upload += array.nbytes
        return target

    def gather(self, tensors: Sequence[DeviceArray], into: DeviceArray) -> None:
        """Copy tensors back to back into `into`, from its start on."""
        address = into.address
        for tensor in tensors:
            size = tensor.num_bytes
            self.cuda.copy_rows(address, size, tensor.address, size, size, 1, self.stream)
            address += size

    def to_host(self, tensor: Tensor) -> Array:
        """Copy to the host and wait for it: everything queued before has then run."""
        if isinstance(tensor, np.ndarray):
            return tensor
        array = np.empty(tensor.shape, dtype=host_dtype(tensor.dtype))
        self.cuda.copy_to_host(array.ctypes.data, tensor.address, array.nbytes, self.stream)
        self.cuda.synchronize(self.stream)
        self._in_flight.clear()
        self.traffic.download += array.nbytes
        self.traffic.syncs += 1
        return array

    def from_host(self, array: Array, dtype: str) -> Tensor:
        return self.upload(array, self.empty(array.shape, dtype))

    def close(self) -> None:
        """Wait for the GPU and free everything. No tensor of this memory may be used afterwards."""
        if not self._end.alive:
            return
        self.cuda.synchronize(self.stream)
        self._in_flight.clear()
        for free in list(self._frees.values()):
            free()
        self._end()

    def _free(self, address: int) -> None:
        del self._frees[address]
        self.cuda.free(address)


class Caches:
    """The caches of one stream, one for each state of a graph, all zero.

    tensors  by the name of the input they are fed as; a linear cache in a layout for `room` rows
    room     the full capacity until `lay_out`; 0 if the graph has no linear cache with a variable layout
    """

    def __init__(self, spec: GraphSpec, memory: Memory) -> None:
        self._states, self._memory = spec.states, memory
        self._whole = {s.input: memory.zeros(cache_shape(spec, s, streams=1), s.dtype) for s in spec.states}
        self.tensors: Mapping[str, Tensor] = dict(self._whole)
        self.room = spec.dims["past"].max if "past" in spec.dims else 0

    def lay_out(self, room: int) -> None:
        """Change the layout to `room` rows. Rows past that are lost, new ones are zero. Host only."""
        memory = self._memory
        assert isinstance(memory, HostMemory)
        if room != self.room:
            self.tensors = {s.input: memory.laid_out(self._whole[s.input], s, self.room, room) for s in self._states}
            self.room = room


def cache_shape(spec: GraphSpec, state: StateSpec, *, streams: int) -> tuple[int, ...]:
    """Shape of the caches of several streams, at full capacity."""
    rows = {"past": spec.dims["past"].max} if "past" in spec.dims else {}
    shape = spec.input(state.input).resolve({"batch": streams, **rows})
    return (streams, *shape[1:])


def _check_rows(cache: Tensor, rows: Tensor, state: StateSpec, slot: int, count: int) -> None:
    """The same check on both sides: numpy would cast other dtypes, broadcast other shapes and wrap a negative slot."""
    assert state.order == "linear" or count == 1, "a ring takes one row at a time"
    _check_slots(cache, state, slot, count)
    axis = state.slot_axis
    expected = (*cache.shape[:axis], *((count,) if state.order == "linear" else ()), *cache.shape[axis + 1 :])
    if rows.shape != expected or str(rows.dtype) != str(cache.dtype):
        raise SpecError(
            f"state '{state.input}': rows are {rows.dtype} {rows.shape}",
            expected=f"{cache.dtype} {expected} for {count} of the slots of {cache.shape}",
        )


def _check_alike(target: Tensor, source: Tensor, state: StateSpec, count: int) -> None:
    """numpy would cast another dtype and broadcast another shape; a GPU would write past the end of the smaller one."""
    _check_slots(target, state, 0, count)
    if target.shape != source.shape or str(target.dtype) != str(source.dtype):
        raise SpecError(
            f"state '{state.input}': a cache {source.dtype} {source.shape} does not fit into one that is "
            f"{target.dtype} {target.shape}",
            expected="two caches of one bundle",
        )


def _check_slots(cache: Tensor, state: StateSpec, slot: int, count: int) -> None:
    num_slots = cache.shape[state.slot_axis]
    if not 0 <= slot <= slot + count <= num_slots:
        raise SpecError(
            f"state '{state.input}': {count} slots from {slot} on were requested",
            expected=f"slots 0 to {num_slots - 1}",
        )


def _region(cache: DeviceArray, state: StateSpec, slot: int, count: int) -> tuple[int, int, int, int]:
    """(address, pitch, width, height) in bytes of `count` slots: one run of `width` per index before the slot axis."""
    axis = state.slot_axis
    slot_bytes = prod(cache.shape[axis + 1 :]) * ITEM_BYTES[cache.dtype]
    pitch = cache.shape[axis] * slot_bytes
    return cache.address + slot * slot_bytes, pitch, count * slot_bytes, prod(cache.shape[:axis])


def _on_host(tensor: Tensor) -> Array:
    assert isinstance(tensor, np.ndarray), "a GPU tensor reached the host's memory"
    return tensor


def _on_device(tensor: Tensor) -> DeviceArray:
    assert isinstance(tensor, DeviceArray), "a host array reached a GPU's cache"
    return tensor


def host_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name. numpy lacks bfloat16: it needs ml_dtypes, or raises BackendUnavailable."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise BackendUnavailable(
            "bfloat16 on the host needs the package ml_dtypes, which is not installed",
            fix="pip install -e '.[bf16]'",
        ) from error
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
