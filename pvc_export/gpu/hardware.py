"""What the steps run on: this machine's GPU, or in tests what stands in for one."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.cuda import CudaRuntime, LibCudart
from engines.spec import Precision

from .section import STAND_IN

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
ASK = (sys.executable, "-m", "pvc_export.gpu.hardware")
DRIVER_S = 60.0
"""A driver that has not answered by then will not."""
FIRST_BFLOAT16 = (8, 0)
"""Compute capability of Ampere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One card, as the CUDA driver tells of it."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= FIRST_BFLOAT16

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drivers:
    """What the driver says. cuda_version: the newest CUDA that it runs, '' without one; error: why there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    cuda_version: str = ""
    error: str = ""


def ask_driver() -> Drivers:
    """The CUDA driver itself, since packages may be installed on a machine without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Drivers(error="there is no NVIDIA driver here (libcuda.so.1)")
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""
    if status or count.value == 0:
        error = f"the NVIDIA driver is there and shows no GPU (CUDA error {status})"
        return Drivers(cuda_version=cuda_version, error=error)
    gpus = tuple(_gpu(driver, index) for index in range(count.value))
    return Drivers(gpus=gpus, cuda_version=cuda_version)


def ask_driver_apart(command: Sequence[str] = ASK) -> Drivers:
    """The same in another process: a driver that hangs or crashes leaves a run that says so."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_S, check=True)
    except subprocess.SubprocessError as error:
        return Drivers(error=f"the NVIDIA driver did not answer when it was asked for its GPUs: {error}")
    data = json.loads(done.stdout)
    gpus = tuple(Gpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in data.pop("gpus"))
    return Drivers(gpus=gpus, **data)


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    name, memory = ctypes.create_string_buffer(96), ctypes.c_size_t(0)
    driver.cuDeviceGetName(name, 96, index)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
    parts = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
        parts.append(value.value)
    return Gpu(name=name.value.decode(errors="replace"), capability=(parts[0], parts[1]), memory_bytes=memory.value)


MakeBundle = Callable[[str, str, Precision, Path], None]
"""Model, target and precision, and the folder that the bundle gets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """drivers       what is there
    cuda          a CUDA runtime
    torch_device  where torch computes
    provider      ONNX Runtime's
    make_bundle   in place of an export, for a stand-in that has no compiler
    is_stand_in   whether nothing that comes out is a measurement
    """

    drivers: Drivers
    cuda: Callable[[], CudaRuntime] = LibCudart
    torch_device: str = "cuda"
    provider: str = "CUDAExecutionProvider"
    make_bundle: MakeBundle | None = None
    is_stand_in: bool = False

    @property
    def has_gpu(self) -> bool:
        return bool(self.drivers.gpus)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What is tried: of a card without bfloat16 float16 alone."""
        lacks_bfloat16 = self.has_gpu and not self.drivers.gpus[0].has_bfloat16
        return ("fp16",) if lacks_bfloat16 else ("fp16", "bf16")

    @property
    def measured_on(self) -> str:
        return STAND_IN if self.is_stand_in else self.drivers.gpus[0].name if self.has_gpu else ""

    @staticmethod
    def here() -> Hardware:
        return Hardware(drivers=ask_driver_apart())


if __name__ == "__main__":
    print(json.dumps(asdict(ask_driver())))
