"""Step 3: what this card can do at most, measured: products of large matrices, and bytes copied within its memory.

Everything later is held against these, and not against a data sheet.
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
"""A stand-in is a CPU: what it is asked for is so many times less, by each measure."""
NUM_ROUNDS, NUM_RUNS = 5, 10
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
BANDWIDTH = "copy bandwidth"


def measure_peaks(hardware: Hardware) -> Found:
    """Copies by the CUDA runtime alone, and products by torch where it sees the GPU."""
    numbers = [Number(name=BANDWIDTH, value=copy_bandwidth(hardware) / 1e9, unit="GB/s")]
    facts = [("copies", "within the GPU's memory; read and written bytes both count")]
    try:
        numbers += _gemms(hardware)
        facts.append(("products", "square matrices; float32 without TF32, as our graphs are run"))
    except (ImportError, RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        facts.append(("products", f"not executed, torch does not see the GPU: {error}"))
    return Found(facts=tuple(facts), numbers=tuple(numbers))


def gemm_name(dtype: str) -> str:
    return f"GEMM {dtype}"


def copy_bandwidth(hardware: Hardware) -> float:
    """Bytes a second."""
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
    """Wait for what torch has queued."""
    if hardware.torch_device == "cuda":
        import torch

        torch.cuda.synchronize()


def best_seconds(run: Callable[[], None]) -> float:
    """Of several rounds after one that does not count: a peak is what is reached, not what is usual."""
    run()
    seconds = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
