"""The device doctor on fake machines: a healthy machine gets no advice, and each single fault gets its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engines.cuda import NOT_LOADED
from engines.device import doctor
from engines.device.doctor import examine, exit_code, show
from engines.device.view import Finding, Machine, this_machine
from engines.errors import BackendUnavailable
from engines.target import load_target

ROOT = Path(__file__).parent.parent.parent.parent
GIB = 1 << 30
MEMINFO = "MemTotal:        7802940 kB\nMemFree:         3802940 kB\nMemAvailable:    {} kB\n"
ORDERS = "    512    256    128    128     64     64     32     32     16     16"
NVPMODEL = "< PM_CONFIG DEFAULT=1 >\n" + "".join(
    f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n"
    for number, name in enumerate(("15W", "25W", "MAXN_SUPER", "7W"))
)
MOUNTS = "/dev/mmcblk0p1 / ext4 rw 0 0\n/dev/nvme0n1p1 /data ext4 rw 0 0\n"
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"
ZRAM = "/dev/zram0 partition 650240 0 5\n"
FILE = "/data/16GB.swap file 16777212 0 -2\n"
NVMAP = "# R{} (release), REVISION: {}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"


@dataclass(kw_only=True)
class Rendered:
    """A machine as a folder of files and a table of answers. Each fault changes one entry."""

    files: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | Exception] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    gpu: str | BackendUnavailable = "SM87"
    in_venv: bool = False
    free: int = 100 * GIB
    not_writable: str = ""

    def at(self, root: Path) -> Machine:
        for name, text in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return Machine(
            root=root,
            in_venv=self.in_venv,
            page_bytes=4096,
            run=lambda command: self.commands.get(" ".join(command), ""),
            load=self.load,
            capability=self.capability,
            disk_free=lambda folder: self.free,
            why_not_writable=lambda folder: self.not_writable,
        )

    def load(self, name: str) -> ModuleType:
        found = self.packages.get(name, ModuleNotFoundError(f"No module named '{name}'", name=name))
        if isinstance(found, Exception):
            raise found
        module = ModuleType(name)
        module.__version__ = found  # type: ignore[attr-defined]
        return module

    def capability(self) -> str:
        if isinstance(self.gpu, str):
            return self.gpu
        raise self.gpu


def orin_nano() -> Rendered:
    """Healthy, on JetPack 6.2: 8 GB, headless, no zram, swap on its NVMe drive, in its fastest mode."""
    return Rendered(
        files={
            "etc/nv_tegra_release": NVMAP.format(36, "4.3"),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
            "proc/meminfo": MEMINFO.format(6 << 20),
            "proc/buddyinfo": f"Node 0, zone      DMA{ORDERS}    300\nNode 0, zone   Normal{ORDERS}    500\n",
            "proc/swaps": SWAPS + FILE,
            "proc/mounts": MOUNTS,
            "etc/nvpmodel.conf": NVPMODEL,
            "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
        },
        packages={"numpy": "1.26.4", "tensorrt": "10.3.0", "cv2": "4.8.0"},
        commands={"nvpmodel -q": "NV Power Mode: MAXN_SUPER\n2", "systemctl is-active display-manager": "inactive"},
    )


def thor() -> Rendered:
    """Healthy, on JetPack 7.0: 128 GB, with the desktop, zram and power mode it ships with."""
    return Rendered(
        files={
            "etc/nv_tegra_release": NVMAP.format(38, "2.1"),
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
            "proc/meminfo": "MemTotal: 128772940 kB\nMemAvailable: 120000000 kB\n",
            "proc/swaps": SWAPS + ZRAM,
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
        },
        packages={"numpy": "1.26.4", "tensorrt": "10.13.3.9"},
        commands={"nvpmodel -q": "NV Power Mode: MAXN\n0", "systemctl is-active display-manager": "active"},
        gpu="SM110",
    )


def desktop() -> Rendered:
    """A PC with an RTX 4090. It is not a Jetson, but has things the doctor checks on one: zram, a desktop, no swap."""
    return Rendered(
        files={"proc/meminfo": "MemTotal: 65536000 kB\nMemAvailable: 50000000 kB\n", "proc/swaps": SWAPS + ZRAM},
        packages={"numpy": "2.4.6", "tensorrt": "11.1.0"},
        commands={"systemctl is-active display-manager": "active"},
        gpu="SM89",
        in_venv=True,
    )


def findings_of(machine: Rendered, root: Path, *, target: str, needs_mib: int | None = None) -> dict[str, Finding]:
    findings = examine(machine.at(root), load_target(target), folder=root, needs_mib=needs_mib)
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(bool(finding.remedy) == (finding.state != "ok") for finding in findings)
    return {finding.name: finding for finding in findings}


def faults_of(findings: Mapping[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if finding.state != "ok"]


def missing(library: str) -> ImportError:
    return ImportError(f"{library}: cannot open shared object file: No such file or directory")


# -- healthy machines ------------------------------------------------------------------------------------------------


def test_a_healthy_orin_nano_is_ready_and_every_check_says_so(tmp_path: Path) -> None:
    findings = findings_of(orin_nano(), tmp_path, target="jetson-orin-jp62")
    assert faults_of(findings) == [] and exit_code(list(findings.values())) == 0
    assert list(findings) == [
        "python", "board", "numpy", "opencv", "tensorrt", "cuda", "gpu", "memory", "blocks", "zram", "swap", "desktop",
        "power", "disk",
    ]  # fmt: skip
    assert findings["board"].detail.endswith("Developer Kit Super, L4T 36.4.3, JetPack 6.2")


def test_a_healthy_thor_is_ready_and_its_desktop_is_no_fault(tmp_path: Path) -> None:
    findings = findings_of(thor(), tmp_path, target="jetson-thor-jp70")
    assert faults_of(findings) == [] and not {"zram", "swap", "desktop"} & set(findings)


@pytest.mark.parametrize("target", ["tensorrt", "cuda", "cpu"])
def test_on_a_desktop_no_check_speaks_of_jetsons(target: str, tmp_path: Path) -> None:
    findings = findings_of(desktop(), tmp_path, target=target)
    assert faults_of(findings) == [] and findings["board"].detail == "not a Jetson"
    assert not {"blocks", "zram", "swap", "desktop", "power"} & set(findings)
    assert ("tensorrt" in findings) == ("gpu" in findings) == (target == "tensorrt")


# -- one fault, one finding ------------------------------------------------------------------------------------------

Plant = Callable[[Rendered], None]


def package(name: str, found: str | Exception) -> Plant:
    return lambda machine: machine.packages.update({name: found})


def file(path: str, text: str) -> Plant:
    return lambda machine: machine.files.update({path: text})


def command(line: str, answer: str) -> Plant:
    return lambda machine: machine.commands.update({line: answer})


def gpu(answer: str | BackendUnavailable) -> Plant:
    return lambda machine: setattr(machine, "gpu", answer)


def all_of(*plants: Plant) -> Plant:
    def plant(machine: Rendered) -> None:
        for each in plants:
            each(machine)

    return plant


def hidden(machine: Rendered) -> None:
    machine.in_venv = True
    del machine.packages["tensorrt"]


def nowhere(machine: Rendered) -> None:
    del machine.packages["tensorrt"], machine.files["usr/lib/python3.10/dist-packages/tensorrt/__init__.py"]


def no_numpy(machine: Rendered) -> None:
    machine.packages["numpy"] = ModuleNotFoundError("No module named 'numpy'", name="numpy")
    machine.packages["tensorrt"] = ModuleNotFoundError("No module named 'numpy'", name="numpy")


def full_disk(machine: Rendered) -> None:
    machine.free = GIB // 2


def not_writable(why: str) -> Plant:
    return lambda machine: setattr(machine, "not_writable", why)


def no_drive(machine: Rendered) -> None:
    machine.files |= {"proc/swaps": SWAPS, "proc/mounts": "/dev/mmcblk0p1 / ext4 rw 0 0\n"}


NO_LIBRARY = BackendUnavailable(NOT_LOADED, fix="pip install nvidia-cuda-runtime")
NO_DRIVER = BackendUnavailable("CUDA: cudaGetDeviceCount failed with error 35", fix="see nvidia-smi")
DLA = package("tensorrt", missing("libnvdla_compiler.so"))
FRAGMENTED = f"Node 0, zone      DMA{ORDERS}      0\nNode 0, zone   Normal{ORDERS}      2\n"
FAULTS: dict[str, tuple[Plant, str, str, str]] = {
    "numpy missing": (no_numpy, "numpy", "error", "sudo apt install python3-numpy"),
    "numpy broken": (package("numpy", missing("libopenblas.so.0")), "numpy", "error", "apt install python3-numpy"),
    "numpy 2 beside an OpenCV for numpy 1": (
        package("cv2", ImportError("numpy.core.multiarray failed to import")), "opencv", "warning", "'numpy<2'",
    ),
    "tensorrt hidden by a venv": (hidden, "tensorrt", "error", "/usr/bin/python3 -m venv --system-site-packages .venv"),
    "tensorrt missing": (nowhere, "tensorrt", "error", "sudo apt install python3-libnvinfer"),
    "libnvdla_compiler missing": (DLA, "tensorrt", "error", "sudo apt install nvidia-l4t-dla-compiler"),
    "libnvdla_compiler missing in a container": (
        all_of(DLA, file(".dockerenv", "")), "tensorrt", "error", "--runtime nvidia",
    ),
    "tensorrt broken": (package("tensorrt", OSError("invalid ELF header")), "tensorrt", "error", "--reinstall"),
    "tensorrt of JetPack 5": (package("tensorrt", "8.5.2.2"), "tensorrt", "error", "JetPack 6.1 and 6.2"),
    "tensorrt of JetPack 7.2": (
        package("tensorrt", "10.16.2.10"), "tensorrt", "error", "pvc-export trt --target jetson-orin-jp72",
    ),
    "tensorrt without kernels for an Orin": (
        package("tensorrt", "10.13.3"), "tensorrt", "error", "sudo apt install python3-libnvinfer",
    ),
    "tensorrt 11 of a PC": (package("tensorrt", "11.2.1"), "tensorrt", "error", "pip uninstall tensorrt"),
    "CUDA off the path": (
        all_of(gpu(NO_LIBRARY), file("usr/local/cuda/lib64/libcudart.so.12", "")), "cuda", "error",
        "echo /usr/local/cuda/lib64 | sudo tee /etc/ld.so.conf.d/cuda.conf",
    ),
    "CUDA missing": (gpu(NO_LIBRARY), "cuda", "error", "sudo apt install nvidia-jetpack"),
    "no access to the GPU": (gpu(NO_DRIVER), "cuda", "error", "sudo usermod -aG video,render"),
    "no GPU in a container": (all_of(gpu(NO_DRIVER), file(".dockerenv", "")), "cuda", "error", "--runtime nvidia"),
    "another GPU": (gpu("SM110"), "gpu", "error", "pvc-export trt --target jetson-thor-jp70"),
    "a GPU that no target is for": (gpu("SM72"), "gpu", "error", "build on a device the target is for: Jetson Orin"),
    "an L4T that limits allocations": (
        file("etc/nv_tegra_release", NVMAP.format(36, "4.7")), "board", "warning", "sudo apt dist-upgrade",
    ),
    "300 MB of memory": (file("proc/meminfo", MEMINFO.format(300 << 10)), "memory", "error", "ps aux --sort=-rss"),
    "memory in pieces": (file("proc/buddyinfo", FRAGMENTED), "blocks", "warning", "sudo reboot"),
    "zram": (file("proc/swaps", SWAPS + ZRAM + FILE), "zram", "warning", "sudo systemctl disable nvzramconfig"),
    "no swap": (file("proc/swaps", SWAPS), "swap", "warning", "sudo fallocate -l 16G /data/16GB.swap"),
    "no swap and no drive": (no_drive, "swap", "warning", "sudo mkswap /16GB.swap && sudo swapon /16GB.swap"),
    "a desktop": (
        command("systemctl is-active display-manager", "active"), "desktop", "warning",
        "sudo systemctl set-default multi-user.target",
    ),
    "a slow mode": (command("nvpmodel -q", "NV Power Mode: 15W\n0"), "power", "warning", "sudo nvpmodel -m 2"),
    "a slow mode that only root may ask for": (
        all_of(command("nvpmodel -q", ""), file("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet")),
        "power", "warning", "sudo nvpmodel -m 2 && sudo jetson_clocks",
    ),
    "a full disk": (full_disk, "disk", "error", "du -xh"),
    "a folder of another user": (not_writable("Permission denied"), "folder", "error", "sudo chown -R $USER"),
    "a read-only folder": (not_writable("Read-only file system"), "folder", "error", "cp -r"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "name", "state", "remedy"), FAULTS.values(), ids=FAULTS)
def test_a_fault_alone_is_its_own_finding_with_what_mends_it(
    plant: Plant, name: str, state: str, remedy: str, tmp_path: Path
) -> None:
    machine = orin_nano()
    plant(machine)
    findings = findings_of(machine, tmp_path, target="jetson-orin-jp62")
    assert faults_of(findings) == [name]
    assert findings[name].state == state and remedy in " ".join(findings[name].remedy)
    assert exit_code(list(findings.values())) == (4 if state == "error" else 0)
    lines: list[str] = []
    show([findings[name]], lines.append)
    assert all(len(line) <= 80 or str(tmp_path) in line for line in lines), lines


def test_on_a_pc_a_bundle_for_jetsons_is_at_the_wrong_machine_and_nothing_else_is_asked(tmp_path: Path) -> None:
    findings = findings_of(desktop(), tmp_path, target="jetson-orin-jp62")
    assert list(findings) == ["python", "board"] and findings["board"].state == "error"
    assert findings["board"].remedy[1] == "or export for this machine: pvc-export trt --target tensorrt"


def test_a_chip_names_its_gpu_where_cuda_cannot(tmp_path: Path) -> None:
    machine = thor()
    machine.gpu = NO_LIBRARY
    findings = findings_of(machine, tmp_path, target="jetson-orin-jp62")
    assert "found SM110; target" in findings["gpu"].detail and findings["cuda"].state == "error"


def test_a_device_of_jetpack_6_may_not_be_sent_to_a_target_that_its_tensorrt_does_not_fit(tmp_path: Path) -> None:
    findings = findings_of(orin_nano(), tmp_path, target="jetson-orin-jp72")
    assert faults_of(findings) == ["tensorrt"]
    assert findings["tensorrt"].remedy[-1] == "export for this machine: pvc-export trt --target jetson-orin-jp62"


def test_an_orin_nano_without_a_super_mode_is_at_its_fastest_in_mode_0(tmp_path: Path) -> None:
    machine = orin_nano()
    machine.files["etc/nvpmodel.conf"] = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
    machine.commands["nvpmodel -q"] = "NV Power Mode: 15W\n0"
    assert findings_of(machine, tmp_path, target="jetson-orin-jp62")["power"].state == "ok"


@pytest.mark.parametrize(("needs_mib", "state"), [(None, "ok"), (6144, "ok"), (6145, "error")])
def test_memory_is_held_against_what_the_build_needs(needs_mib: int | None, state: str, tmp_path: Path) -> None:
    findings = findings_of(orin_nano(), tmp_path, target="jetson-orin-jp62", needs_mib=needs_mib)
    assert findings["memory"].state == state


def test_engines_need_as_much_disk_as_the_graphs_beside_them(tmp_path: Path) -> None:
    machine = orin_nano()
    machine.free = GIB + 500
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs/llm.onnx.data").write_bytes(bytes(500))
    assert findings_of(machine, tmp_path, target="jetson-orin-jp62")["disk"].state == "ok"
    (tmp_path / "graphs/llm.onnx").write_bytes(bytes(1))
    assert findings_of(machine, tmp_path, target="jetson-orin-jp62")["disk"].state == "error"


# -- the command line ------------------------------------------------------------------------------------------------

BARE = """
import sys, types

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "engines"}:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Nothing())
package = types.ModuleType("engines")  # without what its __init__ imports
package.__path__ = ["engines"]
sys.modules["engines"] = package
from engines.device.doctor import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_here_and_says_what_is_wrong() -> None:
    command = [sys.executable, "-m", "engines.device.doctor", "--target", "jetson-orin-jp62", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    data = json.loads(result.stdout)
    states = {finding["name"]: finding["state"] for finding in data["findings"]}
    assert result.returncode == (4 if "error" in states.values() else 0) and result.stderr == ""
    assert data["target"] == "jetson-orin-jp62" and states["python"] == "ok"


def test_it_runs_with_the_standard_library_alone_and_misses_numpy() -> None:
    command = [sys.executable, "-c", BARE, "--target", "tensorrt", "--needs-mib", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 4 and result.stderr == ""
    assert "error    numpy      No module named 'numpy'" in result.stdout
    assert "-> python3 -m pip install" in result.stdout


def test_an_old_python_is_told_so_before_anything_is_imported_that_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 8, 10), version="3.8.10 (default)"))
    assert doctor.main(["--target", "jetson-orin-jp62"]) == 4
    assert "too old: 3.10 or later" in capsys.readouterr().out
    assert doctor.main(["--target", "jetson-orin-jp62", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["findings"][0]["name"] == "python"


def test_a_target_that_does_not_exist_is_an_error_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--target", "jetson-orin-jp63"]) == 6
    assert "Did you mean 'jetson-orin-jp62'?" in capsys.readouterr().err


def test_the_real_view_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    machine = this_machine()
    assert machine.why_not_writable(tmp_path) == ""
    assert machine.why_not_writable(tmp_path / "none") == "No such file or directory"
    assert machine.run(("no-such-command",)) == "" and machine.run(("echo", "x")) == "x"
    assert machine.disk_free(tmp_path) > 0 and machine.memory_mib("MemTotal") > 0
