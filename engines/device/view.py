"""What is looked at of a machine, behind functions that a test can stand in for; and what is found.

Standard library alone, as is all of this folder: where numpy does not load, that is a finding.
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
"""warning: a build works, or may; error: it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check's result. `remedy` has what mends it, a line each: commands, or a sentence that ends in one."""

    name: str
    state: State
    detail: str
    remedy: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine as the checks see it.

    root              where /proc, /sys, /etc and /usr are
    in_venv           whether this Python is a virtual environment's
    page_bytes        of memory
    run               a command's standard output; empty if it fails, or is not there
    load              a package, by its name; raises what importing it raises
    capability        of the GPU, such as 'SM87'; raises BackendUnavailable
    disk_free         bytes, where that folder is
    why_not_writable  of a folder; empty if files can be made there
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
        """A file below the root; empty if it is not there. The kernel ends some in a zero byte."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def find(self, pattern: str) -> list[Path]:
        """Paths below the root that fit a pattern, sorted."""
        return sorted(self.root.glob(pattern))

    @property
    def is_jetson(self) -> bool:
        """By what the kernel says: in a container, /etc is another system's."""
        return bool(self.chip) or (self.root / "etc/nv_tegra_release").exists()

    @property
    def in_container(self) -> bool:
        return (self.root / ".dockerenv").exists()

    @property
    def chip(self) -> str:
        """A Jetson's, such as 'tegra234'; empty elsewhere."""
        found = re.search(r"nvidia,(tegra\d+)", self.read("proc/device-tree/compatible"))
        return found.group(1) if found else ""

    @property
    def l4t(self) -> str:
        """The version of Jetson Linux, such as '36.4.3'; empty if nothing says it."""
        found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", self.read("etc/nv_tegra_release"))
        return f"{found.group(1)}.{found.group(2)}" if found else ""

    def memory_mib(self, key: str) -> int:
        """A line of /proc/meminfo; 0 if it is not there."""
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
    """By trying: permissions alone do not tell of a file system that is mounted to be read."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
