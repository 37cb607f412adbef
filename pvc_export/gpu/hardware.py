"""Hardware for the steps: this machine's GPU, or a stand-in for it in tests."""

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
"""Time limit for the driver's reply; after that it is assumed to hang."""
FIRST_BFLOAT16 = (8, 0)
"""Compute capability of Ampere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One card, as the CUDA driver describes it."""

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
    """The driver's GPUs. cuda_version: the newest CUDA it supports, '' without a driver. error: why there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    cuda_version: str = ""
    error: str = ""


def ask_driver() -> Drivers:
    """Query the CUDA driver directly: packages may be installed on a machine without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Drivers(error="no NVIDIA driver is installed (libcuda.so.1 not found)")
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""
    if status or count.value == 0:
        error = f"the NVIDIA driver is installed but reports no GPU (CUDA error {status})"
        return Drivers(cuda_version=cuda_version, error=error)
    gpus = tuple(_gpu(driver, index) for index in range(count.value))
    return Drivers(gpus=gpus, cuda_version=cuda_version)


def ask_driver_apart(command: Sequence[str] = ASK) -> Drivers:
    """Query the driver in another process, so that the run can report a driver that hangs or crashes."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_S, check=True)
    except subprocess.SubprocessError as error:
        return Drivers(error=f"querying the NVIDIA driver for its GPUs failed: {error}")
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
"""Called with model, target, precision and the bundle's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The hardware of a run.

    drivers       GPUs and CUDA version
    cuda          makes a CUDA runtime
    torch_device  device on which torch computes
    provider      ONNX Runtime's execution provider
    make_bundle   replaces the export, for a stand-in without a compiler
    is_stand_in   whether it is a stand-in, whose numbers are not measurements
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
        """Precisions to try: only float16 on a card without bfloat16."""
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
