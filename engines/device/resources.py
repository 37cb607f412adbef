"""Memory, swap, power and disk: what a build needs, and what of a Jetson's few gigabytes can be had back.

On a Jetson, CPU and GPU share the memory, and swap takes only what is the CPU's.
"""

from __future__ import annotations

import re
from pathlib import Path

from .view import Finding, Machine

MIB, GIB = 1 << 20, 1 << 30
LEAST_MIB = 1024
"""What is asked for where nothing says what a build needs: a small model's took 0.4 GB (pvc_export/plan/peaks.py),
without a CUDA context and TensorRT's kernels."""
ROOMY_MIB = 24 * 1024
"""From this much memory on, zram, desktop and a lack of swap are nobody's worry: of Jetsons, 32 and 64 GB."""
LARGE_BLOCK = MIB
IN_LARGE_BLOCKS_MIB = 256
"""TensorRT's usual workspace on a small Jetson. A guess at where allocations begin to fail: nobody measured it."""


def memory(machine: Machine, needs_mib: int) -> Finding | None:
    """What programs may still have, caches included."""
    available, total = machine.memory_mib("MemAvailable"), machine.memory_mib("MemTotal")
    if not total:
        return None
    detail = f"{available} MiB of {total} are available"
    if available >= needs_mib:
        return Finding(name="memory", state="ok", detail=detail)
    return Finding(
        name="memory",
        state="error",
        detail=f"{detail}; a build needs {needs_mib}",
        remedy=("ps aux --sort=-rss | head   # shows what to stop", "or, to stop all of it: sudo reboot"),
    )


def contiguous(machine: Machine) -> Finding | None:
    """Free memory in large blocks: on a Jetson, allocations of the GPU fail without, after days of use."""
    lines = re.findall(r"zone\s+\S+((?:\s+\d+)+)", machine.read("proc/buddyinfo"))
    if not machine.is_jetson or not lines:
        return None
    zones = [[int(count) for count in line.split()] for line in lines]
    blocks = {machine.page_bytes << order: sum(counts) for order, counts in enumerate(zip(*zones, strict=True))}
    largest = max((size for size, count in blocks.items() if count), default=0)
    in_large = sum(size * count for size, count in blocks.items() if size >= LARGE_BLOCK) // MIB
    if in_large >= IN_LARGE_BLOCKS_MIB:
        detail = f"{in_large} MiB are free in blocks of 1 MiB and more, the largest of {largest // MIB} MiB"
        return Finding(name="blocks", state="ok", detail=detail)
    return Finding(
        name="blocks",
        state="warning",
        detail=f"only {in_large} MiB are free in blocks of 1 MiB and more, the largest of {largest // 1024} KiB: NvMap "
        "may refuse memory that is free",
        remedy=("sudo sysctl vm.drop_caches=3 vm.compact_memory=1", "if that does not help: sudo reboot"),
    )


def zram(machine: Machine) -> Finding | None:
    """Compressed swap inside the memory that is short."""
    if not _is_small_jetson(machine):
        return None
    if not any("zram" in line for line in _swaps(machine)):
        return Finding(name="zram", state="ok", detail="off")
    return Finding(
        name="zram",
        state="warning",
        detail="compressed swap takes its room from the memory that a build needs",
        remedy=("sudo systemctl disable nvzramconfig && sudo reboot",),
    )


def swap(machine: Machine) -> Finding | None:
    """A file or partition: a build's CPU side may go there."""
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
        detail="none on a disk" + ("" if drive else ", and no NVMe drive: on a card it is slow, and wears it"),
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
    """The power mode. Its numbers are each board's own: on an Orin Nano, 0 is 15 W and 2 the fastest."""
    modes = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", machine.read("etc/nvpmodel.conf")))
    asked = re.search(r"NV Power Mode:\s*(\S+)", machine.run(("nvpmodel", "-q")))
    status = re.search(r"pmode:0*(\d+)", machine.read("var/lib/nvpmodel/status"))  # for all, where -q is root's
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
        detail=f"mode {now}, which is not the fastest: builds and times are slower",
        remedy=(f"sudo nvpmodel -m {number} && sudo jetson_clocks",),
    )


def disk(machine: Machine, folder: Path) -> Finding:
    """Room for the engines. Their weights are about as large as those of the graphs in the folder."""
    if not folder.is_dir():
        return Finding(name="folder", state="error", detail=f"{folder} is not a folder", remedy=("--folder FOLDER",))
    if why := machine.why_not_writable(folder):
        remedy = f"sudo chown -R $USER '{folder}'"
        if "read-only" in why.lower():
            remedy = f"cp -r '{folder}' ~/   # and build there"
        return Finding(name="folder", state="error", detail=f"engines cannot be written: {why}", remedy=(remedy,))
    places = ("*.onnx*", "graphs/*.onnx*", "model/graphs/*.onnx*")  # a bundle's, and a kit's
    graphs = [path for pattern in places for path in folder.glob(pattern)]
    needed, free = GIB + sum(path.stat().st_size for path in graphs), machine.disk_free(folder)
    detail = f"{free / GIB:.1f} GiB are free"
    if free >= needed:
        return Finding(name="disk", state="ok", detail=detail)
    return Finding(
        name="disk",
        state="error",
        detail=f"{detail}; engines need about {needed / GIB:.1f}",
        remedy=("sudo apt clean", "sudo du -xh / | sort -h | tail -20   # shows what is large"),
    )


def _is_small_jetson(machine: Machine) -> bool:
    return machine.is_jetson and machine.memory_mib("MemTotal") < ROOMY_MIB


def _swaps(machine: Machine) -> list[str]:
    return machine.read("proc/swaps").splitlines()[1:]


def _nvme(machine: Machine) -> str:
    """Where an NVMe drive is mounted, nearest to the root; empty without one."""
    mounts = [line.split() for line in machine.read("proc/mounts").splitlines()]
    folders = [fields[1] for fields in mounts if fields[0].startswith("/dev/nvme") and "/boot" not in fields[1]]
    return min(folders, key=len, default="")
