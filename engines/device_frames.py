"""Frames held by other libraries, on the host or already on the GPU, such as those of decoders and CUDA pipelines.

Accepts objects with `__dlpack__` (torch, cupy, jax, NVIDIA's decoders) or `__cuda_array_interface__`: uint8 (H, W, 3),
BGR like every frame of a stream. On the host this is a view. On a GPU a dense frame of the model's size (S, S, 3) is
copied within the GPU into the trunk's buffer, with its channels swapped by three strided copies, and never reaches the
host. A frame of another size is fetched and resized like any other; a warning says so once.
Written for a GPU; so far run only on engines/fake.py.
"""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FrameError
from .memory import Array, DeviceArray, DeviceMemory, Memory, Tensor
from .preprocess import to_model_frame

ON_CPU, ON_CUDA = (1, 3), (2, 13)
"""DLPack's device types: host memory, also pinned; GPU memory, also managed."""
UINT8 = (1, 8, 1)  # DLPack: kDLUInt, bits, lanes
EXPECTED = "uint8 (height, width, 3) in BGR order: a numpy array, or an object with DLPack or CUDA's array interface"


class FrameTaker:
    """Turns whatever a caller pushes into the trunk's input. One per stream."""

    def __init__(self, memory: Memory, *, size: int) -> None:
        self._memory, self._size = memory, size
        self._buffer: DeviceArray | None = None
        self._has_warned = False

    def take(self, frame: Any) -> Tensor:
        """(S, S, 3) uint8 RGB: an array on the host, or one on the GPU, valid until the next call.

        Raises FrameError for an invalid frame, and for one on a GPU if the bundle runs on the CPU.
        """
        if isinstance(frame, np.ndarray) or not is_on_gpu(frame):
            on_host: Any = np.from_dlpack(frame) if hasattr(frame, "__dlpack__") else frame
            return to_model_frame(on_host, size=self._size)
        if not isinstance(self._memory, DeviceMemory):
            raise FrameError(
                "the frame is on a GPU, but this bundle runs on the CPU",
                expected="a frame in host memory",
                cause="the bundle was opened with runtime 'cpu', or without its engines",
                fix="copy it to the host first, such as frame.cpu()",
            )
        found = look_at(frame, self._memory)
        if found.shape == (self._size, self._size, 3) and found.is_dense:
            return self._swap(found)
        return to_model_frame(self._fetch(found), size=self._size)

    def _swap(self, frame: DevicePicture) -> DeviceArray:
        """BGR to RGB within the GPU: every third byte, three times. The caller's memory has been read by the end of
        `push`, which waits for the frame's embeddings."""
        memory, size = self._memory, self._size
        assert isinstance(memory, DeviceMemory), "checked by the caller"
        if self._buffer is None:
            self._buffer = memory.empty((size, size, 3), "uint8")
        for channel in range(3):
            source = frame.address + 2 - channel
            memory.cuda.copy_rows(self._buffer.address + channel, 3, source, 3, 1, size * size, memory.stream)
        return self._buffer

    def _fetch(self, frame: DevicePicture) -> Array:
        if not frame.is_dense:
            raise FrameError(
                f"the frame on the GPU has shape {frame.shape} with strides {frame.strides}",
                expected="a dense frame, row after row",
                cause="it is a view: a crop, or channels first",
                fix="make it dense first, such as frame.contiguous()",
            )
        if not self._has_warned:
            self._has_warned = True
            height, width, _ = frame.shape
            warnings.warn(
                f"frames of {width} x {height} on the GPU are copied to the host for resizing; frames of the model's "
                f"size, {self._size} x {self._size}, stay on the GPU",
                RuntimeWarning,
                stacklevel=4,
            )
        source = DeviceArray(address=frame.address, shape=frame.shape, dtype="uint8", block=frame.owner)
        return self._memory.to_host(source)


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePicture:
    """A frame in GPU memory. strides in bytes; owner keeps the memory alive."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: object

    @property
    def is_dense(self) -> bool:
        height, width, channels = self.shape
        return self.strides == (width * channels, channels, 1) and height > 0


def is_on_gpu(frame: Any) -> bool:
    """Decided by DLPack if supported. Raises FrameError for a device that is neither the host nor an NVIDIA GPU."""
    if hasattr(frame, "__dlpack_device__"):
        kind = int(frame.__dlpack_device__()[0])
        if kind not in (*ON_CPU, *ON_CUDA):
            raise FrameError(f"the frame is on a device of DLPack type {kind}", expected="the host or an NVIDIA GPU")
        return kind in ON_CUDA
    return hasattr(frame, "__cuda_array_interface__")


def look_at(frame: Any, memory: DeviceMemory) -> DevicePicture:
    """Address of a frame on the GPU, after ordering whatever writes it before our stream.

    Raises FrameError unless it is uint8 (H, W, 3) on device 0.
    """
    if hasattr(frame, "__dlpack__"):
        index = int(frame.__dlpack_device__()[1])
        if index != 0:
            raise FrameError(f"the frame is on GPU {index}", expected="GPU 0, which runs the bundle")
        # The producer makes our stream wait for its stream. The capsule is not consumed, so it frees its tensor itself.
        found = _of_capsule(frame.__dlpack__(stream=memory.stream))
    else:
        found = _of_interface(frame, memory)
    if len(found.shape) != 3 or found.shape[2] != 3 or 0 in found.shape:
        raise FrameError(f"the frame on the GPU has shape {found.shape}", expected=EXPECTED, fix="convert it first")
    return found


def _of_interface(frame: Any, memory: DeviceMemory) -> DevicePicture:
    told = frame.__cuda_array_interface__
    _require_uint8(told["typestr"].endswith("u1"), told["typestr"])
    if told.get("stream"):
        memory.cuda.synchronize(int(told["stream"]))
    shape = tuple(told["shape"])
    strides = tuple(told["strides"]) if told.get("strides") else _dense_strides(shape)
    return DevicePicture(address=int(told["data"][0]), shape=shape, strides=strides, owner=frame)


class _DLTensor(ctypes.Structure):
    """From dlpack.h: the same in versions 0 and 1, and the first member of an unversioned capsule."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


def _of_capsule(capsule: object) -> DevicePicture:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = get(capsule, b"dltensor")
    assert address is not None, "PyCapsule_GetPointer raises for a capsule of another name"
    tensor = _DLTensor.from_address(address)
    kind = (tensor.code, tensor.bits, tensor.lanes)
    _require_uint8(kind == UINT8, f"DLPack type {kind}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _dense_strides(shape)
    return DevicePicture(
        address=int(tensor.data or 0) + int(tensor.byte_offset), shape=shape, strides=strides, owner=capsule
    )


def _require_uint8(is_uint8: bool, found: str) -> None:
    if not is_uint8:
        raise FrameError(
            f"the frame on the GPU is {found}", expected=EXPECTED, cause="it was already normalised",
            fix="pass the raw frame",
        )  # fmt: skip


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = list[int](), 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return tuple(strides)
