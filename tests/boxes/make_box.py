"""A box: NVIDIA's Python bindings of one TensorRT version, which parse and build on a machine without a GPU.

A box combines the bindings' wheel of that version with the library of a TensorRT-RTX wheel (see bridge.py). So a kit
meets that version's names, enums, signatures and behaviour, and NVIDIA's parser and compiler.

A box does not show which operators that version's parser has (RTX's is newer), its kernels, its list of layers, or
anything that runs on a GPU. An engine built in a box is never built "with TensorRT 10.3": it is built with the bindings
of 10.3.0 over TensorRT-RTX 1.4.

    FOLDER/site       tensorrt, tensorrt_bindings, numpy: all that can be imported
    FOLDER/ort        ONNX Runtime, only for the stand-in of an engine (inside.py)
    FOLDER/lib        the libraries, under TensorRT's names
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

STUB = "_Bool initLibNvInferPlugins(void* logger, const char* names) { return 0; }\n"
"""Source of a stub for the plugin library: it is loaded, but never used."""
LIBRARIES = {
    "libnvinfer.so.{major}": "libtensorrt_rtx.so.1",
    "libnvonnxparser.so.{major}": "libtensorrt_onnxparser_rtx.so.1",
    "libtensorrt_rtx.so.1": "libtensorrt_rtx.so.1",
}


class NoBox(Exception):
    """A box cannot be made on this machine; the message names the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The parts of a box. target: the kit's target; capability: the GPU that the kit is told is present."""

    version: str
    jetpack: str
    python: str
    rtx: str
    packages: tuple[str, ...]
    onnxruntime: str
    target: str
    capability: str

    @property
    def name(self) -> str:
        return f"bindings of TensorRT {self.version} over TensorRT-RTX {self.rtx}"


ON_310, ON_312 = ("numpy==1.26.4",), ("numpy==2.4.*",)
BOXES = (
    Box(version="10.3.0", jetpack="JetPack 6.2", python="3.10", rtx="1.4.0.76", packages=ON_310,
        onnxruntime="onnxruntime==1.23.2", target="jetson-orin-jp62", capability="SM87"),
    Box(version="10.13.3.9", jetpack="JetPack 7.0", python="3.12", rtx="1.4.0.76", packages=ON_312,
        onnxruntime="onnxruntime==1.32.*", target="jetson-thor-jp70", capability="SM110"),
    Box(version="10.16.1.11", jetpack="JetPack 7.2", python="3.12", rtx="1.4.0.76", packages=ON_312,
        onnxruntime="onnxruntime==1.32.*", target="jetson-orin-jp72", capability="SM87"),
    Box(version="11.4.0.106", jetpack="no JetPack", python="3.12", rtx="1.7.1.116", packages=ON_312,
        onnxruntime="onnxruntime==1.32.*", target="tensorrt", capability="SM89"),
)  # fmt: skip


def find_python(version: str) -> Path:
    """Find a working interpreter of this version: from PYTHON310 etc., pyenv, or the path. Raises NoBox."""
    named = os.environ.get(f"PYTHON{version.replace('.', '')}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    of_pyenv = sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))
    for name in [named] if named else [*of_pyenv, f"python{version}"]:
        found = shutil.which(name)
        if found and _output(found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])") == version:
            return Path(found)
    raise NoBox(f"no Python {version} was found: name one with PYTHON{version.replace('.', '')}=...")


def _output(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def make_box(box: Box, folder: Path) -> Path:
    """Make the box unless it exists, and return its interpreter. Raises NoBox with what this machine lacks."""
    python = find_python(box.python)
    done = folder / "made"
    if done.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    major = box.version.split(".")[0]
    _install(python, folder / "site", [*box.packages])
    _install(python, folder / "ort", [box.onnxruntime])
    shutil.rmtree(folder / "ort/numpy", ignore_errors=True)  # the box has its own numpy
    _unpack(python, f"tensorrt-cu12-bindings=={box.version}", folder / "site")
    _unpack(python, f"tensorrt-rtx-cu13-libs=={box.rtx}", folder / "rtx")
    (folder / "site/tensorrt").mkdir()
    shutil.copy(Path(__file__).with_name("bridge.py"), folder / "site/tensorrt/__init__.py")
    (folder / "lib").mkdir()
    for name, library in LIBRARIES.items():
        (folder / "lib" / name.format(major=major)).symlink_to((folder / "rtx/tensorrt_rtx_libs" / library).resolve())
    _compile_stub(folder / "lib" / f"libnvinfer_plugin.so.{major}")
    done.touch()
    return python


def _install(python: Path, folder: Path, packages: list[str]) -> None:
    _pip(python, "install", "--target", str(folder), *packages)


def _unpack(python: Path, requirement: str, folder: Path) -> None:
    """Unpack one wheel without its requirements: the libraries would take gigabytes."""
    wheels = folder / "wheel"
    _pip(python, "download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), requirement)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    shutil.rmtree(wheels)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", *arguments, "-q", "--disable-pip-version-check", "--no-cache-dir"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise NoBox(f"pip {' '.join(arguments[:1])} failed: {(found.stderr.strip().splitlines() or ['?'])[-1]}")


def _compile_stub(library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoBox("no C compiler was found to compile the stub of the plugin library: apt-get install gcc")
    source = library.with_suffix(".c")
    source.write_text(STUB)
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)


def environment(folder: Path, kit: Path) -> dict[str, str]:
    """Environment of a process in the box: nothing of this one's except the paths of programs and temporary files."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    paths = f"{kit / 'runtime'}:{folder / 'site'}"
    return kept | {"PYTHONPATH": paths, "LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONNOUSERSITE": "1"}
