"""`pvc-export doctor`: this machine's packages, runtimes, GPU and disk, and the targets they allow."""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.builder import load_runtime
from engines.device import doctor as device
from engines.device.view import this_machine
from engines.errors import BackendUnavailable
from engines.needs import lack_for
from engines.target import load_target, target_names
from engines.terminal import print_json

from ..terminal.console import Console

PURPOSE = {
    "torch": ("export, check", "pip install -e '.[export]'"),
    "onnx": ("export", "pip install -e '.[export]'"),
    "onnxscript": ("export", "pip install -e '.[export]'"),
    "safetensors": ("checkpoints", "pip install -e '.[export]'"),
    "onnxruntime": ("run, check", "pip install -e '.[ort]'"),
    "tensorrt_rtx": ("engines for target rtx", "pip install -e '.[rtx]'"),
    "tensorrt": (
        "engines for targets tensorrt and jetson-*",
        "on the machine with the GPU: pip install -e '.[trt]'; on a Jetson, JetPack's system Python has it",
    ),
    "tokenizers": ("prompts", "pip install -e ."),
    "PIL": ("frames", "pip install -e ."),
    "av": ("video files", "pip install -e '.[apps]'"),
    "cv2": ("cameras", "pip install -e '.[apps]'"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report. `remedy` is the next command when `ok` is false."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor_command(*, target: str | None, as_json: bool) -> int:
    """Print the findings, with the next step for everything missing; for a target, also whether this machine can build
    and run its engines. Returns the exit code, which is a failure only for a target."""
    of_target = [] if target is None else device.examine(this_machine(), load_target(target), folder=Path())
    findings = examine()
    if as_json:
        data = {"findings": [asdict(finding) for finding in findings]}
        if target is not None:
            data["device"] = [asdict(finding) for finding in of_target]
        print_json(data)
        return device.exit_code(of_target)
    console = Console()
    shown = dict[str, str]()  # remedy -> the finding that it was printed for
    for finding in findings:
        console.print(f"{'ok' if finding.ok else '--':<3} {finding.name:<24} {finding.detail}")
        if not finding.ok:
            first = shown.setdefault(finding.remedy, finding.name)
            console.print(f"    {'':<24} -> {finding.remedy if first == finding.name else f'as for {first}, above'}")
    if target is not None:
        console.print(f"\nthis machine, for engines of target {target}:")
        device.show(of_target, console.print)
    return device.exit_code(of_target)


def examine() -> list[Finding]:
    """Examine packages, GPU driver, disk and targets. Imports each package, since an installed one may not load."""
    findings = [Finding(name="python", ok=True, detail=f"{platform.python_version()} on {platform.platform()}")]
    findings += [_package(name, purpose, remedy) for name, (purpose, remedy) in PURPOSE.items()]
    findings.append(_gpu())
    free = shutil.disk_usage(".").free
    findings.append(
        Finding(name="disk", ok=free > 1 << 30, detail=f"{free / 2**30:.1f} GiB free", remedy="free some disk space")
    )
    findings += [_target(name, findings) for name in target_names()]
    return findings


def _package(name: str, purpose: str, remedy: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken native library can raise anything; it all means the same to the user
        cause = "not installed" if isinstance(error, ModuleNotFoundError) else f"does not load: {error}"
        return Finding(name=name, ok=False, detail=f"{cause}; needed for: {purpose}", remedy=remedy)
    return Finding(name=name, ok=True, detail=f"{getattr(module, '__version__', '?')}; for: {purpose}")


def _gpu() -> Finding:
    """Query the CUDA driver directly: a package may be installed on a machine without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(
            name="gpu",
            ok=False,
            detail="no NVIDIA driver (libcuda.so.1); RTX engines can be built here but not run",
            remedy="not needed for export and parity; run engines on a machine with an NVIDIA GPU",
        )
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value == 0:
        return Finding(
            name="gpu", ok=False, detail=f"driver present, no usable GPU (CUDA error {status})", remedy="nvidia-smi"
        )
    name = ctypes.create_string_buffer(96)
    driver.cuDeviceGetName(name, 96, 0)
    return Finding(name="gpu", ok=True, detail=f"{count.value} GPU(s), first: {name.value.decode()}")


def _target(name: str, findings: list[Finding]) -> Finding:
    """What this machine can do for a target: export, and possibly build and run engines."""
    target, title = load_target(name), f"target {name}"
    loads = {finding.name: finding.ok for finding in findings}
    lacking = [package for package in ("onnxruntime", target.builder) if package and not loads.get(package, False)]
    if lacking:
        remedy = PURPOSE[lacking[0]][1]
        return Finding(name=title, ok=False, detail=f"{target.description}; needs {', '.join(lacking)}", remedy=remedy)
    if too_old := lack_for(target):
        return Finding(name=title, ok=False, detail=f"{too_old.what}; it needs {too_old.expected}", remedy=too_old.fix)
    providers = importlib.import_module("onnxruntime").get_available_providers()
    if target.runtime == "ort-cuda" and "CUDAExecutionProvider" not in providers:
        return Finding(
            name=title,
            ok=False,
            detail="this onnxruntime has no CUDA provider; graphs can be exported and checked, but not run on a GPU",
            remedy="in a fresh environment: pip install -e '.[ort-gpu]'",
        )
    if target.builder is None:
        return Finding(name=title, ok=True, detail="ONNX files run directly")
    try:
        version = load_runtime(target).__version__
    except BackendUnavailable as error:
        return Finding(name=title, ok=False, detail=error.what, remedy=error.fix or "choose another target or version")
    runs = "run them" if loads["gpu"] else "but not run them: no GPU"
    needs_gpu = target.builder == "tensorrt" and not loads["gpu"]
    detail = f"{target.builder} {version}: " + ("needs a GPU to build" if needs_gpu else f"can build engines, {runs}")
    return Finding(name=title, ok=not needs_gpu, detail=detail, remedy="on the machine with the GPU")
