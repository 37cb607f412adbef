"""The live session on a device that has only the runtime's few packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines.synthetic import render_clip
from engines.video import write_video

ROOT = Path(__file__).parent.parent.parent
KIT = ("apps", "engines", "numpy", "PIL", "tokenizers", "onnxruntime", "av", "cv2")
"""What a device's kit contains in addition to the standard library."""
REFUSE_THE_REST = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {KIT!r}:
            raise ModuleNotFoundError(f"No module named '{{top}}': a kit does not have it", name=top)
sys.meta_path.insert(0, Refuse())
"""
WATCH = """
runpy.run_module("apps.watch", run_name="__main__", alter_sys=True)
"""


def watch(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE_THE_REST + before + WATCH, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "clip.mp4"
    write_video(path, render_clip(6, seed=5, width=64, height=48), fps=10.0)
    return path


def test_a_kit_shows_the_help() -> None:
    result = watch("--help")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith("usage: python -m apps.watch [OPTIONS] [BUNDLE]\n")
    assert all(word in result.stdout for word in ("--source", "csi:0", "frames/%03d.png", "--trust-engines"))
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_kit_watches_a_video_and_records_it(bundle_fp32: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    arguments = ("--source", clip, "--every-frame", "--headless", "--max-new-tokens", 4, "--record", out, "--json")
    result = watch(bundle_fp32, *arguments)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["num_processed"] == 6 and data["num_answers"] == 1 and data["recording"]["num_frames"] == 6


def test_a_kit_without_the_world_says_what_synthetic_needs(bundle_fp32: Path) -> None:
    result = watch(bundle_fp32, "--source", "synthetic", "--headless")
    assert result.returncode == 4 and "Traceback" not in result.stderr
    assert "error: --source synthetic needs pvc_ref" in result.stderr and "--source 0" in result.stderr


@pytest.mark.parametrize("package", ["typer", "torch", "pvc_ref", "onnx", "jinja2", "rich"])
def test_what_a_kit_lacks_would_be_found_out(package: str) -> None:
    result = watch("--help", before=f"import {package}")
    assert result.returncode == 1 and f"No module named '{package}': a kit does not have it" in result.stderr
