"""The caches of many streams in one buffer, so that one pass reads neighbouring ones as one tensor, without a copy.

A slab has one slot per stream. On the host, every slot has the layout for as many rows as the longest stream needs:
heads are contiguous in the first part of the memory (cache.py).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from math import prod

import numpy as np

from ..errors import StreamError
from ..memory import Caches, DeviceArray, HostMemory, Memory, Tensor, cache_shape
from ..spec import ITEM_BYTES, GraphSpec


class Slab:
    """The caches of one graph's states, for several streams.

    room  rows in each slot's layout; 0 if the graph has a fixed length
    """

    def __init__(self, spec: GraphSpec, memory: Memory, *, num_slots: int) -> None:
        self.spec, self.memory, self.num_slots = spec, memory, num_slots
        self._whole = {s.input: memory.zeros(cache_shape(spec, s, streams=num_slots), s.dtype) for s in spec.states}
        self._tensors = dict(self._whole)
        self.room = spec.dims["past"].max if "past" in spec.dims else 0
        self._wanted = [0] * num_slots
        self._free = list(reversed(range(num_slots)))
        self._returned: deque[int] = deque()

    def take(self) -> Slot:
        """Return the first free slot, cleared to zero. Raises StreamError if there is none."""
        while self._returned:
            self._clear(self._returned.popleft())
        if not self._free:
            raise StreamError(
                f"all {self.num_slots} slots for caches of '{self.spec.name}' are taken",
                expected="at most as many streams as max_streams",
                fix="close a stream, or allow more streams",
            )
        self._free.sort(reverse=True)
        return Slot(self, self._free.pop())

    def tensors(self, first: int, count: int) -> dict[str, Tensor]:
        """The caches of `count` neighbouring slots as tensors (count, ...), without a copy."""
        return {name: part(tensor, first, count) for name, tensor in self._tensors.items()}

    def slot_at(self, name: str, tensor: Tensor) -> int | None:
        """The slot that holds this cache, or its first rows; None if the tensor is not part of the slab."""
        slab = self._tensors[name]
        step = prod(slab.shape[1:]) * ITEM_BYTES[str(slab.dtype)]
        index, rest = divmod(address_of(tensor) - address_of(slab), step)
        return index if rest == 0 and 0 <= index < self.num_slots else None

    def want(self, slot: int, room: int) -> None:
        """Change all slots to a layout for as many rows as the longest stream needs."""
        self._wanted[slot] = room
        if (needed := max(self._wanted)) != self.room:
            memory = self.memory
            assert isinstance(memory, HostMemory)
            for state in self.spec.states:
                whole = self._whole[state.input]
                self._tensors[state.input] = memory.laid_out(whole, state, self.room, needed)
            self.room = needed

    def give_back(self, slot: int) -> None:
        """Return a slot that is no longer used. May run on any thread (garbage collector); cleared when taken again."""
        self._returned.append(slot)

    def _clear(self, slot: int) -> None:
        for state in self.spec.states:
            cache = part(self._tensors[state.input], slot, 1)
            self.memory.clear(cache, state, 0, cache.shape[state.slot_axis])
        if self._wanted[slot]:
            self.want(slot, 0)
        self._free.append(slot)


class Slot(Caches):
    """One stream's caches in a slab. Read `tensors` each time: they move when other streams grow."""

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab, self.index = slab, index
        self._end = weakref.finalize(self, slab.give_back, index)
        self._end.atexit = False

    @property
    def tensors(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        return self.slab.tensors(self.index, 1)

    @property
    def room(self) -> int:  # type: ignore[override]
        return self.slab.room

    def lay_out(self, room: int) -> None:
        self.slab.want(self.index, room)


def part(tensor: Tensor, first: int, count: int) -> Tensor:
    """`count` entries of a batch from `first` on, as a view."""
    if isinstance(tensor, np.ndarray):
        return tensor[first : first + count]
    shape = (count, *tensor.shape[1:])
    start = first * prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
    return DeviceArray(address=tensor.address + start, shape=shape, dtype=tensor.dtype, block=tensor.block)


def address_of(tensor: Tensor) -> int:
    return tensor.__array_interface__["data"][0] if isinstance(tensor, np.ndarray) else tensor.address
