"""The code in docs/examples works with only the packages it names, and without our packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.preprocess import to_model_frame

from .conftest import WINDOW

EXAMPLE = Path(__file__).parent.parent / "docs/examples/run_graphs.py"
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("engines", "pvc_export", "pvc_ref", "apps", "torch", "onnx", "tokenizers", "PIL")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A module that is None in sys.modules cannot be imported."""


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_fp16"])
def test_a_bundle_s_vision_graphs_run_without_a_package_of_ours(
    name: str, frames: list[np.ndarray], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Bit for bit the values of PVCStream, over three windows of frames, in both spellings and both float types."""
    folder = request.getfixturevalue(name)
    bundle = open_bundle(folder, runtime="cpu")
    size = bundle.manifest.shape.image_size
    model_frames = [to_model_frame(frame, size=size) for frame in frames]
    assert len(model_frames) >= 3 * WINDOW
    stream, expected = PVCStream(bundle), []
    for frame in model_frames:
        encoded = stream.vision.encode(frame)
        stream.vision.commit(encoded)
        expected.append(encoded.frame_embeds)
    np.save(tmp_path / "frames.npy", np.stack(model_frames))
    arguments = [str(EXAMPLE), str(folder), str(tmp_path / "frames.npy"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == expected[0].dtype and np.array_equal(found, np.stack(expected))


@pytest.mark.parametrize("package", ["engines", "torch"])
def test_what_the_example_must_not_need_cannot_be_imported_beside_it(package: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import {package}\n", encoding="utf-8")
    run = subprocess.run([sys.executable, "-I", "-c", ALONE, str(script)], capture_output=True, text=True)
    assert run.returncode == 1 and f"import of {package} halted" in run.stderr
