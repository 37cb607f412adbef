"""Fakes for hardware and models that are absent. They ship with the package, for an application's tests.

RecordingCuda   a CUDA runtime in host memory: copies really happen, are recorded, and must stay in their allocation
FakeSession     a graph without a runtime: outputs have the right names, shapes and dtypes and depend on every input
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .errors import SpecError
from .memory import Array, HostMemory, Memory, Tensor, host_dtype
from .spec import GraphSpec


@dataclass(frozen=True, slots=True)
class CudaCall:
    """One recorded call: 'allocate', 'upload', 'download', 'copy', 'fill' or 'sync', and the bytes it wrote."""

    kind: str
    num_bytes: int = 0


@dataclass(slots=True)
class RecordingCuda:
    """CudaRuntime whose GPU is a set of numpy arrays, so that its addresses are also host addresses.

    Stricter than a GPU: a download reaches the host only when the stream is waited for, new memory is never zero, and
    an access outside an allocation or an unknown stream raises SpecError.
    """

    capability: str = "SM89"
    calls: list[CudaCall] = field(default_factory=list)
    _blocks: dict[int, Array] = field(default_factory=dict)
    _downloads: list[tuple[int, bytes]] = field(default_factory=list)
    _num_streams: int = 0
    _streams: set[int] = field(default_factory=set)

    def num_bytes(self, kind: str) -> int:
        """Bytes written by all recorded calls of a kind."""
        return sum(call.num_bytes for call in self.calls if call.kind == kind)

    def count(self, kind: str) -> int:
        return sum(call.kind == kind for call in self.calls)

    def allocated(self) -> int:
        """Bytes currently allocated."""
        return sum(block.nbytes for block in self._blocks.values())

    def allocate(self, num_bytes: int) -> int:
        block = np.full(num_bytes, 0xCD, dtype=np.uint8)  # new GPU memory is not zero; 0xCDCD is a valid float16
        address = int(block.ctypes.data)
        self._blocks[address] = block
        self.calls.append(CudaCall("allocate", num_bytes))
        return address

    def free(self, address: int) -> None:
        if address not in self._blocks:
            raise SpecError(f"address {address:#x} was freed, but never allocated")
        del self._blocks[address]

    def create_stream(self) -> int:
        self._num_streams += 1
        self._streams.add(self._num_streams)
        return self._num_streams

    def destroy_stream(self, stream: int) -> None:
        self.require_stream(stream)
        self._streams.remove(stream)

    def num_streams(self) -> int:
        """Streams currently open."""
        return len(self._streams)

    def synchronize(self, stream: int) -> None:
        self.require_stream(stream)
        for target, content in self._downloads:
            ctypes.memmove(target, content, len(content))
        self._downloads.clear()
        self.calls.append(CudaCall("sync"))

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self.require_stream(stream)
        self.require_inside(target, num_bytes)
        ctypes.memmove(target, source, num_bytes)
        self.calls.append(CudaCall("upload", num_bytes))

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self.require_stream(stream)
        self.require_inside(source, num_bytes)
        ctypes.memset(target, 0xCD, num_bytes)
        self._downloads.append((target, ctypes.string_at(source, num_bytes)))
        self.calls.append(CudaCall("download", num_bytes))

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int
    ) -> None:
        self.require_stream(stream)
        if min(target_pitch, source_pitch) < width:
            raise SpecError(f"runs of {width} bytes overlap at pitches of {target_pitch} and {source_pitch}")
        self.require_inside(target, (height - 1) * target_pitch + width)
        self.require_inside(source, (height - 1) * source_pitch + width)
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        self.calls.append(CudaCall("copy", width * height))

    def fill_rows(self, target: int, pitch: int, value: int, width: int, height: int, stream: int) -> None:
        self.require_stream(stream)
        self.require_inside(target, (height - 1) * pitch + width)
        for row in range(height):
            ctypes.memset(target + row * pitch, value, width)
        self.calls.append(CudaCall("fill", width * height))

    def compute_capability(self) -> str:
        return self.capability

    def require_stream(self, stream: int) -> None:
        """Raise SpecError for a stream that is not open."""
        if stream not in self._streams:
            raise SpecError(f"stream {stream} is not open", expected=f"one of {sorted(self._streams)}")

    def require_inside(self, address: int, num_bytes: int) -> None:
        """Raise SpecError unless these bytes are in one allocation. For fakes of code that runs on the GPU."""
        for start, block in self._blocks.items():
            if start <= address and address + num_bytes <= start + block.nbytes:
                return
        raise SpecError(f"{num_bytes} bytes at {address:#x} are not inside one allocation of the GPU")


class FakeSession:
    """A session that computes nothing: a hash of the inputs seeds its outputs, so equal inputs give equal outputs."""

    computes_in = "nothing (fake)"

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.memory: Memory = HostMemory()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises SpecError for inputs that do not fit the spec."""
        arrays = {tensor.name: self.memory.to_host(inputs[tensor.name]) for tensor in self.spec.inputs}
        seed, dims = 0, dict[str, int]()
        for tensor in self.spec.inputs:
            array = arrays[tensor.name]
            tensor.check(array, self.spec.name)
            seed = zlib.crc32(np.ascontiguousarray(array).tobytes(), seed)
            dims |= {dim: size for dim, size in zip(tensor.shape, array.shape, strict=True) if isinstance(dim, str)}
        rng = np.random.default_rng(seed)
        return {
            tensor.name: self._update(arrays, tensor.name, rng)
            if tensor.name in self.spec.aliases
            else rng.standard_normal(tensor.resolve(dims)).astype(host_dtype(tensor.dtype))
            for tensor in self.spec.outputs
        }

    def _update(self, arrays: Mapping[str, Array], output: str, rng: np.random.Generator) -> Array:
        """Write new rows into a cache in place, like the real graph."""
        state = next(state for state in self.spec.states if state.output == output)
        cache, num_rows = arrays[state.input], arrays["inputs_embeds"].shape[1]
        for stream, start in zip(state.as_rows(cache), arrays["write_index"], strict=True):
            rows = stream[start : start + num_rows]
            rows[:] = rng.standard_normal(rows.shape).astype(cache.dtype)
        return cache
