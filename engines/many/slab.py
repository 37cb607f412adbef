"""The caches of many streams side by side, so that one pass reads those of neighbours as one tensor, without a copy.

A slab has slots, one a stream. On the host all of them are laid out for as many rows as the longest needs: heads lie
one behind the other in the first part of the memory (cache.py).
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
    """Of one graph's states.

    room  rows that each slot is laid out for; 0 where that is no question
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
        """The first slot that is free, whose content is zero. Raises StreamError if there is none."""
        while self._returned:
            self._clear(self._returned.popleft())
        if not self._free:
            raise StreamError(
                f"all {self.num_slots} slots for caches of '{self.spec.name}' are taken",
                expected="as many streams at once as were announced",
                fix="let go of one, or make room for more",
            )
        self._free.sort(reverse=True)
        return Slot(self, self._free.pop())

    def tensors(self, first: int, count: int) -> dict[str, Tensor]:
        """The caches of neighbours, (count, ...) each, where they lie."""
        return {name: part(tensor, first, count) for name, tensor in self._tensors.items()}

    def slot_at(self, name: str, tensor: Tensor) -> int | None:
        """Whose cache of that name it is, or the first rows of it; None if it lies elsewhere."""
        slab = self._tensors[name]
        step = prod(slab.shape[1:]) * ITEM_BYTES[str(slab.dtype)]
        index, rest = divmod(address_of(tensor) - address_of(slab), step)
        return index if rest == 0 and 0 <= index < self.num_slots else None

    def want(self, slot: int, room: int) -> None:
        """Lay all of them out for as many rows as the longest wants."""
        self._wanted[slot] = room
        if (needed := max(self._wanted)) != self.room:
            memory = self.memory
            assert isinstance(memory, HostMemory)
            for state in self.spec.states:
                whole = self._whole[state.input]
                self._tensors[state.input] = memory.laid_out(whole, state, self.room, needed)
            self.room = needed

    def give_back(self, slot: int) -> None:
        """One that nobody uses any more. On any thread, as the collector comes; it is cleared when one is taken."""
        self._returned.append(slot)

    def _clear(self, slot: int) -> None:
        for state in self.spec.states:
            cache = part(self._tensors[state.input], slot, 1)
            self.memory.clear(cache, state, 0, cache.shape[state.slot_axis])
        if self._wanted[slot]:
            self.want(slot, 0)
        self._free.append(slot)


class Slot(Caches):
    """One stream's caches in a slab. They move as others grow, so they are asked for anew each time."""

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
    """So many of a batch, where they lie."""
    if isinstance(tensor, np.ndarray):
        return tensor[first : first + count]
    shape = (count, *tensor.shape[1:])
    start = first * prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
    return DeviceArray(address=tensor.address + start, shape=shape, dtype=tensor.dtype, block=tensor.block)


def address_of(tensor: Tensor) -> int:
    return tensor.__array_interface__["data"][0] if isinstance(tensor, np.ndarray) else tensor.address
