"""The runtime as source, for machines without this project: a device's kit, a server's container."""

from __future__ import annotations

import shutil
from pathlib import Path

import engines as runtime

RUNTIME_NAME = runtime.__name__
APPS_NAME = runtime.__name__.replace("engines", "apps")
"""Both packages, under the names they have here (docs/decisions/0002)."""


def copy_runtime(folder: Path) -> None:
    """Write both packages into a folder, replacing its contents."""
    shutil.rmtree(folder, ignore_errors=True)
    ours = Path(runtime.__file__).parent
    for package in (ours, ours.with_name(APPS_NAME)):
        ignored = shutil.ignore_patterns("__pycache__", "optimum_pvc", "*.pyc")
        shutil.copytree(package, folder / package.name, ignore=ignored)
