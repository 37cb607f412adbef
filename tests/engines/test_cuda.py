"""libcudart through ctypes, without the library: its arguments, and the errors if it is missing or refuses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from engines import cuda
from engines.cuda import LibCudart
from engines.errors import BackendUnavailable
from engines.memory import DeviceMemory
from engines.spec import StateSpec

OUT_OF_MEMORY, NO_DRIVER = 2, 35


class Library:
    """A libcudart whose functions record their arguments as plain numbers. `status` is the return value of each."""

    def __init__(self, *, num_gpus: int = 1, **status: int) -> None:
        self.num_gpus, self.status, self.next_address = num_gpus, status, 0x7000
        self.calls: list[tuple[str, tuple[int | None, ...]]] = []
        self.cudaGetErrorString: Any = lambda status: b"some reason"

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            values = tuple(getattr(argument, "value", None) for argument in arguments)
            self.calls.append((name, values))
            self.answer(name, arguments)
            return self.status.get(name, 0)

        return call

    def answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Set the values that the pointers refer to, as the library does."""
        self.next_address += 0x1000 * (name == "cudaMalloc")
        answers = {
            "cudaGetDeviceCount": [self.num_gpus],
            "cudaMalloc": [self.next_address],
            "cudaStreamCreateWithFlags": [0x51],
            "cudaMemGetInfo": [3 << 20, 8 << 20],
        }.get(name, [])
        if name == "cudaDeviceGetAttribute":
            answers = [8 if arguments[1].value == 75 else 7]
        for argument, answer in zip(arguments, answers, strict=False):
            argument._obj.value = answer


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def loaded(**options: Any) -> Library:
        library = Library(**options)
        monkeypatch.setattr(cuda, "_load_library", lambda: library)
        return library

    return loaded


def test_without_a_library_the_error_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendUnavailable, match="the CUDA runtime cannot be loaded") as error:
        LibCudart()
    assert "libcudart.so.13" in error.value.expected and "JetPack" in error.value.expected
    assert error.value.fix == "pip install nvidia-cuda-runtime" and error.value.exit_code == 4


def test_a_library_that_a_pip_package_brings_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    bundled.parent.mkdir(parents=True)
    bundled.touch()
    library = Library()

    def open_library(name: str) -> Library:
        if name != str(bundled):
            raise OSError(name)
        return library

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert LibCudart()._lib is library  # type: ignore[comparison-overlap]


def test_without_a_driver_the_error_has_the_number_the_reason_and_the_next_command(load: Any) -> None:
    load(cudaGetDeviceCount=NO_DRIVER)
    with pytest.raises(BackendUnavailable, match=r"cudaGetDeviceCount failed with error 35 \(some reason\)") as error:
        LibCudart()
    assert "nvidia-smi" in error.value.fix


def test_without_a_gpu_the_error_says_where_to_look(load: Any) -> None:
    load(num_gpus=0)
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU is visible") as error:
        LibCudart()
    assert "CUDA_VISIBLE_DEVICES" in error.value.fix


def test_a_full_gpu_is_reported_in_mib_with_the_flags_that_need_less(load: Any) -> None:
    library = load(cudaMalloc=OUT_OF_MEMORY)
    memory = DeviceMemory(LibCudart())
    with pytest.raises(BackendUnavailable) as caught:
        memory.zeros((1, 1024, 1024), "float32")
    error = caught.value
    assert "4.0 MiB were requested, 3.0 of 8.0 MiB are free" in error.what
    assert "--window, --context or --streams" in error.fix and "nvidia-smi" in error.fix
    assert "cudaGetLastError" in [name for name, _ in library.calls], "else the next call would report it"


def test_the_same_status_of_another_call_is_no_question_of_memory(load: Any) -> None:
    load(cudaStreamSynchronize=OUT_OF_MEMORY)
    with pytest.raises(BackendUnavailable, match="cudaStreamSynchronize failed with error 2"):
        LibCudart().synchronize(1)


def test_the_gpu_s_name_is_its_compute_capability(load: Any) -> None:
    load()
    assert LibCudart().compute_capability() == "SM87"


def test_each_call_passes_its_numbers_in_the_library_s_order(load: Any) -> None:
    """The order of the CUDA Runtime API's reference; a swapped pitch and width would copy garbage."""
    library = load()
    gpu = LibCudart()
    assert (gpu.create_stream(), gpu.allocate(64)) == (0x51, 0x8000)
    library.calls.clear()
    gpu.copy_to_device(1, 2, 3, 4)
    gpu.copy_to_host(1, 2, 3, 4)
    gpu.copy_rows(1, 20, 3, 40, 5, 6, 7)
    gpu.fill_rows(1, 20, 0, 4, 5, 6)
    gpu.synchronize(9)
    gpu.free(8)
    assert library.calls == [
        ("cudaMemcpyAsync", (1, 2, 3, 1, 4)),  # dst, src, count, kind, stream
        ("cudaMemcpyAsync", (1, 2, 3, 2, 4)),
        ("cudaMemcpy2DAsync", (1, 20, 3, 40, 5, 6, 3, 7)),  # dst, dpitch, src, spitch, width, height, kind, stream
        ("cudaMemset2DAsync", (1, 20, 0, 4, 5, 6)),  # ptr, pitch, value, width, height, stream
        ("cudaStreamSynchronize", (9,)),
        ("cudaFree", (8,)),
    ]


def test_addresses_keep_all_their_bits(load: Any) -> None:
    """A plain int would be passed with 32 bits."""
    library = load()
    gpu, high = LibCudart(), 0x7F12_3456_7890
    library.calls.clear()
    gpu.copy_rows(high, 1, high + 1, 1, 1, 1, high + 2)
    ((_, values),) = library.calls
    assert [values[index] for index in (0, 2, 7)] == [high, high + 1, high + 2]


def test_a_cache_row_is_one_call_whatever_its_layout(load: Any) -> None:
    library = load()
    memory = DeviceMemory(LibCudart())
    state = StateSpec(
        input="past.0.key", output="new.0.key", dtype="float16", layout="BNHWD", slot_axis=3, order="ring", row_bytes=0
    )
    cache, row = memory.empty((1, 65, 4, 8, 16), "float16"), memory.empty((1, 65, 4, 16), "float16")
    library.calls.clear()
    memory.place(cache, row, state, slot=3)
    assert library.calls == [("cudaMemcpy2DAsync", (0x8000 + 3 * 32, 8 * 32, 0x9000, 32, 32, 65 * 4, 3, 0x51))]
