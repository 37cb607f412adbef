"""Baselines of both comparisons: a default export and this machine's peaks; and the settings of the int8 and int4
variants.

A default export is what a user gets by following the documentation of torch and ONNX Runtime with default options; only
the number of threads is set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.memory import Array
from engines.spec import Part, Quantization
from engines.target import load_target

from ..graphs.onnx_file import quiet_exporter
from .compare import Peak

GEMM_SIZE = 1024
READ_BYTES = 2**28
"""Size of the array that is read to measure the peak: larger than a CPU's caches."""

OnTensors = Callable[..., Callable[[], list[Array]]]
"""Tensors -> a function that runs a graph on them, with numpy in and out."""


def default_export(
    module: nn.Module, arguments: tuple[Tensor, ...], path: Path, *, threads: int, dynamic_shapes: Any = None
) -> OnTensors:
    """A module exported by torch's dynamo exporter and opened by ONNX Runtime."""
    with quiet_exporter():
        torch.onnx.export(module.eval(), arguments, path, dynamo=True, dynamic_shapes=dynamic_shapes)
    session = open_with_defaults(str(path), threads=threads)
    names = [value.name for value in session.get_inputs()]

    def on_tensors(*arguments: Tensor) -> Callable[[], list[Array]]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
        return lambda: session.run(None, feeds)

    return on_tensors


def open_with_defaults(model: str | bytes, *, threads: int) -> Any:
    """An InferenceSession for a file or its bytes, with default options."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # prints less, computes the same
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def int8(*parts: Part) -> dict[Part, Quantization]:
    """int8 matmuls, as an export makes them for one stream on the CPU. Codes are chosen by the faster method, which
    does not affect the measured times."""
    inputs = load_target("cpu").int8
    return {
        part: Quantization(bits=8, block=None, zero_points=False, method="round", inputs=inputs[part]) for part in parts
    }


def int4() -> dict[Part, Quantization]:
    """int4 weights, made the same way, and an int8 head."""
    target = load_target("cpu")
    return int8("head") | {
        "llm": Quantization(
            block=target.int4_blocks[0], zero_points=target.int4_zero_points, method="round", inputs=target.int4_inputs
        )
    }


def gemm_peak() -> Peak:
    """A matmul of two square float32 matrices, by torch and by ONNX Runtime; the right one constant, like weights."""
    import onnx

    generator, size = torch.Generator().manual_seed(0), GEMM_SIZE
    left, right = torch.randn(2, size, size, generator=generator)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        gemm (float[{size}, {size}] left) => (float[{size}, {size}] product) {{ product = MatMul(left, right) }}"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(right.numpy(), "right"))
    session = open_with_defaults(model.SerializeToString(), threads=torch.get_num_threads())
    return Peak(
        work=2e-9 * size**3,
        unit="GFLOP/s",
        runs={"torch": lambda: left @ right, "ONNX Runtime": lambda: session.run(None, {"left": left.numpy()})},
    )


def read_peak() -> Peak:
    """Reading an array from memory, by numpy and by torch, each with its fastest operation on one thread."""
    array = torch.ones(READ_BYTES // 4)
    runs: dict[str, Callable[[], Any]] = {"numpy max": array.numpy().max, "torch dot": lambda: array @ array}
    return Peak(work=READ_BYTES / 1e9, unit="GB/s", runs=runs)
