"""An environment like JetPack 6's: Python 3.10, numpy 1, the last ONNX Runtime for both, and the imports of `apps`.

python -m tests.boxes.on_310 FOLDER                                  # makes it, 0.3 GB
PVC_ROOM_310=FOLDER python -m pytest tests/test_python_310.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .make_box import find_python

NAME = "PVC_ROOM_310"
PACKAGES = ("numpy==1.26.4", "onnxruntime==1.23.2", "pillow", "tokenizers", "av")


def make_room(folder: Path) -> None:
    """Install the packages into `folder`. Raises NoBox without a Python 3.10, CalledProcessError if pip fails."""
    pip = [str(find_python("3.10")), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), *PACKAGES], check=True)


def run_in_room(folder: Path, source: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python 3.10 with only the packages in `folder` and `source`. Raises NoBox without a Python 3.10."""
    paths = f"{source}{os.pathsep}{folder}"
    environment = {"PATH": os.defpath, "HOME": str(Path.home()), "PYTHONPATH": paths, "PYTHONNOUSERSITE": "1"}
    command = [str(find_python("3.10")), "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    make_room(Path(sys.argv[1]))
