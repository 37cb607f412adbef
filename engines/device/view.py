"""Access to the machine under examination, replaceable in tests; and the findings.

Standard library only, like this whole folder: numpy failing to load is itself a finding.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from ..cuda import LibCudart

State = Literal["ok", "warning", "error"]
"""warning: a build works, or may work; error: it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check's result. `remedy` fixes it, one line each: commands, or a sentence that ends in one."""

    name: str
    state: State
    detail: str
    remedy: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine as the checks see it.

    root              folder of /proc, /sys, /etc and /usr
    in_venv           whether this Python runs in a virtual environment
    page_bytes        size of a memory page
    run               a command's standard output; empty if it fails or is not installed
    load              imports a package by name; raises what the import raises
    capability        the GPU's compute capability, such as 'SM87'; raises BackendUnavailable
    disk_free         free bytes on the folder's disk
    why_not_writable  reason why no file can be created in a folder; empty if one can
    """

    root: Path
    in_venv: bool
    page_bytes: int
    run: Callable[[Sequence[str]], str]
    load: Callable[[str], ModuleType]
    capability: Callable[[], str]
    disk_free: Callable[[Path], int]
    why_not_writable: Callable[[Path], str]

    def read(self, path: str) -> str:
        """Content of a file below the root; empty if it does not exist. Some kernel files end in a zero byte."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def find(self, pattern: str) -> list[Path]:
        """Paths below the root that match a pattern, sorted."""
        return sorted(self.root.glob(pattern))

    @property
    def is_jetson(self) -> bool:
        """Decided by the kernel's data: in a container, /etc belongs to another system."""
        return bool(self.chip) or (self.root / "etc/nv_tegra_release").exists()

    @property
    def in_container(self) -> bool:
        return (self.root / ".dockerenv").exists()

    @property
    def chip(self) -> str:
        """A Jetson's chip, such as 'tegra234'; empty elsewhere."""
        found = re.search(r"nvidia,(tegra\d+)", self.read("proc/device-tree/compatible"))
        return found.group(1) if found else ""

    @property
    def l4t(self) -> str:
        """Version of Jetson Linux, such as '36.4.3'; empty if unknown."""
        found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", self.read("etc/nv_tegra_release"))
        return f"{found.group(1)}.{found.group(2)}" if found else ""

    def memory_mib(self, key: str) -> int:
        """Value of a line of /proc/meminfo in MiB; 0 without that line."""
        found = re.search(rf"^{key}:\s+(\d+) kB", self.read("proc/meminfo"), re.MULTILINE)
        return int(found.group(1)) // 1024 if found else 0


def this_machine() -> Machine:
    return Machine(
        root=Path("/"),
        in_venv=sys.prefix != sys.base_prefix,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        run=_run,
        load=importlib.import_module,
        capability=lambda: LibCudart().compute_capability(),
        disk_free=lambda folder: shutil.disk_usage(folder).free,
        why_not_writable=_why_not_writable,
    )


def _run(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _why_not_writable(folder: Path) -> str:
    """Found by trying: permissions alone do not reveal a read-only file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
