"""A machine that lacks something: each error names the cause and the next command, and nothing is half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvc_export.bundles import export as export_module

from ..conftest import Outcome, Run
from .test_bad_input import LIKE_BUNDLE, Facts

ROOT = Path(__file__).parents[3]


FULL: Facts = {
    "cause": ("the disk or your quota is full: ", "are free at "),
    "fix": "free disk space, or choose another folder with -o",
}


@pytest.mark.parametrize("file", ["tokenizer.json", "engines/llm.engine", "manifest.json"])
def test_a_full_disk_keeps_the_old_bundle(
    ready_made: None,
    bundle_fp16: Path,
    copy_bundle: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    pvc_export: Run,
    file: str,
) -> None:
    """Simulated, not with a link to /dev/full: onnx replaces the link's target, which as root destroys the device."""
    old = copy_bundle(bundle_fp16)
    for name in ("write_text", "write_bytes"):
        original = getattr(Path, name)

        def write(self: Path, data: str, *args: object, original: Any = original, **kwargs: object) -> object:
            if not self.as_posix().endswith(f"/bundle/{file}"):
                return original(self, data, *args, **kwargs)
            original(self, data[: len(data) // 2], *args, **kwargs)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, name, write)
    what = ("writing the bundle failed: ", "No space left on device", "nothing was published")
    pvc_export("trt", *LIKE_BUNDLE, "-o", old, "--json").refuses(4, "BackendUnavailable", what=what, **FULL)
    assert [path.name for path in old.parent.iterdir()] == ["copy"]
    assert (old / "manifest.json").read_bytes() == (bundle_fp16 / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("262144 requested and 7168 written")],
    ids=["with its code", "as numpy raises it"],
)
def test_a_full_disk_in_the_middle_of_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run, error: OSError
) -> None:
    def write_half(module: object, spec: object, path: Path) -> None:
        path.write_bytes(b"half of a graph")
        raise error

    monkeypatch.setattr(export_module, "export_graph", write_half)
    what = ("writing the bundle failed: ", str(error), "nothing was published")
    pvc_export("onnx", "-o", tmp_path / "b", "--json").refuses(4, "BackendUnavailable", what=what, **FULL)
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_missing(
    bundle_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    install = "pip install -e '.[ort]'"
    needs = ("needs the package onnxruntime", "cannot be imported")
    pvc_export("check", bundle_fp16, "--json").refuses(4, "BackendUnavailable", what=needs, fix=install)
    export = pvc_export("onnx", "-o", tmp_path / "b")
    export.says(4, "checks its graphs with the package onnxruntime", "cannot be imported", "othing was", install)
    assert "export trunk" not in export.out, "a missing package must be known before minutes of export"
    monkeypatch.undo()


def test_an_engine_builder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    export = pvc_export("trt", "-o", tmp_path / "b")
    export.says(4, "'rtx' needs the package tensorrt_rtx", "cannot be imported", "pip install -e '.[rtx]'")
    assert "export trunk" not in export.out and not list(tmp_path.iterdir())


def test_an_exporter_that_is_not_installed(tmp_path: Path) -> None:
    """Runs in a separate process, since this one has loaded torch."""
    code = "import sys; sys.modules['torch'] = None\nfrom pvc_export.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "onnx", "-o", "b"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    outcome = Outcome(exit_code=result.returncode, out=result.stdout, message=result.stderr)
    outcome.says(4, "error: this command needs the package torch", "fix: pip install -e '.[export]'")
    assert not list(tmp_path.iterdir())
