"""The runtime on the oldest supported Python, with numpy 1 and the last ONNX Runtime for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.synthetic import render_clip
from engines.video import write_video

from .boxes.make_box import NoBox, find_python
from .boxes.on_310 import NAME, run_in_room

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, pkgutil, apps, engines
for room in (apps, engines):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        if not module.name.startswith("apps.optimum_pvc"):
            importlib.import_module(module.name)
"""
Room = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def room() -> Room:
    folder = os.environ.get(NAME)
    if not folder:
        pytest.skip(f"{NAME} is not set to a folder of packages; make one: python -m tests.boxes.on_310 FOLDER")
    try:
        find_python("3.10")
    except NoBox as error:
        pytest.skip(str(error))
    return lambda *arguments: run_in_room(Path(folder), ROOT, *arguments)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Arguments that stream a clip and ask about it; append a bundle."""
    clip = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(clip, render_clip(6, seed=5, width=64, height=48), fps=10.0)
    return ("-m", "apps.watch", "--source", clip, "--every-frame", "--headless", "--max-new-tokens", 8, "--json")


def test_every_module_of_the_runtime_imports_on_python_310(room: Room) -> None:
    result = room("-c", IMPORT_ALL)
    assert result.returncode == 0, result.stderr


def test_a_bundle_whose_llm_returns_rows_answers_there_as_here(
    room: Room, watch: tuple[object, ...], bundle_rows: Path
) -> None:
    there = room(*watch, bundle_rows)
    here = subprocess.run([sys.executable, *map(str, (*watch, bundle_rows))], cwd=ROOT, capture_output=True, text=True)
    assert there.returncode == here.returncode == 0, there.stderr + here.stderr
    found, expected = json.loads(there.stdout), json.loads(here.stdout)
    assert found["num_processed"] == 6
    assert found["last_answer"]["text"] == expected["last_answer"]["text"] != ""


def test_a_bundle_that_needs_a_later_onnxruntime_says_so_there(
    room: Room, watch: tuple[object, ...], bundle_fp32: Path
) -> None:
    result = room(*watch, bundle_fp32)
    error = json.loads(result.stdout)
    assert result.returncode == error["exit_code"] == 4
    assert "onnxruntime 1.23.2 is too old" in error["what"] and "Python 3.10" in error["cause"]
