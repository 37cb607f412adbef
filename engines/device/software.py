"""Checks that Python, numpy, OpenCV, TensorRT, the CUDA runtime and the GPU work and fit the target.

Version facts come from NVIDIA's release notes and from reports about which version loads where.
"""

from __future__ import annotations

import contextlib
import io
import platform
import sys
from types import ModuleType

from ..cuda import NOT_LOADED
from ..errors import BackendUnavailable
from ..target import Target, is_within, load_target, target_names
from .view import Finding, Machine

BOARDS = {"tegra194": "SM72", "tegra234": "SM87", "tegra264": "SM110"}
"""GPUs of Xavier, Orin and Thor, used when the CUDA runtime cannot report one."""
JETPACKS = (
    ("35", "36", "JetPack 5"), ("36", "36.4", "JetPack 6.0"), ("36.4", "36.4.3", "JetPack 6.1"),
    ("36.4.3", "36.4.4", "JetPack 6.2"), ("36.4.4", "36.5", "JetPack 6.2.1"), ("36.5", "37", "JetPack 6.2.2"),
    ("38", "38.4", "JetPack 7.0"), ("38.4", "39", "JetPack 7.1"), ("39", "40", "JetPack 7.2"),
)  # fmt: skip
"""First version of Jetson Linux, first version that no longer belongs, name of the JetPack."""
NVMAP_LIMITED = ("36.4.7", "38.2.2")
"""Versions of Jetson Linux whose security fix limits allocations. NVIDIA confirmed it; 36.5 fixes the first."""
WITHOUT_KERNELS = (
    ("SM87", "10.8", "10.16", "10.7 is the last for JetPack 6; the next for an Orin is JetPack 7.2's 10.16"),
    ("SM87", "11.0", "11.4.1", "11.4.1 is the first TensorRT 11 for Jetsons"),
    ("SM110", "11.0", "11.4.1", "11.4.1 is the first TensorRT 11 for Jetsons"),
)
"""Versions of TensorRT that load on a GPU they have no kernels for: GPU, first, first not affected, explanation."""


def find_gpu(machine: Machine) -> tuple[str, BackendUnavailable | None]:
    """The GPU, such as 'SM87', read from CUDA or else derived from the board's chip; empty if unknown. Second: the
    error of the CUDA query, if any."""
    try:
        return machine.capability(), None
    except BackendUnavailable as error:
        return BOARDS.get(machine.chip, ""), error


def is_for_jetsons(target: Target) -> bool:
    return bool(set(target.compute_capabilities) & set(BOARDS.values()))


def python(machine: Machine) -> Finding:
    where = "in a virtual environment" if machine.in_venv else sys.executable
    return Finding(name="python", state="ok", detail=f"{platform.python_version()}, {where}")


def board(machine: Machine, target: Target, gpu: str) -> Finding:
    """The board: which Jetson it is, if any."""
    if not machine.is_jetson:
        if not is_for_jetsons(target):
            return Finding(name="board", state="ok", detail="not a Jetson")
        return Finding(
            name="board",
            state="error",
            detail=f"this is not a Jetson, and engines of target '{target.name}' are built on the device",
            remedy=("copy this folder to the device and build there", f"or {_export_for(target, gpu=gpu)}"),
        )
    name = next((name for first, beyond, name in JETPACKS if is_within(machine.l4t, first, beyond)), "")
    parts = (machine.read("proc/device-tree/model") or "a Jetson", f"L4T {machine.l4t or 'unknown'}", name)
    detail = ", ".join(filter(None, parts))
    if machine.l4t in NVMAP_LIMITED:
        return Finding(
            name="board",
            state="warning",
            detail=f"{detail}: large allocations (gigabytes) may fail although memory is free (NvMap error 12)",
            remedy=(
                "fixed in L4T 36.5; its firmware cannot be downgraded again:",
                "sudo sed -i s/r36.4/r36.5/ /etc/apt/sources.list.d/nvidia-l4t*",
                "sudo apt update && sudo apt dist-upgrade",
            )
            if machine.l4t.startswith("36")
            else ("sudo apt update && sudo apt dist-upgrade",),
        )
    return Finding(name="board", state="ok", detail=detail)


def numpy(machine: Machine) -> Finding:
    try:
        module = machine.load("numpy")
    except Exception as error:  # a package whose native library is broken raises anything
        remedy = _for_hidden(machine, "numpy") or (
            ("sudo apt install python3-numpy",) if machine.is_jetson else ("python3 -m pip install numpy",)
        )
        return Finding(name="numpy", state="error", detail=_first_line(error), remedy=remedy)
    return Finding(name="numpy", state="ok", detail=_version(module))


def opencv(machine: Machine) -> Finding | None:
    """OpenCV, needed for cameras only; None if it is not installed."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # numpy prints forty lines of explanation
            module = machine.load("cv2")
    except ModuleNotFoundError:
        return None
    except Exception as error:  # as in numpy
        if "numpy" not in f"{error} {said.getvalue()}".lower():
            return Finding(name="opencv", state="warning", detail=f"does not load: {_first_line(error)}")
        return Finding(
            name="opencv",
            state="warning",
            detail="OpenCV was built for numpy 1, but this Python has numpy 2: OpenCV cameras do not work",
            remedy=("python3 -m pip install 'numpy<2'",),
        )
    return Finding(name="opencv", state="ok", detail=_version(module))


def builder(machine: Machine, target: Target, gpu: str) -> Finding | None:
    """The engine builder; None for a target without engines."""
    if target.builder is None:
        return None
    try:
        module = machine.load(target.builder)
    except Exception as error:  # as in numpy
        return _not_loaded(machine, target, error)
    version = _version(module)
    for of_gpu, first, beyond, why in WITHOUT_KERNELS:
        if target.builder == "tensorrt" and gpu == of_gpu and is_within(version, first, beyond):
            return Finding(
                name=target.builder,
                state="error",
                detail=f"{version} has no kernels for this GPU ({gpu}): {why}",
                remedy=("python3 -m pip uninstall tensorrt", "sudo apt install python3-libnvinfer"),
            )
    if target.takes(version):
        return Finding(name=target.builder, state="ok", detail=version)
    first, beyond = target.builder_versions
    install = f"python3 -m pip install '{target.builder}>={first},<{beyond}'"
    if is_for_jetsons(target):
        install = f"flash the system that includes it: {_system(target)}"
    return Finding(
        name=target.builder,
        state="error",
        detail=f"found {version}; target '{target.name}' needs {first} or later, but below {beyond}",
        remedy=tuple(filter(None, (install, _export_for(target, gpu=gpu, version=version)))),
    )


def cuda(machine: Machine, target: Target, problem: BackendUnavailable | None) -> Finding | None:
    """The CUDA runtime and its driver; only TensorRT needs them to build."""
    if target.builder != "tensorrt":
        return None
    if problem is None:
        return Finding(name="cuda", state="ok", detail="the CUDA runtime loads and finds a GPU")
    folders = [path.parent for path in machine.find("usr/local/cuda*/lib64/libcudart.so*")]
    if problem.what == NOT_LOADED and folders:
        folder = f"/{folders[0].relative_to(machine.root)}"
        return Finding(
            name="cuda",
            state="error",
            detail=f"the CUDA runtime is in {folder}, which is not on this system's library path",
            remedy=(f"echo {folder} | sudo tee /etc/ld.so.conf.d/cuda.conf", "sudo ldconfig"),
        )
    fix = problem.fix
    if problem.what != NOT_LOADED and machine.in_container:
        fix = "start this container with " + ("--runtime nvidia" if machine.is_jetson else "--gpus all")
    elif machine.is_jetson:  # CUDA is not a pip package there, and two groups own the GPU's device files
        missing = problem.what == NOT_LOADED
        fix = "sudo apt install nvidia-jetpack" if missing else "sudo usermod -aG video,render $USER && sudo reboot"
    return Finding(name="cuda", state="error", detail=problem.what, remedy=(fix,))


def graphics(target: Target, gpu: str) -> Finding | None:
    """The GPU, if the target names the GPUs it supports. None if no GPU was found, which `cuda` reports."""
    if target.builder != "tensorrt" or not gpu:
        return None
    if not target.compute_capabilities or gpu in target.compute_capabilities:
        return Finding(name="gpu", state="ok", detail=gpu)
    return Finding(
        name="gpu",
        state="error",
        detail=f"found {gpu}; target '{target.name}' is for {' or '.join(target.compute_capabilities)}",
        remedy=(_export_for(target, gpu=gpu) or f"build on a device the target is for: {_system(target)}",),
    )


def _not_loaded(machine: Machine, target: Target, error: Exception) -> Finding | None:
    """Explain an import error of the builder; None if numpy is missing, which has its own finding."""
    name, text = str(target.builder), str(error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else ""
    if missing == "numpy":
        return None
    if missing == name:
        if remedy := _for_hidden(machine, name):
            detail = "installed for the system's Python, but not visible to this one"
        elif machine.is_jetson:
            detail, remedy = "not installed", ("sudo apt install python3-libnvinfer",)
        else:
            first, beyond = target.builder_versions
            detail, remedy = "not installed", (f"python3 -m pip install '{name}>={first},<{beyond}'",)
        return Finding(name=name, state="error", detail=detail, remedy=remedy)
    if "libnvdla_compiler" in text:
        remedy = ("sudo apt install nvidia-l4t-dla-compiler && sudo ldconfig",)  # apt alone leaves it off the path
        if machine.in_container:
            remedy = ("on the host, not in this container:", *remedy, "and start this container with --runtime nvidia")
        return Finding(name=name, state="error", detail="libnvdla_compiler.so is missing", remedy=remedy)
    install = "sudo apt install --reinstall python3-libnvinfer"
    return Finding(
        name=name,
        state="error",
        detail=f"does not load: {_first_line(error)}",
        remedy=(install if machine.is_jetson else f"python3 -m pip install --force-reinstall {name}",),
    )


def _for_hidden(machine: Machine, package: str) -> tuple[str, ...]:
    """Remedy if the system's Python has a package that this one lacks; empty if that lacks it too."""
    if not machine.find(f"usr/lib/python3*/dist-packages/{package}"):
        return ()
    return (
        "/usr/bin/python3 -m venv --system-site-packages .venv",
        "or run it with /usr/bin/python3, without a virtual environment",
    )


def _export_for(target: Target, *, gpu: str, version: str = "") -> str:
    """How to export for this machine instead; empty if no target fits its GPU and this version of the builder."""
    for other in map(load_target, target_names()):
        fits_gpu = gpu in other.compute_capabilities if gpu in BOARDS.values() else not is_for_jetsons(other)
        if (
            other.name != target.name
            and other.builder == target.builder
            and fits_gpu
            and (not version or other.takes(version))
        ):
            return f"export for this machine: pvc-export trt --target {other.name}"
    return ""


def _system(target: Target) -> str:
    """The system of a Jetson target, such as 'Jetson Orin, JetPack 6.1 and 6.2'."""
    return target.description.partition(" (")[0]


def _version(module: ModuleType) -> str:
    return str(getattr(module, "__version__", "unknown version"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
