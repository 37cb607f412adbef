"""Frames in another library's memory, on the host or the GPU: the same values, and no detour through the host for a
frame that already has the model's size."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from engines import PVCStream
from engines.bundle import Bundle
from engines.device_frames import FrameTaker
from engines.errors import FrameError
from engines.fake import RecordingCuda
from engines.memory import DeviceMemory, HostMemory
from engines.preprocess import to_model_frame

from .test_gpu import Open, on_fake_engines, open_engines, with_fake_engines

__all__ = ["on_fake_engines", "open_engines", "with_fake_engines"]  # fixtures from test_gpu.py
SIZE = 8


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class ByDlpack:
    """A frame in RecordingCuda's memory, passed by DLPack. numpy makes the capsule, so addresses are the host's."""

    def __init__(self, cuda: RecordingCuda, array: np.ndarray, *, device: tuple[int, int] = (2, 0)) -> None:
        self.address = cuda.allocate(array.nbytes)
        ctypes.memmove(self.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        block = (ctypes.c_uint8 * array.nbytes).from_address(self.address)
        self.array = np.frombuffer(block, dtype=array.dtype).reshape(array.shape)
        self.device, self.streams = device, list[int | None]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


class ByInterface:
    """The same, passed by CUDA's array interface."""

    def __init__(self, cuda: RecordingCuda, array: np.ndarray, *, stream: int | None = None) -> None:
        self.held = ByDlpack(cuda, array)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.held.address, False), "version": 3,
            "stream": stream,
        }  # fmt: skip


@pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
def test_a_frame_on_the_gpu_reaches_the_trunk_without_the_host(kind: Any, open_engines: Open) -> None:
    bundle, cuda = open_engines()
    size = bundle.manifest.shape.image_size
    frames = [picture(size, size), picture(size, size)[::-1]]
    on_host, on_gpu = PVCStream(bundle), PVCStream(bundle)
    for frame in frames:
        cuda.calls.clear()
        on_host.push(frame)
        uploaded = cuda.num_bytes("upload")
        held = kind(cuda, frame)
        cuda.calls.clear()
        on_gpu.push(held)
        assert cuda.num_bytes("upload") == uploaded - frame.nbytes
    assert ask(on_host) == ask(on_gpu)


def ask(stream: PVCStream) -> tuple[int, ...]:
    return stream.ask("What moves?", max_new_tokens=4).token_ids


def taker() -> tuple[FrameTaker, RecordingCuda, DeviceMemory]:
    cuda = RecordingCuda()
    memory = DeviceMemory(cuda)
    return FrameTaker(memory, size=SIZE), cuda, memory


def test_colours_are_swapped_on_the_gpu_and_the_producer_waits_for_our_stream() -> None:
    take, cuda, memory = taker()
    frame = picture(SIZE, SIZE)
    held = ByDlpack(cuda, frame)
    assert np.array_equal(memory.to_host(take.take(held)), frame[:, :, ::-1])
    assert held.streams == [memory.stream] and cuda.num_bytes("download") == frame.nbytes  # this test's own download
    assert np.array_equal(held.array, frame)


def test_a_frame_of_another_size_is_fetched_and_said_so_once() -> None:
    take, cuda, _ = taker()
    frame = picture(12, 20)
    with pytest.warns(RuntimeWarning, match="20 x 12 on the GPU are copied to the host.*8 x 8, stay"):
        found = take.take(ByDlpack(cuda, frame))
    assert np.array_equal(found, to_model_frame(frame, size=SIZE))
    assert np.array_equal(take.take(ByInterface(cuda, frame)), found)  # a second warning would be an error here


def test_the_interface_s_own_stream_is_waited_for() -> None:
    take, cuda, _ = taker()
    other = cuda.create_stream()
    take.take(ByInterface(cuda, picture(SIZE, SIZE), stream=other))
    assert cuda.count("sync") == 1


def test_tensors_of_the_host_are_taken_by_dlpack() -> None:
    frame = picture(12, 20)
    for memory in (HostMemory(), DeviceMemory(RecordingCuda())):
        found = FrameTaker(memory, size=SIZE).take(torch.from_numpy(frame))
        assert np.array_equal(found, to_model_frame(frame, size=SIZE))


def test_what_is_no_frame_on_the_gpu_is_named() -> None:
    take, cuda, _ = taker()
    refused: list[tuple[Any, str]] = [
        (ByDlpack(cuda, picture(SIZE, SIZE).astype(np.float32)), r"DLPack type \(2, 32, 1\)"),
        (ByInterface(cuda, picture(SIZE, SIZE).astype(np.float16)), "is <f2"),
        (ByDlpack(cuda, picture(SIZE, SIZE)[..., 0]), r"has shape \(8, 8\)"),
        (ByDlpack(cuda, picture(SIZE, SIZE), device=(2, 1)), "is on GPU 1"),
        (ByDlpack(cuda, picture(SIZE, SIZE), device=(10, 0)), "DLPack type 10"),
        (strided(cuda), "with strides"),
        ("a path.png", "a str"),
    ]
    for frame, words in refused:
        with pytest.raises(FrameError, match=words):
            take.take(frame)


def strided(cuda: RecordingCuda) -> ByInterface:
    frame = ByInterface(cuda, picture(SIZE, SIZE))
    frame.__cuda_array_interface__["strides"] = (48, 3, 1)
    return frame


def test_a_bundle_on_the_cpu_refuses_a_frame_on_the_gpu() -> None:
    frame = ByDlpack(RecordingCuda(), picture(SIZE, SIZE))
    with pytest.raises(FrameError, match="this bundle runs on the CPU"):
        FrameTaker(HostMemory(), size=SIZE).take(frame)


def test_a_refused_frame_leaves_the_stream_as_it_was(open_engines: Open) -> None:
    bundle: Bundle = open_engines()[0]
    stream = PVCStream(bundle)
    with pytest.raises(FrameError):
        stream.push(ByDlpack(RecordingCuda(), picture(SIZE, SIZE)[..., 0]))
    assert stream.num_frames == 0
