"""Caches, owned by the runtime. A graph reads them and returns new rows; these classes write the rows into place.

If a StateSpec is `aliased`, the graph has already written the rows into the cache it was given, and only the number of
rows in use changes here. Caches are preallocated and never moved, grown or shifted. Everything these classes know about
a cache comes from its StateSpec; their Memory decides whether it is on the host or on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from .errors import SpecError, StreamError, StreamFull
from .memory import Array, Caches, HostMemory, Memory, Tensor, host_dtype
from .spec import ITEM_BYTES, GraphSpec, StateSpec


class RingCache:
    """The temporal KV cache of one stream: rings of W slots, one for keys and one for values per temporal layer.

    Rule   frame t goes to slot t % W, which is masked while frame t runs: W includes the current frame.
    Exact  equal to full causal attention while t < W, a sliding window after that. Slot order has no meaning.
    """

    def __init__(self, spec: GraphSpec, memory: Memory | None = None, caches: Caches | None = None) -> None:
        """`caches` are in `memory`; None allocates them."""
        self._states = _ordered(spec, "ring")
        self._memory = memory or HostMemory()
        self.window = _size(spec, "slot_mask", 1)
        self._caches = caches or Caches(spec, self._memory)  # kept alive: a slab reuses its slot once this is collected
        self._rings = self._caches.tensors
        self.num_frames = 0

    def feeds(self) -> dict[str, Tensor]:
        """The rings and bool (1, W) `slot_mask`: true for slots with a frame that the current one may see."""
        slots = np.arange(self.window)
        readable = (slots < self.num_frames) & (slots != self.num_frames % self.window)
        return {**self._rings, "slot_mask": readable[None]}

    def push(self, rows: Mapping[str, Tensor]) -> None:
        """Write the new rows of one frame over those of the oldest frame."""
        slot = self.num_frames % self.window
        for state in self._states:
            self._memory.place(self._rings[state.input], rows[state.output], state, slot)
        self.num_frames += 1

    def reset(self) -> None:
        self.num_frames = 0  # first: no slot is readable from here on, even if the rest is interrupted
        for state in self._states:
            self._memory.clear(self._rings[state.input], state, 0, self.window)

    def copy_from(self, other: RingCache) -> None:
        """Copy the slots in use of `other`, of the same bundle, on the device they are on. This ring is new."""
        for state in self._states:
            ring, count = self._rings[state.input], min(other.num_frames, self.window)
            self._memory.copy(ring, other._rings[state.input], state, count)
        self.num_frames = other.num_frames

    def dump(self) -> dict[str, Array]:
        """Every whole ring, on the host."""
        return {name: self._memory.to_host(ring) for name, ring in self._rings.items()}

    def restore(self, caches: Mapping[str, Array], num_frames: int) -> None:
        """Restore what `dump` returned, as bits, and the clock. Raises StreamError before changing anything."""
        rings = {s.input: _rows_of(caches, s, tuple(self._rings[s.input].shape)) for s in self._states}
        for state in self._states:
            for slot in range(self.window):
                row = np.take(rings[state.input], slot, axis=state.slot_axis)
                placed = self._memory.from_host(row, state.dtype)
                self._memory.place(self._rings[state.input], placed, state, slot)
        self.num_frames = num_frames


class FeatureCache:
    """The trunk features (1, N, C) of one stream's last frames, copied, in the graph's dtype: input of a replay.

    Each has its own tensor, which can be fed to `temporal` directly. Frame t is kept in tensor t % num_kept.
    """

    def __init__(self, spec: GraphSpec, num_kept: int, memory: Memory | None = None) -> None:
        """`spec` is that of `temporal`; num_kept 0 keeps nothing."""
        tensor = spec.input("trunk_features")
        shape, dtype = tensor.resolve({"batch": 1}), tensor.dtype
        self._memory = memory or HostMemory()
        self._states = [
            StateSpec(
                input=f"{tensor.name}.{slot}", output=tensor.name, dtype=dtype, layout="BNC", slot_axis=0,
                order="linear", row_bytes=prod(shape) * ITEM_BYTES[dtype],
            )
            for slot in range(num_kept)
        ]  # fmt: skip
        self._kept = [self._memory.zeros(shape, dtype) for _ in self._states]

    def push(self, features: Tensor, frame_index: int) -> None:
        """Copy the features of a frame over those of frame_index - num_kept."""
        if self._states:
            slot = frame_index % len(self._states)
            self._memory.place(self._kept[slot], features, self._states[slot], 0)

    def of(self, frame_index: int) -> Tensor:
        """Features of one of the last frames: the cache itself, not a copy."""
        return self._kept[frame_index % len(self._kept)]

    def reset(self) -> None:
        for kept, state in zip(self._kept, self._states, strict=True):
            self._memory.clear(kept, state, 0, 1)

    def copy_from(self, other: FeatureCache) -> None:
        """Copy the features of `other`, of the same bundle and size, on the device they are on."""
        for kept, theirs, state in zip(self._kept, other._kept, self._states, strict=True):
            self._memory.copy(kept, theirs, state, 1)

    def dump(self) -> dict[str, Array]:
        """Every tensor, on the host."""
        return {s.input: self._memory.to_host(kept) for s, kept in zip(self._states, self._kept, strict=True)}

    def restore(self, features: Mapping[str, Array]) -> None:
        """Restore what `dump` returned, as bits. Raises StreamError before changing anything."""
        rows = [_rows_of(features, s, tuple(kept.shape)) for s, kept in zip(self._states, self._kept, strict=True)]
        for array, kept, state in zip(rows, self._kept, self._states, strict=True):
            self._memory.place(kept, self._memory.from_host(array, state.dtype), state, 0)


class LinearCache:
    """The LLM's KV cache of one stream: row p at index p, `length` rows in use.

    Rows past `length` are masked. Truncating sets `length` back and clears the rows: a masked NaN would still be NaN.
    A graph that covers all rows it is fed and writes them in place is fed only the rows in use, rounded up to a bucket.
    The cache's heads are then contiguous in the first part of its memory and are moved apart as it grows. The layout
    depends only on `length`, so the same rows give the same bits whatever came before.
    """

    def __init__(self, spec: GraphSpec, memory: Memory | None = None, caches: Caches | None = None) -> None:
        """`caches` are in `memory`; None allocates them."""
        self._states = _ordered(spec, "linear")
        self._memory = memory or HostMemory()
        self._in_place = bool(spec.aliases)
        if "past" in spec.dims:
            self.capacity, self._bucket = spec.dims["past"].max, spec.dims["past"].min
        else:
            self.capacity = self._bucket = _size(spec, self._states[0].input, self._states[0].slot_axis)
        # A GPU's graph is always fed the whole cache, and so is any graph of fixed length.
        self._grows = self._in_place and self._bucket < self.capacity and isinstance(self._memory, HostMemory)
        self._store = caches or Caches(spec, self._memory)
        self.length = 0
        self._make_room(1)

    @property
    def _caches(self) -> Mapping[str, Tensor]:
        return self._store.tensors

    def feeds(self, num_rows: int) -> dict[str, Tensor]:
        """The caches and `position_ids` of `num_rows` new rows, and the input that marks the rows in use.

        rows     the caches up to the next multiple of the bucket, and `attention_mask`
        aliased  the caches with space for the new rows, and `write_index`, the position of the first new row
        These are the caches themselves, not copies.
        """
        positions = np.arange(self.length, self.length + num_rows, dtype=np.int64)[None]
        if self._in_place:
            self._make_room(self.length + num_rows)
            return {**self._caches, "position_ids": positions, "write_index": np.asarray([self.length], dtype=np.int64)}
        fed = self._bucketed(self.length)
        mask = np.ones((1, fed + num_rows), dtype=np.int64)
        mask[:, self.length : fed] = 0
        caches = {s.input: self._memory.prefix(self._caches[s.input], s, fed) for s in self._states}
        return {**caches, "attention_mask": mask, "position_ids": positions}

    def reserve(self, num_rows: int) -> None:
        """Raise StreamFull if `num_rows` more rows do not fit."""
        if self.length + num_rows > self.capacity:
            raise StreamFull(
                f"the context is full: {self.length} of {self.capacity} LLM rows are in use and {num_rows} more are "
                f"needed",
                fix="reset the stream, push fewer frames, or export with a larger --context",
            )

    def truncate(self, length: int) -> None:
        """Drop every row from `length` on. Raises SpecError if fewer are in use."""
        if length > self.length:
            raise SpecError(f"only {self.length} rows are in use", expected=f"at least {length}, the new length")
        forgotten, self.length = self.length - length, length  # first: rows past it are masked, whether cleared or not
        self._clear(length, forgotten)
        if not length:
            self._make_room(1)

    def discard(self, num_rows: int) -> None:
        """After a failed pass over `num_rows` rows: clear what it may have written past the rows in use."""
        if self._in_place:
            room = self._store.room if self._grows else self.capacity
            self._clear(self.length, min(num_rows, room - self.length))

    def copy_from(self, other: LinearCache) -> None:
        """Copy the rows in use of `other`, of the same bundle, on the device they are on. This cache is empty."""
        if self._grows:  # give both the same layout: in a slab, either may be larger than it needs
            self._store.lay_out(other._store.room)
            other._store.lay_out(self._store.room)
        for state in self._states:
            self._memory.copy(self._caches[state.input], other._caches[state.input], state, other.length)
        self.length = other.length

    def dump(self) -> dict[str, Array]:
        """The rows in use of every cache, on the host."""
        return {s.input: self._memory.fetch(self._caches[s.input], s, 0, self.length) for s in self._states}

    def restore(self, caches: Mapping[str, Array], length: int) -> None:
        """Restore what `dump` returned, as bits. Raises StreamError before changing anything."""
        rows = {}
        for state in self._states:
            shape = list(self._caches[state.input].shape)
            shape[state.slot_axis] = length
            rows[state.input] = _rows_of(caches, state, tuple(shape))
        self.truncate(0)
        self._make_room(length)
        for state in self._states if length else ():
            placed = self._memory.from_host(rows[state.input], state.dtype)
            self._memory.place(self._caches[state.input], placed, state, 0, length)
        self.length = length

    def append(self, outputs: Mapping[str, Tensor], num_rows: int) -> None:
        """Add the `num_rows` new rows of a pass to the context: copied here, unless the graph wrote them in place."""
        self.reserve(num_rows)
        if not self._in_place:
            for state in self._states:
                cache = self._caches[state.input]
                self._memory.place(cache, outputs[state.output], state, self.length, num_rows)
        self.length += num_rows

    def new_rows(self, outputs: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        """The new rows of a pass, before `append`: its outputs or, if written in place, rows past `length`."""
        if not self._in_place:
            return {state.output: outputs[state.output] for state in self._states}
        return {
            state.output: cache[state.rows(self.length, num_rows)]
            for state in self._states
            if isinstance(cache := outputs[state.output], np.ndarray)
        }

    def _bucketed(self, num_rows: int) -> int:
        return max(-(-num_rows // self._bucket), 1) * self._bucket

    def _make_room(self, num_rows: int) -> None:
        """Change the layout to one for num_rows rows, rounded up to the bucket."""
        if self._grows:
            self._store.lay_out(self._bucketed(num_rows))

    def _clear(self, start: int, num_rows: int) -> None:
        for state in self._states:
            self._memory.clear(self._caches[state.input], state, start, num_rows)


def _ordered(spec: GraphSpec, order: str) -> tuple[StateSpec, ...]:
    """The graph's states, all of which must have an order and update that this cache supports."""
    served = ("rows", "aliased") if order == "linear" else ("rows",)
    for state in spec.states:
        if state.order != order or state.update not in served or state.update != spec.states[0].update:
            raise SpecError(
                f"graph '{spec.name}': state '{state.input}' has order '{state.order}' and update '{state.update}'",
                expected=f"order '{order}' and one update for all states of the graph, of {', '.join(served)}",
            )
    return spec.states


def _size(spec: GraphSpec, tensor: str, axis: int) -> int:
    dim = spec.input(tensor).shape[axis]
    assert isinstance(dim, int)
    return dim


def from_bits(bits: Array | None, name: str, dtype_name: str, shape: tuple[int, ...]) -> Array:
    """Bits from a saved stream as an array of this dtype. Raises StreamError if shape or size differ."""
    dtype = host_dtype(dtype_name)
    if bits is None or bits.shape != shape or bits.dtype != np.dtype(f"u{dtype.itemsize}"):
        found = "no data" if bits is None else f"{bits.dtype} {bits.shape}"
        raise StreamError(
            f"the saved stream holds {found} as {name}",
            expected=f"{dtype} {shape}",
            cause="the file is damaged",
            fix="open an older one, or start a new stream",
        )
    return bits.view(dtype)


def _rows_of(caches: Mapping[str, Array], state: StateSpec, shape: tuple[int, ...]) -> Array:
    return from_bits(caches.get(state.input), f"'{state.input}'", state.dtype, shape)
