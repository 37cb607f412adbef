"""Step 2: runtimes that could run a graph here. Each is imported, queried for GPUs, and runs a small computation."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

from engines.builder import INSTALL

from .hardware import Hardware
from .section import Found

RUNTIMES = {
    "torch": ("PyTorch on CUDA", "install a torch with CUDA into this environment: https://pytorch.org/get-started"),
    "onnxruntime": (
        "ONNX Runtime, CUDA provider",
        "in a fresh environment without onnxruntime, which has the same module name: pip install -e '.[ort-gpu]'",
    ),
    "tensorrt": ("TensorRT", INSTALL["tensorrt"]),
    "tensorrt_rtx": ("TensorRT-RTX", INSTALL["tensorrt_rtx"]),
}
"""Module -> its usual name, and the command that installs it."""
SIZE = 256


def missing() -> dict[str, str]:
    """Runtimes that are not installed, with the command that installs each. Imports nothing."""
    lacking = {name: fix for name, (_, fix) in RUNTIMES.items() if not _is_installed(name)}
    if "onnxruntime" not in lacking and not _is_ort_gpu():
        lacking["onnxruntime (CUDA)"] = RUNTIMES["onnxruntime"][1]
    return lacking


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _is_ort_gpu() -> bool:
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def look_at_runtime(name: str, hardware: Hardware) -> Found:
    """Whether a runtime loads, sees the GPU, and computes correctly on it; or why not, and the fix."""
    title, fix = RUNTIMES[name]
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken native library can raise anything; it all means the same to the user
        cause = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load: {error}"
        return Found(state="refused", error=f"{title}: the package {name} {cause}", fix=fix)
    facts = (("version", str(module.__version__)),)
    if not hardware.has_gpu:
        return Found(facts=(*facts, ("loads", "yes")))
    looks: dict[str, Callable[[ModuleType, Hardware], str]] = {"torch": _torch, "onnxruntime": _onnxruntime}
    try:
        seen = looks.get(name, _tensorrt)(module, hardware)
    except Exception as error:  # so can kernels that the card does not support
        return Found(facts=facts, state="refused", error=f"{title} {module.__version__}: {error}", fix=fix)
    return Found(facts=(*facts, ("sees", seen)))


def _torch(torch: ModuleType, hardware: Hardware) -> str:
    device = hardware.torch_device
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        raise RuntimeError(
            f"this build for CUDA {built} finds no GPU that it supports: the driver is too old, or the card too new"
            if built
            else "this build has no CUDA support"
        )
    matrix = torch.eye(SIZE, device=device) * 2
    if float((matrix @ matrix).sum()) != 4.0 * SIZE:
        raise RuntimeError("a matmul gave a wrong result")
    if device != "cuda":
        return f"torch on {device}"
    built_for = " ".join(torch.cuda.get_arch_list())
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}; compiled for {built_for}"


def _onnxruntime(ort: ModuleType, hardware: Hardware) -> str:
    import numpy as np
    import onnx

    provider = hardware.provider
    if provider not in ort.get_available_providers():
        raise RuntimeError(f"it has only the providers {', '.join(ort.get_available_providers())}, not {provider}")
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{SIZE}, {SIZE}] x) => (float[{SIZE}, {SIZE}] y) {{ y = MatMul(x, x) }}"""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = onnx.parser.parse_model(text).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(
            f"{provider} could not start: libcudnn or libcublas is missing, or for another major version of CUDA"
        )
    (product,) = session.run(None, {"x": 2 * np.eye(SIZE, dtype=np.float32)})
    if not np.array_equal(product, 4 * np.eye(SIZE, dtype=np.float32)):
        raise RuntimeError("a matmul gave a wrong result")
    return f"{provider} computes"


def _tensorrt(trt: ModuleType, hardware: Hardware) -> str:
    """Create a Runtime and a Builder, each of which starts CUDA. Later steps show whether engines run."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    log = Log()
    trt.Runtime(log), trt.Builder(log)
    if log.errors:
        raise RuntimeError(log.errors[0])
    return f"{hardware.cuda().compute_capability()}, and starts on it"
