"""The CUDA runtime, through ctypes on libcudart: memory, copies, one stream. No torch, no cupy, no pycuda.

Every call is one method of a Protocol, so that engines/fake.py can replace a GPU, record each copy and wait, and reject
an address that was never allocated. Addresses are plain integers. Written from the CUDA Runtime API reference; not yet
run on a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Protocol

from .errors import BackendUnavailable

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = map(ctypes.c_int, (1, 2, 3))  # cudaMemcpyKind
NOT_LOADED = "the CUDA runtime cannot be loaded"
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # cudaDeviceAttr
NON_BLOCKING = 1  # cudaStreamNonBlocking: the legacy default stream does not wait for this one


class CudaRuntime(Protocol):
    """GPU operations that the runtime needs. Sizes in bytes; copies are queued on a stream and run in order."""

    def allocate(self, num_bytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: int) -> None: ...

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: int) -> None: ...

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int
    ) -> None:
        """Copy `height` runs of `width` bytes within the GPU; consecutive runs are one pitch apart."""

    def fill_rows(self, target: int, pitch: int, value: int, width: int, height: int, stream: int) -> None:
        """Set every byte of `height` runs of `width` bytes."""

    def compute_capability(self) -> str:
        """Such as 'SM89'."""


class LibCudart:
    """CudaRuntime on the real library and device 0."""

    def __init__(self) -> None:
        """Raises BackendUnavailable without libcudart, a driver, or a GPU."""
        self._lib = _load_library()
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value == 0:
            raise BackendUnavailable("no NVIDIA GPU is visible", fix="see nvidia-smi, and CUDA_VISIBLE_DEVICES")

    def allocate(self, num_bytes: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), num_bytes, needed=num_bytes)
        return int(address.value or 0)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        return int(stream.value or 0)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, num_bytes, HOST_TO_DEVICE, stream)

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, num_bytes, DEVICE_TO_HOST, stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int
    ) -> None:
        pitched = target, target_pitch, source, source_pitch
        self._call("cudaMemcpy2DAsync", *pitched, width, height, DEVICE_TO_DEVICE, stream)

    def fill_rows(self, target: int, pitch: int, value: int, width: int, height: int, stream: int) -> None:
        self._call("cudaMemset2DAsync", target, pitch, ctypes.c_int(value), width, height, stream)

    def compute_capability(self) -> str:
        parts = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
            parts.append(value.value)
        return f"SM{parts[0]}{parts[1]}"

    def _call(self, name: str, *arguments: object, needed: int | None = None) -> None:
        """Call a function of the library. Plain ints (addresses, sizes, streams) are passed with all 64 bits.

        Raises BackendUnavailable if it fails; `needed` is the number of bytes to allocate.
        """
        wide = (ctypes.c_size_t(value) if isinstance(value, int) else value for value in arguments)
        status = getattr(self._lib, name)(*wide)
        if status == 0:
            return
        if status == OUT_OF_MEMORY and needed is not None:
            self._lib.cudaGetLastError()  # clears it: other code in this process would see it as its own
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
            raise BackendUnavailable(
                f"the GPU is out of memory: {needed / 2**20:.1f} MiB were requested, {free.value / 2**20:.1f} of "
                f"{total.value / 2**20:.1f} MiB are free",
                fix="export with a smaller --window, --context or --streams, or stop other programs on this GPU (see: "
                "nvidia-smi)",
            )
        self._lib.cudaGetErrorString.restype = ctypes.c_char_p
        reason = (self._lib.cudaGetErrorString(status) or b"no text").decode(errors="replace")
        raise BackendUnavailable(
            f"CUDA: {name} failed with error {status} ({reason})",
            cause="the driver is missing or too old",
            fix="see nvidia-smi, pvc-export doctor",
        )


def _load_library() -> ctypes.CDLL:
    """libcudart of the system, or the copy inside a pip package."""
    bundled = [
        str(path)
        for folder in map(Path, sys.path)
        for path in sorted(folder.glob("nvidia/*/lib/libcudart.so.*"), reverse=True)
    ]
    for name in (*LIBRARIES, *bundled):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendUnavailable(
        NOT_LOADED,
        expected=f"one of {', '.join(LIBRARIES)}, as installed by JetPack or the CUDA toolkit",
        fix="pip install nvidia-cuda-runtime",
    )
