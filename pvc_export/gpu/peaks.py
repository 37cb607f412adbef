"""Step 3: measured peak performance of this card: matmuls of large matrices, and copies within its memory.

Later measurements are given as shares of these peaks, not of a data sheet's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engines.memory import DeviceMemory

from .hardware import Hardware
from .section import Found, Number

COPY_BYTES, COPY_ROW = 2**29, 2**20
GEMM_SIZE = 4096
SMALL = 2**6
"""Factor by which the work is reduced on a stand-in, which is a CPU."""
NUM_ROUNDS, NUM_RUNS = 5, 10
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
BANDWIDTH = "copy bandwidth"


def measure_peaks(hardware: Hardware) -> Found:
    """Measure copies by the CUDA runtime, and matmuls by torch if it sees the GPU."""
    numbers = [Number(name=BANDWIDTH, value=copy_bandwidth(hardware) / 1e9, unit="GB/s")]
    facts = [("copies", "within the GPU's memory; bytes read and bytes written both count")]
    try:
        numbers += _gemms(hardware)
        facts.append(("products", "square matrices; float32 without TF32, the mode in which our graphs run"))
    except (ImportError, RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        facts.append(("products", f"not executed, since torch does not see the GPU: {error}"))
    return Found(facts=tuple(facts), numbers=tuple(numbers))


def gemm_name(dtype: str) -> str:
    return f"GEMM {dtype}"


def copy_bandwidth(hardware: Hardware) -> float:
    """Copy bandwidth in bytes per second."""
    cuda = hardware.cuda()
    memory = DeviceMemory(cuda)
    num_bytes = COPY_BYTES // SMALL if hardware.is_stand_in else COPY_BYTES
    source, target = (memory.zeros((num_bytes,), "uint8") for _ in range(2))

    def copy() -> None:
        for _ in range(NUM_RUNS):
            cuda.copy_rows(
                target.address, COPY_ROW, source.address, COPY_ROW, COPY_ROW, num_bytes // COPY_ROW, memory.stream
            )
        cuda.synchronize(memory.stream)

    return 2 * num_bytes * NUM_RUNS / best_seconds(copy)


def _gemms(hardware: Hardware) -> list[Number]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    size = GEMM_SIZE // (SMALL // 4) if hardware.is_stand_in else GEMM_SIZE
    found = []
    for name, dtype_name in DTYPES.items():
        if name == "bf16" and not hardware.drivers.gpus[0].has_bfloat16:
            continue
        left, right = torch.randn(2, size, size, device=hardware.torch_device).to(getattr(torch, dtype_name))

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            for _ in range(NUM_RUNS):
                left @ right
            synchronize(hardware)

        rate = 2 * size**3 * NUM_RUNS / best_seconds(multiply)
        found.append(Number(name=gemm_name(name), value=rate / 1e12, unit="TFLOP/s"))
    return found


def synchronize(hardware: Hardware) -> None:
    """Wait for torch's queued work."""
    if hardware.torch_device == "cuda":
        import torch

        torch.cuda.synchronize()


def best_seconds(run: Callable[[], None]) -> float:
    """The best of several rounds, after one warm-up round: a peak is the best case, not the usual one."""
    run()
    seconds = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
