"""Step 1: the machine: GPU, driver, memory, processor, system, and the versions of relevant packages."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engines.errors import BackendUnavailable
from engines.sizes import available_bytes

from ..terminal.console import size_text
from ..terminal.facts import cpu_name
from .hardware import Hardware
from .section import Found

PACKAGES = re.compile(r"numpy|onnx|torch|tensorrt|nvidia|cuda|cudnn|tokenizers|safetensors|pillow|ml.dtypes|pvc", re.I)
DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """An operating system as text; if it is not supported, also the reason and the fix."""

    words: str
    refusal: str = ""


def system_of(platform_name: str, release: str) -> System:
    """Identify the system by sys.platform and the kernel's release, which names WSL2."""
    if platform_name == "win32":
        return System(
            words="Windows",
            refusal="native Windows is not supported, but WSL2 is: run `wsl --install` once, then the same command in "
            "its shell; it uses the GPU's Windows driver",
        )
    if platform_name != "linux":
        return System(
            words=platform_name, refusal=f"{platform_name} has no NVIDIA GPUs and is not supported: use Linux or WSL2"
        )
    if "microsoft" not in release.lower():
        return System(words=f"Linux {release}")
    if "wsl2" in release.lower() or "microsoft-standard" in release:
        return System(words=f"Windows, WSL2 ({release}): supported")
    return System(words="Windows, WSL1", refusal="WSL1 has no GPU access: convert it with `wsl --set-version NAME 2`")


def require_system() -> System:
    """This system. Raises BackendUnavailable if it is not supported."""
    system = system_of(sys.platform, platform.release())
    if system.refusal:
        raise BackendUnavailable(system.refusal)
    return system


def versions() -> dict[str, str]:
    """Version of every installed package that takes part in the computation or uses the GPU."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and PACKAGES.search(name):
            found[name] = distribution.version
    return {"python": platform.python_version(), **dict(sorted(found.items(), key=lambda item: item[0].lower()))}


def look_at_machine(hardware: Hardware) -> Found:
    """Describe the machine, with or without a GPU."""
    drivers, memory = hardware.drivers, available_bytes()
    cards = [
        (
            "GPU" if index == 0 else f"GPU {index}, not used",
            f"{gpu.name}, SM{gpu.capability[0]}{gpu.capability[1]}, {size_text(gpu.memory_bytes)}",
        )
        for index, gpu in enumerate(drivers.gpus)
    ] or [("GPU", f"none: {drivers.error}")]
    facts = [
        *cards,
        ("driver", "of a stand-in" if hardware.is_stand_in else driver_version() or "none"),
        ("CUDA, by the driver", drivers.cuda_version or "none"),
        ("precisions tried", ", ".join(hardware.precisions) + "; bfloat16 requires SM80 or later"),
        ("processor", cpu_name()),
        ("memory free", size_text(memory) if memory is not None else "unknown"),
        ("system", system_of(sys.platform, platform.release()).words),
        ("python", platform.python_version()),
    ]
    data = {"gpus": [gpu.to_json() for gpu in drivers.gpus], "versions": versions()}
    return Found(facts=tuple(facts), data=data)


def driver_version() -> str:
    """Driver version, such as '580.95.05', or ''. In WSL2 the driver is Windows', so WSL's nvidia-smi reports it."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return found.group()
    for program in ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"):
        asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return done.stdout.splitlines()[0].strip() if done.stdout.strip() else ""
    return ""
