"""Memory, swap, power and disk: what a build needs, and what can be freed on a Jetson.

On a Jetson, CPU and GPU share the memory, and only the CPU's part can be swapped out.
"""

from __future__ import annotations

import re
from pathlib import Path

from .view import Finding, Machine

MIB, GIB = 1 << 20, 1 << 30
LEAST_MIB = 1024
"""Memory required if the build's needs are unknown: a small model's build took 0.4 GB (pvc_export/plan/peaks.py),
without a CUDA context and TensorRT's kernels."""
ROOMY_MIB = 24 * 1024
"""From this much memory on (Jetsons with 32 or 64 GB), zram, the desktop and missing swap do not matter."""
LARGE_BLOCK = MIB
IN_LARGE_BLOCKS_MIB = 256
"""TensorRT's usual workspace on a small Jetson: a guess, not measured, at where allocations begin to fail."""


def memory(machine: Machine, needs_mib: int) -> Finding | None:
    """Memory available to programs, counting caches that can be dropped."""
    available, total = machine.memory_mib("MemAvailable"), machine.memory_mib("MemTotal")
    if not total:
        return None
    detail = f"{available} of {total} MiB are available"
    if available >= needs_mib:
        return Finding(name="memory", state="ok", detail=detail)
    return Finding(
        name="memory",
        state="error",
        detail=f"{detail}; a build needs {needs_mib} MiB",
        remedy=("ps aux --sort=-rss | head   # find what to stop", "or stop everything: sudo reboot"),
    )


def contiguous(machine: Machine) -> Finding | None:
    """Free memory in large blocks: on a Jetson, GPU allocations fail without them, after days of use."""
    lines = re.findall(r"zone\s+\S+((?:\s+\d+)+)", machine.read("proc/buddyinfo"))
    if not machine.is_jetson or not lines:
        return None
    zones = [[int(count) for count in line.split()] for line in lines]
    blocks = {machine.page_bytes << order: sum(counts) for order, counts in enumerate(zip(*zones, strict=True))}
    largest = max((size for size, count in blocks.items() if count), default=0)
    in_large = sum(size * count for size, count in blocks.items() if size >= LARGE_BLOCK) // MIB
    if in_large >= IN_LARGE_BLOCKS_MIB:
        detail = f"{in_large} MiB are free in blocks of 1 MiB and more, the largest has {largest // MIB} MiB"
        return Finding(name="blocks", state="ok", detail=detail)
    return Finding(
        name="blocks",
        state="warning",
        detail=f"only {in_large} MiB are free in blocks of 1 MiB and more, the largest has {largest // 1024} KiB: "
        "NvMap may refuse allocations although memory is free",
        remedy=("sudo sysctl vm.drop_caches=3 vm.compact_memory=1", "if that does not help: sudo reboot"),
    )


def zram(machine: Machine) -> Finding | None:
    """Compressed swap, which uses the memory that is short."""
    if not _is_small_jetson(machine):
        return None
    if not any("zram" in line for line in _swaps(machine)):
        return Finding(name="zram", state="ok", detail="off")
    return Finding(
        name="zram",
        state="warning",
        detail="compressed swap (zram) uses memory that a build needs",
        remedy=("sudo systemctl disable nvzramconfig && sudo reboot",),
    )


def swap(machine: Machine) -> Finding | None:
    """Swap on a file or partition, where the CPU side of a build can go."""
    if not _is_small_jetson(machine):
        return None
    real = [line.split() for line in _swaps(machine) if "zram" not in line]
    if real:
        return Finding(name="swap", state="ok", detail=f"{sum(int(line[2]) for line in real) // 1024} MiB")
    drive = _nvme(machine)
    path = f"{(drive or '/').rstrip('/')}/16GB.swap"
    return Finding(
        name="swap",
        state="warning",
        detail="no swap on a disk" + ("" if drive else ", and no NVMe drive: swap on an SD card is slow and wears it"),
        remedy=(
            f"sudo fallocate -l 16G {path} && sudo chmod 600 {path}",
            f"sudo mkswap {path} && sudo swapon {path}",
            f"echo '{path} none swap sw 0 0' | sudo tee -a /etc/fstab",
        ),
    )


def desktop(machine: Machine) -> Finding | None:
    if not _is_small_jetson(machine):
        return None
    if machine.run(("systemctl", "is-active", "display-manager")) != "active":
        return Finding(name="desktop", state="ok", detail="off")
    return Finding(
        name="desktop",
        state="warning",
        detail="a desktop session is running; it takes about 800 MB",
        remedy=("sudo systemctl set-default multi-user.target && sudo reboot",),
    )


def power(machine: Machine) -> Finding | None:
    """The power mode. The numbers differ per board: on an Orin Nano, 0 is 15 W and 2 the fastest."""
    modes = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", machine.read("etc/nvpmodel.conf")))
    asked = re.search(r"NV Power Mode:\s*(\S+)", machine.run(("nvpmodel", "-q")))
    status = re.search(
        r"pmode:0*(\d+)", machine.read("var/lib/nvpmodel/status")
    )  # readable by all users; -q needs root
    now = asked.group(1) if asked else modes.get(status.group(1), "") if status else ""
    if not machine.is_jetson or not now:
        return None
    fastest = {name: number for number, name in modes.items() if name.startswith("MAXN")}
    if now.startswith("MAXN") or (modes and not fastest and modes.get("0") == now):
        return Finding(name="power", state="ok", detail=now)
    name = max(fastest, default="MAXN")  # MAXN_SUPER before MAXN
    number = fastest.get(name, "0")
    return Finding(
        name="power",
        state="warning",
        detail=f"mode {now} is not the fastest: builds and measured times are slower",
        remedy=(f"sudo nvpmodel -m {number} && sudo jetson_clocks",),
    )


def disk(machine: Machine, folder: Path) -> Finding:
    """Disk space for the engines. Their weights are about as large as those of the graphs in the folder."""
    if not folder.is_dir():
        return Finding(
            name="folder",
            state="error",
            detail=f"{folder} is not a folder",
            remedy=("name an existing folder: --folder FOLDER",),
        )
    if why := machine.why_not_writable(folder):
        remedy = f"sudo chown -R $USER '{folder}'"
        if "read-only" in why.lower():
            remedy = f"cp -r '{folder}' ~/   # then build there"
        return Finding(name="folder", state="error", detail=f"engines cannot be written: {why}", remedy=(remedy,))
    places = ("*.onnx*", "graphs/*.onnx*", "model/graphs/*.onnx*")  # a bundle's, and a kit's
    graphs = [path for pattern in places for path in folder.glob(pattern)]
    needed, free = GIB + sum(path.stat().st_size for path in graphs), machine.disk_free(folder)
    detail = f"{free / GIB:.1f} GiB are free on the disk"
    if free >= needed:
        return Finding(name="disk", state="ok", detail=detail)
    return Finding(
        name="disk",
        state="error",
        detail=f"{detail}; engines need about {needed / GIB:.1f} GiB",
        remedy=("sudo apt clean", "sudo du -xh / | sort -h | tail -20   # find the largest folders"),
    )


def _is_small_jetson(machine: Machine) -> bool:
    return machine.is_jetson and machine.memory_mib("MemTotal") < ROOMY_MIB


def _swaps(machine: Machine) -> list[str]:
    return machine.read("proc/swaps").splitlines()[1:]


def _nvme(machine: Machine) -> str:
    """Mount point of an NVMe drive, the one nearest to the root; empty without a drive."""
    mounts = [line.split() for line in machine.read("proc/mounts").splitlines()]
    folders = [fields[1] for fields in mounts if fields[0].startswith("/dev/nvme") and "/boot" not in fields[1]]
    return min(folders, key=len, default="")
